"""Calibration error over bins of answers, its published form, and the floor that chance sets."""

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from calibration.errors import DataError
from calibration.metrics.outcomes import FloatArray, IntArray, Outcomes, tally

Norm: TypeAlias = Literal[1, 2, "max"]

BIN_SIZE = 100
"""Answers per bin in HLE's metric."""


def calibration_error(
    o: Outcomes, *, norm: Norm = 2, bin_size: int = BIN_SIZE, debias: bool = False
) -> FloatArray:
    """Gap between confidence and accuracy over bins of equally many answers.

    Answers are ordered by confidence and cut every `bin_size`; the remainder joins the last bin, which
    counts like any other. Equal confidences share their mean correctness, so the order of the input
    never matters. With D(k) = sum of (confidence - correct) over the k lowest answers, a bin's gap is
    the increase of D over it divided by its size, and D is linear inside a tie.

    The square of a gap contains the chance in the bin's own labels, about p(1 - p) / size for p right
    among them. `debias` takes p(1 - p) / (labels - 1) off each square, with labels = size. In a tie of m
    answers all m labels speak for each of them, so k of them in a bin of s carry more: labels =
    s**2 / (sum over the bin's ties of k**2 / m), which is s when nothing is tied.

    Args:
        o: Graded answers; the rows of a leading axis must hold equally many.
        norm: 1 averages the gaps (L1), 2 takes their root mean square (RMS), "max" the largest.
        bin_size: Answers per bin; fewer answers than this form one bin.
        debias: Take off what chance alone adds; for norm 2 only.

    Returns:
        In [0, 1], one value for each row of a leading axis. |overconfidence| <= L1 <= RMS <= max. A
        perfectly calibrated model scores about `calibration_floor(o)`, not 0; debiased, near 0 and in
        about half of all samples 0 itself, since a negative square counts as 0.

    Raises:
        DataError: A row with another number of answers, `bin_size` below 1, an unknown norm, `debias`
            with another norm than 2, or with a bin that holds one label only.

    Source: Hendrycks et al. 2019 (hendrycks/outlier-exposure@e6ede98), which leaves out the last bin and
    lets the order of the input decide inside ties; see `hle_calibration_error`. Debiasing: Kumar, Liang
    and Ma 2019, "Verified Uncertainty Calibration", whose bins hold no ties.

    >>> o = tally([0.2, 0.6, 0.9], [0, 1, 1])
    >>> round(float(calibration_error(o, bin_size=1)), 4)  # sqrt((.2**2 + .4**2 + .1**2) / 3)
    0.2646
    >>> o = tally([0.8, 0.9, 0.8, 0.9], [0, 1, 0, 1])
    >>> round(float(calibration_error(o, debias=True)), 4)  # sqrt(.35**2 - .5 * .5 / (4 - 1))
    0.1979
    """
    n = _answers(o)
    edges = bin_edges(n, bin_size)
    sizes = np.diff(edges)
    excess = _in_bins(o.level * o.count - o.right, edges, o)
    if not debias:
        return _combined(excess, sizes, n, norm)
    if norm != 2:
        raise DataError(f"only the error of norm 2 can be debiased; got norm {norm!r}. Leave debias out")
    labels = sizes**2 / label_variance(np.ones_like(o.level), edges, o)
    if (labels <= 1).any():
        raise DataError(
            "a debiased error needs at least two labels in every bin; "
            f"got a bin of one answer (n = {n}, bin_size = {bin_size}). Use larger bins, or leave debias out"
        )
    share = _in_bins(o.right, edges, o) / sizes
    squares = (excess / sizes) ** 2 - share * (1 - share) / (labels - 1)
    return np.asarray(np.sqrt(np.maximum((squares * sizes).sum(axis=-1) / n, 0)))


