"""How sure we are: bootstrap intervals of one system and of the difference between two.

Questions are resampled with replacement; two systems are always resampled together, question by
question, because most of what makes an answer right is the question. Every interval is a function of
its seed, and of the set of answers, not of their order.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from scipy.special import betaincinv, ndtr, ndtri

from calibration.errors import DataError
from calibration.metrics.errors import dropped_bin_error
from calibration.metrics.outcomes import FloatArray, IntArray, Outcomes, tally

RESAMPLES = 2000
"""Bootstrap resamples behind every interval."""

_CHUNK = 2**16
"""Answers resampled at a time: keeps the work in the processor's cache. No result depends on it."""

CONFIDENCE = 0.95
"""Coverage of an interval."""
POWER = 0.8
"""Probability of showing what is so that a test is commonly planned for."""


@dataclass(frozen=True)
class Graded:
    """One system's answers to some questions."""

    ids: tuple[str, ...]
    """The question of each answer, without repetition."""
    confidence: FloatArray
    """Shape [n], in [0, 1]; may be nan for a statistic that does not use it."""
    correct: FloatArray
    """Shape [n], 0 or 1."""

    def __post_init__(self) -> None:
        """Refuse columns of different lengths and marks that are neither 0 nor 1."""
        shapes = (len(self.ids),), np.shape(self.confidence), np.shape(self.correct)
        if len(set(shapes)) != 1:
            raise DataError(f"ids, confidence and correct must be equally long lists; got shapes {shapes}")
        if (odd := (self.correct != 0) & (self.correct != 1)).any():
            index = int(odd.argmax())
            raise DataError(
                f"correct must be 0 or 1 (leave unjudged answers out); got {self.correct[index]} "
                f"for question {self.ids[index]!r}"
            )

    @cached_property
    def outcomes(self) -> Outcomes:
        """All the answers, tallied."""
        return tally(self.confidence, self.correct)

    @cached_property
    def order(self) -> IntArray:
        """Positions of the answers from the least to the most confident."""
        return np.argsort(self.confidence)

    def by_id(self) -> "Graded":
        """The same answers in the order of their ids."""
        order = sorted(range(len(self.ids)), key=self.ids.__getitem__)
        return Graded(tuple(self.ids[i] for i in order), self.confidence[order], self.correct[order])


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; nan where the statistic is undefined."""

    value: float
    low: float
    high: float


Metric: TypeAlias = Callable[[Outcomes], FloatArray]
"""From outcomes with a leading axis to one value a row: brier, auroc, calibration_error, ..."""

Statistic: TypeAlias = Callable[[Graded, IntArray], FloatArray]
"""From answers [n] and the positions drawn in each resample [resamples, n] to one value a resample."""


def on_outcomes(metric: Metric) -> Statistic:
    """Make a metric of `Outcomes` (brier, auroc, calibration_error, ...) a statistic to resample."""

    def statistic(answers: Graded, picks: IntArray) -> FloatArray:
        return metric(resample(answers, picks))

    return statistic


def hle_error(answers: Graded, picks: IntArray) -> FloatArray:
    """`hle_calibration_error` of each resample; needs at least 200 answers, all with a confidence."""
    if np.isnan(answers.confidence).any():  # sorted last, it would hide in the bin that is not counted
        unread = answers.ids[int(np.isnan(answers.confidence).argmax())]
        raise DataError(f"every answer must have a confidence in [0, 1]; question {unread!r} has none")
    return dropped_bin_error(answers.confidence[picks], answers.correct[picks])


def accuracy(answers: Graded, picks: IntArray) -> FloatArray:
    """Share of right answers in each resample; confidences are not used."""
    return np.asarray(answers.correct[picks].mean(axis=-1))


def resample(answers: Graded, picks: IntArray) -> Outcomes:
    """The outcomes of each resample, on a leading axis.

    Args:
        answers: n graded answers.
        picks: Shape [resamples, k], positions in [0, n).
    """
    whole, n = answers.outcomes, answers.order.size
    place = np.empty(n, dtype=np.int64)
    place[answers.order] = np.arange(n)
    cell = place[picks] + n * np.arange(len(picks))[:, None]
    count = np.bincount(cell.ravel(), minlength=n * len(picks)).reshape(-1, n)  # of each answer
    right = count * (answers.correct[answers.order] == 1)
    if whole.level.size < n:
        first = np.cumsum(whole.count) - whole.count
        count, right = (np.add.reduceat(values, first, axis=1) for values in (count, right))
    return Outcomes(whole.level, count, right)


def exact_interval(count: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Ends of the exact interval of a share: it covers at least so often, for any number of answers.

    Raises:
        DataError: The count is no part of the total, or the total is 0.

    Source: Clopper and Pearson 1934.

    >>> round(exact_interval(0, 10)[1], 6)  # 1 - .025 ** (1 / 10)
    0.308497
    """
    if not 0 <= count <= total or total == 0:
        raise DataError(f"a share must count from 0 to its total, of at least 1; got {count} of {total}")
    tail = (1 - confidence) / 2
    low = betaincinv(count, total - count + 1, tail) if count else 0.0
    high = betaincinv(count + 1, total - count, 1 - tail) if count < total else 1.0
    return float(low), float(high)


