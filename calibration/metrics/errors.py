"""Calibration error over bins of equally many answers, its published form, and its floor."""

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from calibration.errors import DataError
from calibration.metrics.outcomes import FloatArray, IntArray, Outcomes, tally

Norm: TypeAlias = Literal[1, 2, "max"]

BIN_SIZE = 100
"""Answers per bin in HLE's metric."""


def calibration_error(o: Outcomes, *, norm: Norm = 2, bin_size: int = BIN_SIZE) -> FloatArray:
    """Gap between confidence and accuracy over bins of equally many answers.

    Answers are ordered by confidence and cut every `bin_size`; the remainder joins the last bin, which
    counts like any other. Equal confidences share their mean correctness, so the order of the input
    never matters. With D(k) = sum of (confidence - correct) over the k lowest answers, a bin's gap is
    the increase of D over it divided by its size, and D is linear inside a tie.

    Args:
        o: Graded answers; the rows of a leading axis must hold equally many.
        norm: 1 averages the gaps (L1), 2 takes their root mean square (RMS), "max" the largest.
        bin_size: Answers per bin; fewer answers than this form one bin.

    Returns:
        In [0, 1], one value for each row of a leading axis. |overconfidence| <= L1 <= RMS <= max. A
        perfectly calibrated model scores about `calibration_floor(o)`, not 0.

    Source: Hendrycks et al. 2019 (hendrycks/outlier-exposure@e6ede98), which leaves out the last bin and
    lets the order of the input decide inside ties; see `hle_calibration_error`.

    >>> o = tally([0.2, 0.6, 0.9], [0, 1, 1])
    >>> round(float(calibration_error(o, bin_size=1)), 4)  # sqrt((.2**2 + .4**2 + .1**2) / 3)
    0.2646
    """
    n = _answers(o)
    edges = _edges(n, bin_size)
    excess = np.diff(_excess_at(edges, o, n), axis=-1)  # sum of (confidence - correct) in each bin
    sizes = np.diff(edges)
    if norm == 1:
        return np.asarray(np.abs(excess).sum(axis=-1) / n)
    if norm == 2:
        return np.asarray(np.sqrt((excess**2 / sizes).sum(axis=-1) / n))
    return np.asarray(np.abs(excess / sizes).max(axis=-1))


def hle_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, *, norm: Norm = 2, bin_size: int = BIN_SIZE
) -> float:
    """Calibration error exactly as published with HLE, for comparison with its leaderboard.

    The published function differs from `calibration_error` in two ways. It never counts the last bin,
    which holds the `bin_size` to 2 * `bin_size` - 1 most confident answers, while the weights of the
    others still divide by all n. And it sorts with numpy's default sort, so among equal confidences the
    order of the input (and the processor) decides which bin an answer falls in.

    Args:
        confidence: Shape [n], each in [0, 1], in the order of the file.
        correct: Shape [n], each 0 or 1.
        norm: 1, 2 or "max".
        bin_size: Answers per bin.

    Returns:
        In [0, 1].

    Raises:
        DataError: n < 2 * `bin_size`: the published function raises IndexError for n < `bin_size` and
            counts no bin at all (it returns 0, "perfect") below 2 * `bin_size`. Also for a value that
            `tally` refuses; the published function skips a missing mark and lets percentages through.

    Source: centerforaisafety/hle hle_eval/run_judge_results.py, as in hendrycks/outlier-exposure@e6ede98
    utils/calibration_tools.py.

    >>> round(hle_calibration_error([0.2, 0.6, 0.9], [0, 1, 1], bin_size=1), 4)  # .9 is not counted
    0.2582
    """
    tally(confidence, correct)
    values, marks = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    return float(dropped_bin_error(values, marks, norm=norm, bin_size=bin_size))


def dropped_bin_error(
    confidence: FloatArray, correct: FloatArray, *, norm: Norm = 2, bin_size: int = BIN_SIZE
) -> FloatArray:
    """`hle_calibration_error` of many resamples at once: [..., n] to [...]; values are not checked."""
    n = confidence.shape[-1]
    counted = n // bin_size - 1
    if counted < 1:
        raise DataError(
            f"HLE's calibration error needs at least {2 * bin_size} answers at {bin_size} per bin; got {n}. "
            "Use calibration_error, which counts every bin"
        )
    order = np.argsort(confidence, axis=-1)[..., : counted * bin_size]
    excess = np.take_along_axis(confidence, order, -1) - np.take_along_axis(correct, order, -1)
    gaps = np.abs(excess.reshape(*excess.shape[:-1], counted, bin_size).mean(axis=-1))
    if norm == 1:
        return np.asarray(gaps.sum(axis=-1) * bin_size / n)
    if norm == 2:
        return np.asarray(np.sqrt((gaps**2).sum(axis=-1) * bin_size / n))
    return np.asarray(gaps.max(axis=-1))


def calibration_floor(o: Outcomes, *, bin_size: int = BIN_SIZE) -> float:
    """RMS that a perfectly calibrated model with these confidences c scores by chance alone.

    The root of the expected square of `calibration_error(norm=2)` when each answer is right with
    probability c. Without ties and with full bins it is sqrt(mean of c(1 - c) / `bin_size`): it depends
    on the size of the bins and not on n, so more questions never lower it. Inside a tie, labels are
    averaged over all its answers, which lowers the floor: m tied answers of which k lie in a bin add
    k**2 c(1 - c) / m to the variance of that bin's excess.

    Args:
        o: Graded answers, without a leading axis; their marks are not used.
        bin_size: Answers per bin.

    Returns:
        In [0, 0.5].

    >>> o = tally([0.4999, 0.5001], [0, 1])
    >>> round(calibration_floor(o, bin_size=1), 3)
    0.5
    """
    n = _answers(o)
    edges = _edges(n, bin_size)
    cuts = np.union1d(edges, np.cumsum(o.count))  # pieces that lie in one level and one bin
    length, middle = np.diff(cuts, prepend=0)[1:], (cuts[1:] + cuts[:-1]) / 2
    level = np.searchsorted(np.cumsum(o.count), middle)
    bin_index = np.searchsorted(edges, middle) - 1
    chance = (o.level * (1 - o.level))[level]
    variance = length**2 * chance / (o.count[level] * np.diff(edges)[bin_index])
    return float(np.sqrt(variance.sum() / n))


def _answers(o: Outcomes) -> int:
    n = np.unique(o.n)
    if n.size != 1:
        raise DataError(f"every resample must hold equally many answers; got {n[0]} to {n[-1]}")
    return int(n[0])


def _edges(n: int, bin_size: int) -> IntArray:
    """0, bin_size, 2 * bin_size, ..., n: the last bin takes the remainder."""
    if bin_size < 1:
        raise DataError(f"bin_size must be at least 1; got {bin_size}")
    return np.append(np.arange(max(1, n // bin_size)) * bin_size, n)


def _excess_at(edges: IntArray, o: Outcomes, n: int) -> FloatArray:
    """D at each edge. Rows of a leading axis are laid end to end, so that one interpolation serves all."""
    count, right = np.atleast_2d(o.count), np.atleast_2d(o.right)
    answers, excess = np.zeros((2, len(count), o.level.size + 1))
    answers[:, 1:] = np.cumsum(count, axis=-1)
    excess[:, 1:] = np.cumsum(o.level * count - right, axis=-1)
    start = np.arange(len(count))[:, None] * (n + 1.0)
    found = np.interp((start + edges).ravel(), (start + answers).ravel(), excess.ravel())
    return np.asarray(found.reshape(*o.count.shape[:-1], edges.size))