def width_error(o: Outcomes, *, norm: Norm = 1, bins: int = 15) -> FloatArray:
    """Gap between confidence and accuracy over bins of equal width: the classic ECE.

    Bin i of b holds the confidences in (i / b, (i + 1) / b], the first one 0 as well. Empty bins count
    for nothing. Few answers in a bin make its gap large by chance, and how few depends on the model, so
    compare systems by `calibration_error`; this one is for comparison with published ECEs.

    scikit-learn's `calibration_curve` and uncertainty-calibration close bins on the right as here;
    netcal and torchmetrics close them on the left, which differs for confidences on an edge (.2 with 15
    bins). torchmetrics moreover gives confidences of exactly 1 a bin of their own, and mapie those of 0,
    with one interval fewer than asked for.

    Args:
        o: Graded answers.
        norm: 1 averages the gaps (ECE), 2 takes their root mean square, "max" the largest (MCE).
        bins: Number of bins.

    Returns:
        In [0, 1], one value for each row of a leading axis. |overconfidence| <= L1 <= RMS <= max. A
        perfectly calibrated model scores more than 0 by chance; a constant at the accuracy scores 0.

    Raises:
        DataError: `bins` below 1 or an unknown norm.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks"; Naeini et al. 2015.

    >>> o = tally([0.2, 0.3, 0.9], [0, 1, 1])
    >>> round(float(width_error(o, bins=2)), 4)  # (|.2 + .3 - 1| + |.9 - 1|) / 3
    0.2
    """
    if bins < 1:
        raise DataError(f"bins must be at least 1; got {bins}")
    # i / b is the float that the decimal text of an edge means; multiples of 1 / b may miss it.
    last = np.searchsorted(o.level, np.arange(bins + 1) / bins, side="right")
    last[0] = 0
    excess, sizes = (
        np.diff(_cumulative(values).take(last, axis=-1)) for values in (o.level * o.count - o.right, o.count)
    )
    return _combined(excess, sizes, o.n, norm)


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
    excess = excess.reshape(*excess.shape[:-1], counted, bin_size).sum(axis=-1)
    return _combined(excess, np.full(counted, bin_size), n, norm)


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
    edges = bin_edges(n, bin_size)
    variance = label_variance(o.level * (1 - o.level), edges, o)
    return float(np.sqrt((variance / np.diff(edges)).sum() / n))


def _answers(o: Outcomes) -> int:
    n = np.ravel(o.n)
    if (n != n[0]).any():
        raise DataError(f"every resample must hold equally many answers; got {n.min()} to {n.max()}")
    return int(n[0])


def bin_edges(n: int, bin_size: int) -> IntArray:
    """0, bin_size, 2 * bin_size, ..., n: the last bin takes the remainder."""
    if bin_size < 1:
        raise DataError(f"bin_size must be at least 1; got {bin_size}")
    return np.append(np.arange(max(1, n // bin_size)) * bin_size, n)


def _combined(excess: FloatArray, sizes: FloatArray | IntArray, n: int | IntArray, norm: Norm) -> FloatArray:
    """The norm of the gaps excess / sizes over the last axis, weighted by sizes / n."""
    if norm == 1:
        return np.asarray(np.abs(excess).sum(axis=-1) / n)
    sizes = np.maximum(sizes, 1)  # an empty bin has no excess either
    if norm == 2:
        return np.asarray(np.sqrt((excess**2 / sizes).sum(axis=-1) / n))
    if norm == "max":
        return np.asarray(np.abs(excess / sizes).max(axis=-1))
    raise DataError(f'norm must be 1, 2 or "max"; got {norm!r}')


def _cumulative(values: FloatArray | IntArray) -> FloatArray:
    """Sums of the first 0, 1, 2, ... values of the last axis."""
    sums = np.zeros((*values.shape[:-1], values.shape[-1] + 1))
    sums[..., 1:] = np.cumsum(values, axis=-1)
    return sums


def _in_bins(values: FloatArray | IntArray, edges: IntArray, o: Outcomes) -> FloatArray:
    """Sum of the levels' values in each bin, [..., bins]; a tie across an edge is split in proportion.

    Rows of a leading axis are laid end to end, so that one interpolation serves all.
    """
    answers, sums = np.atleast_2d(_cumulative(o.count)), np.atleast_2d(_cumulative(values))
    start = np.arange(len(sums))[:, None] * (edges[-1] + 1.0)
    found = np.interp((start + edges).ravel(), (start + answers).ravel(), sums.ravel())
    return np.asarray(np.diff(found.reshape(*o.count.shape[:-1], edges.size)))


def label_variance(single: FloatArray, edges: IntArray, o: Outcomes) -> FloatArray:
    """Variance of the number of right answers in each bin, [..., bins], when ties share their labels.

    k of a tie's m answers take k / m of its right ones into the bin, which adds k**2 / m times the
    variance `single` [levels] of one label. Rows of a leading axis are laid end to end.
    """
    count = np.ravel(o.count)
    start = np.arange(count.size // o.level.size)[:, None] * edges[-1]
    levels, bins = np.cumsum(count), np.ravel(start + edges[1:])
    # Ends of pieces that lie in one level and one bin. A stable sort merges two sorted runs in one pass.
    pieces = np.sort(np.concatenate([levels, bins]), kind="stable")
    level, length = np.searchsorted(levels, pieces), np.diff(pieces, prepend=0)
    variance = length**2 * single[level % o.level.size] / np.maximum(count[level], 1)
    summed = np.bincount(np.searchsorted(bins, pieces), weights=variance)
    return np.asarray(summed.reshape(*o.count.shape[:-1], edges.size - 1))