def interval(answers: Graded, statistic: Statistic, *, seed: int, times: int = RESAMPLES) -> Estimate:
    """A statistic of one system with its 95 % interval."""
    return _bootstrap([answers], _only(statistic), lambda value: value, seed, times)[0]


def intervals(
    answers: Graded, metrics: Mapping[str, Metric], *, seed: int, times: int = RESAMPLES
) -> dict[str, Estimate]:
    """Several metrics of one system, on draws that are made and tallied once.

    Each is, to the last digit, what `interval` finds for it with the same seed.
    """
    found = _bootstrap([answers], _each(metrics), lambda value: value, seed, times)
    return dict(zip(metrics, found, strict=True))


def compare(a: Graded, b: Graded, statistic: Statistic, *, seed: int, times: int = RESAMPLES) -> Estimate:
    """Statistic of `a` minus statistic of `b`, resampling the questions they share.

    Raises:
        DataError: They did not answer the same questions.
    """
    return _bootstrap([a, b], _only(statistic), lambda of_a, of_b: of_a - of_b, seed, times)[0]


def compare_all(
    a: Graded, b: Graded, metrics: Mapping[str, Metric], *, seed: int, times: int = RESAMPLES
) -> dict[str, Estimate]:
    """Several metrics of `a` minus those of `b`, on draws that are made and tallied once.

    Each is, to the last digit, what `compare` finds for it with the same seed.

    Raises:
        DataError: They did not answer the same questions.
    """
    found = _bootstrap([a, b], _each(metrics), lambda of_a, of_b: of_a - of_b, seed, times)
    return dict(zip(metrics, found, strict=True))


def ratio_reduction(
    base: Graded, trained: Graded, statistic: Statistic, *, seed: int, times: int = RESAMPLES
) -> Estimate:
    """By which share `trained` lowers a statistic of `base`: (base - trained) / base.

    Raises:
        DataError: They did not answer the same questions.

    Returns:
        1 when nothing is left of it, 0 when nothing changed, negative when it rose; nan for a base of 0.
    """
    return _bootstrap([base, trained], _only(statistic), lambda old, new: (old - new) / old, seed, times)[0]


@dataclass(frozen=True)
class AccuracyChange:
    """What training did to accuracy, and whether a loss could have been noticed."""

    change: Estimate
    """(trained - base) / base."""
    power: float
    """Probability that these many questions show the loss to be within the margin (the interval lies
    above -margin) when nothing was lost, at the observed agreement of the two systems."""
    needed: int | None
    """Questions that would bring the power to .8; None when the base is never right."""


def noninferior(
    base: Graded, trained: Graded, *, margin: float = 0.05, seed: int, times: int = RESAMPLES
) -> AccuracyChange:
    """Relative change of accuracy on the same questions, with the power to exclude a loss of `margin`.

    `trained` is non-inferior when `change.low` >= -margin.

    The power is normal: trained - (1 - margin) base has standard error s / sqrt(n) and would have mean
    margin * accuracy, which must exceed 1.96 standard errors; see `needed_questions`.

    Raises:
        DataError: They did not answer the same questions.
    """
    change = _bootstrap([base, trained], _only(accuracy), lambda old, new: (new - old) / old, seed, times)[0]
    old, new = base.by_id().correct, trained.by_id().correct
    deviation, loss = float(np.std(new - (1 - margin) * old)), margin * float(old.mean())
    with np.errstate(invalid="ignore", divide="ignore"):
        power = ndtr(np.divide(loss * np.sqrt(old.size), deviation) - ndtri((1 + CONFIDENCE) / 2))
    needed = _questions(deviation, loss, POWER, CONFIDENCE) if loss > 0 else None
    return AccuracyChange(change, float(power), needed)


