"""Scores of single answers and their parts, the mean gap, and whether the confidence has collapsed."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from calibration.metrics.outcomes import FloatArray, Outcomes

QUANTILES = (0.05, 0.95)
"""Ends of the span of a confidence."""


def brier(o: Outcomes) -> FloatArray:
    """Mean squared difference between confidence and correctness.

    Args:
        o: Graded answers.

    Returns:
        In [0, 1], lower is better. Perfect knowledge scores 0; a constant at the accuracy a scores
        a(1 - a). A proper score: only the true probability minimises it.

    Source: Brier 1950.

    >>> from calibration.metrics.outcomes import tally
    >>> round(float(brier(tally([0.8, 0.5], [1, 0]))), 4)  # (.2**2 + .5**2) / 2
    0.145
    """
    wrong = o.count - o.right
    return np.asarray((o.right * (1 - o.level) ** 2 + wrong * o.level**2).sum(axis=-1) / o.n)


def brier_skill(o: Outcomes) -> FloatArray:
    """Share of a constant's Brier score that the confidence removes: 1 - brier / (a (1 - a)).

    Two systems that give different answers have different accuracies a, and the Brier score of any
    honest confidence falls with a(1 - a); the skill takes that out. On the same answers it orders
    systems exactly as the Brier score does.

    Args:
        o: Graded answers.

    Returns:
        At most 1; a constant at the accuracy scores 0, worse than that is negative. nan when all
        answers are right or all are wrong.

    >>> from calibration.metrics.outcomes import tally
    >>> round(float(brier_skill(tally([0.8, 0.5], [1, 0]))), 4)  # 1 - .145 / .25
    0.42
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        skill = 1 - brier(o) / (o.accuracy * (1 - o.accuracy))
    return np.where((o.right.sum(axis=-1) % o.n) == 0, np.nan, skill)


@dataclass(frozen=True)
class BrierParts:
    """The Brier score taken apart: miscalibration - discrimination + uncertainty.

    Each is one value, or one a row of a leading axis.
    """

    miscalibration: FloatArray
    """What the best non-decreasing map would take off the score, in [0, 1]; lower is better."""
    discrimination: FloatArray
    """What the confidence behind that map gains on a constant, in [0, .25]; higher is better."""
    uncertainty: FloatArray
    """Score of a constant at the accuracy a: a(1 - a), in [0, .25]; no confidence changes it."""


def brier_parts(o: Outcomes) -> BrierParts:
    """Take the Brier score apart into calibration, ranking and the difficulty of the questions.

    The confidence is replaced by the non-decreasing function of it that has the lowest Brier score
    (isotonic regression of the marks). How far the score falls is the miscalibration; how far it then is
    below that of a constant at the accuracy is the discrimination. No bins are involved.

    The function is fitted on the very answers it is judged by, so even a calibrated confidence has some
    miscalibration and even a random one some discrimination: some thousandths on 1000 answers, hundredths
    on 100. Only their difference is free of it.

    Args:
        o: Graded answers.

    Returns:
        Parts whose signed sum is `brier(o)`. A constant has discrimination 0, perfect knowledge has
        miscalibration 0 and discrimination a(1 - a). Any strictly increasing map leaves discrimination
        and uncertainty as they were.

    Source: Dimitriadis, Gneiting and Jordan 2021, "Stable reliability diagrams for probabilistic
    classifiers" (CORP).

    >>> from calibration.metrics.outcomes import tally
    >>> parts = brier_parts(tally([0.6, 0.8, 0.9, 0.9], [0, 1, 0, 1]))  # fitted: 0, 2/3, 2/3, 2/3
    >>> round(float(parts.miscalibration), 4)  # (.36 + .04 + .81 + .01) / 4 - (1/9 + 4/9 + 1/9) / 4
    0.1383
    >>> round(float(parts.discrimination), 4)  # 1/4 - (1/9 + 4/9 + 1/9) / 4
    0.0833
    """
    accuracy = o.accuracy
    uncertainty = np.asarray(accuracy * (1 - accuracy))
    # Inside a block of the fit the marks average to the fitted value: the scores differ by a variance.
    distance = (_isotonic(o) - accuracy[..., None]) ** 2
    discrimination = np.asarray((o.count * distance).sum(axis=-1) / o.n)
    # Never negative but for rounding: the identity is one of the functions fitted over.
    miscalibration = np.maximum(brier(o) - uncertainty + discrimination, 0.0)
    return BrierParts(miscalibration, discrimination, uncertainty)


