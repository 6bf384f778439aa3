"""Smooth calibration error: no bins, the bandwidth set by the error itself."""

import numpy as np
from scipy.fft import dct
from scipy.optimize import brentq

from calibration.metrics.outcomes import FloatArray, Outcomes

GRID = 2048
"""Cells of [0, 1]. Ten million calibrated answers still smooth over three cells."""

_FREQUENCY = np.pi * np.arange(GRID + 1)


def smooth_error(o: Outcomes) -> FloatArray:
    """Area between the smoothed residuals and 0, at the bandwidth that equals the area.

    Each answer's residual (confidence - correct) is spread over [0, 1] by a Gaussian of standard
    deviation s that is reflected at 0 and 1; the absolute value of the sum is integrated and divided by
    n. The area falls with s, so there is one s at which area = s: that is the error. Miscalibration at a
    finer scale than its own size does not count.

    Reflected Gaussian smoothing is the flow of heat in a rod with insulated ends: in the cosine
    transform of the residuals, frequency k is multiplied by exp(-(pi k s)**2 / 2). Residuals at exactly
    0 and 1 stay whole, as they stand on the ends of the rod. Levels are put on a grid of `GRID` cells,
    each shared by the cell's ends so that its mean stays, which changes the error by less than 1e-4.

    Args:
        o: Graded answers.

    Returns:
        In [0, 1], one value for each row of a leading axis. At least |overconfidence|; 0 when the
        residuals at every confidence cancel. A constant at the accuracy scores 0; a perfectly calibrated
        model .015 to .03 on average with 1000 answers, by chance, and less with more of them.

    Source: Blasiok and Nakkiran 2023, "Smooth ECE: Principled Reliability Diagrams via Kernel
    Smoothing". Their package relplot searches s in 10 halvings, to .001, and loses half of the residuals
    at exactly 0 and 1; here s is exact and nothing is lost.

    >>> from calibration.metrics.outcomes import tally
    >>> round(float(smooth_error(tally([0.7, 0.7, 0.7, 0.7], [1, 0, 0, 0]))), 6)  # |.7 - 1/4|
    0.45
    """
    residuals = _on_grid(o)
    residuals[..., 1:-1] /= 2  # the transform counts them twice, once for each side of the reflection
    spectra = np.reshape(dct(residuals, type=1), (-1, GRID + 1))
    return np.reshape([_fixed_point(spectrum) for spectrum in spectra], o.count.shape[:-1])


def _on_grid(o: Outcomes) -> FloatArray:
    """Mean residual at each grid point, [..., GRID + 1]; a level is shared by the two nearest."""
    excess = o.level * o.count - o.right
    start = np.searchsorted(o.level, np.arange(GRID) / GRID)  # the first level of each cell
    cell = np.flatnonzero(np.diff(start, append=o.level.size))
    total = np.add.reduceat(excess, start[cell], axis=-1)
    upper = GRID * np.add.reduceat(excess * o.level, start[cell], axis=-1) - cell * total
    residuals = np.zeros((*o.count.shape[:-1], GRID + 1))
    residuals[..., cell] = total - upper
    residuals[..., cell + 1] += upper
    return np.asarray(residuals / o.n[..., None])


def _fixed_point(spectrum: FloatArray) -> float:
    def surplus(bandwidth: float) -> float:
        smooth = np.abs(dct(spectrum * np.exp(-((_FREQUENCY * bandwidth) ** 2) / 2), type=1))
        return float((smooth.sum() - (smooth[0] + smooth[-1]) / 2) / GRID - bandwidth)

    return float(brentq(surplus, 0, 2, xtol=1e-9))  # the area is at most 1