def needed_questions(
    *, margin: float, discordance: float, power: float = POWER, confidence: float = CONFIDENCE
) -> int:
    """How many questions a paired test needs to show that two systems are equally accurate but for a margin.

    Both answer the same n questions. One is right where the other is wrong in a share `discordance` of
    them, as often one way as the other, so that their difference in accuracy has mean 0 and standard
    error sqrt(discordance / n). The test succeeds when the lower end of the two-sided interval of that
    difference lies above -margin, which happens with probability `power` when

        n = (z((1 + confidence) / 2) + z(power))**2 * discordance / margin**2.

    Args:
        margin: Loss of accuracy that counts as none, a difference (.01 is one point in a hundred) and not
            a share of the accuracy: the number of questions follows from the difference alone.
        discordance: Share of the questions that exactly one of the two answers rightly, in [0, 1].
        power: Probability of success when nothing was lost, in [.5, 1).
        confidence: Coverage of the two-sided interval, in (0, 1); a one-sided test at 5 % is .9.

    Raises:
        DataError: A value out of its range.

    Source: Liu et al. 2002, "Tests for equivalence or non-inferiority for paired binary data", the
    sample-based statistic, at equal accuracies.

    >>> needed_questions(margin=0.01, discordance=0.1)  # (1.96 + .8416)**2 * .1 / .01**2
    7849
    """
    for name, value, is_good, rule in (
        ("margin", margin, 0 < margin < 1, "in (0, 1), a difference of two accuracies"),
        ("discordance", discordance, 0 <= discordance <= 1, "in [0, 1]"),
        ("power", power, 0.5 <= power < 1, "in [0.5, 1)"),
        ("confidence", confidence, 0 < confidence < 1, "in (0, 1)"),
    ):
        if not is_good:
            raise DataError(f"{name} must be {rule}; got {value}")
    return _questions(math.sqrt(discordance), margin, power, confidence)


def _questions(deviation: float, loss: float, power: float, confidence: float) -> int:
    """Number at which `loss` is as many standard errors, deviation / sqrt(n), as test and power ask for."""
    reach = ndtri((1 + confidence) / 2) + ndtri(power)
    return max(1, math.ceil((reach * deviation / loss) ** 2))


_Statistics: TypeAlias = Callable[[Graded, IntArray], FloatArray]
"""Several statistics at once: [statistics, resamples]."""


def _only(statistic: Statistic) -> _Statistics:
    return lambda answers, picks: statistic(answers, picks)[None]


def _each(metrics: Mapping[str, Metric]) -> _Statistics:
    def statistics(answers: Graded, picks: IntArray) -> FloatArray:
        o = resample(answers, picks)
        return np.stack([metric(o) for metric in metrics.values()])

    return statistics


def _bootstrap(
    systems: Sequence[Graded],
    statistics: _Statistics,
    combine: Callable[..., FloatArray],
    seed: int,
    times: int,
) -> list[Estimate]:
    """The combined statistics, each with its interval."""
    ordered = paired(systems)
    n = len(ordered[0].ids)

    def combined(picks: IntArray) -> FloatArray:
        return combine(*(statistics(system, picks) for system in ordered))

    with np.errstate(invalid="ignore", divide="ignore"):
        values = combined(np.arange(n)[None])[:, 0]
        draws = np.concatenate([combined(picks) for picks in resamples(n, times, seed)], axis=1)
    return [_estimate(float(value), drawn) for value, drawn in zip(values, draws, strict=True)]


def paired(systems: Sequence[Graded]) -> list[Graded]:
    """The systems with their answers in the same order of questions."""
    first = set(systems[0].ids)
    for system in systems:
        if odd := sorted(first.symmetric_difference(system.ids)):
            raise DataError(
                f"two systems must answer the same questions to be compared; only one answered {odd[0]!r}"
            )
        if not first or len(system.ids) != len(first):
            raise DataError(
                "answers must have different question ids; "
                f"got {len(system.ids)} answers, {len(set(system.ids))} ids"
            )
    return [system.by_id() for system in systems]


def _estimate(value: float, draws: FloatArray) -> Estimate:
    """The draws are moved so that their mean is the estimate, then cut at 2.5 and 97.5 %.

    A resample repeats questions, which adds noise inside every bin: it raises the RMS of a calibrated
    model from .035 to .049, and a plain percentile interval would not even hold the estimate. Draws in
    which the statistic is undefined (all right, all wrong) are left out.
    """
    draws = draws[np.isfinite(draws)]
    if not np.isfinite(value) or not draws.size:
        return Estimate(value, np.nan, np.nan)
    low, high = value - draws.mean() + np.quantile(draws, (0.025, 0.975))
    return Estimate(value, float(low), float(high))


def resamples(n: int, times: int, seed: int) -> Iterator[IntArray]:
    """Positions of `times` draws of n answers with replacement, some rows [resamples, n] at a time."""
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // n)
    for start in range(0, times, rows):
        yield rng.integers(0, n, size=(min(rows, times - start), n))