def _isotonic(o: Outcomes) -> FloatArray:
    """Isotonic fit of the accuracy at each level, shape [..., levels]; 0 where there are no answers."""
    counts, rights = o.count.reshape(-1, o.level.size), o.right.reshape(-1, o.level.size)
    fitted = np.zeros(counts.shape)
    for row, count, right in zip(fitted, counts, rights, strict=True):
        present = count > 0
        weights = count[present]
        row[present] = isotonic_regression(right[present] / weights, weights=weights).x
    return fitted.reshape(o.count.shape)


def log_loss(o: Outcomes) -> FloatArray:
    """Mean negative natural logarithm of the probability given to what happened.

    A confidence of exactly 0 or 1 that is wrong would cost infinitely much, and one such answer would
    hide all others; confidences are therefore kept one machine epsilon (2.2e-16) away from 0 and 1, as
    scikit-learn does, which caps the cost of one answer at 36.04.

    Args:
        o: Graded answers.

    Returns:
        In [0, 36.04], lower is better; a constant .5 scores ln 2.

    >>> from calibration.metrics.outcomes import tally
    >>> round(float(log_loss(tally([0.5, 0.25], [1, 1]))), 4)  # (ln 2 + ln 4) / 2
    1.0397
    """
    epsilon = np.finfo(np.float64).eps
    level = np.clip(o.level, epsilon, 1 - epsilon)
    cost = o.right * np.log(level) + (o.count - o.right) * np.log1p(-level)
    return np.asarray(-cost.sum(axis=-1) / o.n)


def overconfidence(o: Outcomes) -> FloatArray:
    """Mean confidence minus accuracy, in [-1, 1]; positive when the model believes too much.

    >>> from calibration.metrics.outcomes import tally
    >>> round(float(overconfidence(tally([0.9, 0.7], [1, 0]))), 4)
    0.3
    """
    return np.asarray(o.mean_confidence - o.accuracy)


@dataclass(frozen=True)
class Spread:
    """Whether a confidence still says different things of different answers."""

    levels: int
    """Distinct values."""
    effective_levels: float
    """exp(entropy) of the confidences rounded to .01: two equally frequent values give 2."""
    top_two_share: float
    """Share of answers at the two most frequent values, rounded to .01."""
    q05: float
    """5 % quantile: the smallest confidence that at least 5 % of the answers do not exceed."""
    q95: float
    """95 % quantile."""


def spread(o: Outcomes) -> Spread:
    """Describe how a confidence is distributed; the marks are not used.

    Values are rounded to two decimals first, so that a constant with jitter does not pass for variety.

    Args:
        o: Graded answers, without a leading axis.

    >>> from calibration.metrics.outcomes import tally
    >>> round(spread(tally([0.1, 0.9, 0.9, 0.1], [0, 1, 1, 0])).effective_levels, 6)
    2.0
    """
    present = np.flatnonzero(o.count)
    level, count = o.level[present], o.count[present]
    cells = np.bincount(np.rint(level * 100).astype(np.int64), weights=count)
    share = np.sort(cells[cells > 0])[::-1] / count.sum()
    low, high = np.quantile(level, QUANTILES, weights=count, method="inverted_cdf")
    return Spread(
        levels=int(level.size),
        effective_levels=float(np.exp(-(share * np.log(share)).sum())),
        top_two_share=float(share[:2].sum()),
        q05=float(low),
        q95=float(high),
    )
