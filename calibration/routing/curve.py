"""What escalation buys: accuracy of both models together against the share of questions escalated."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from calibration.errors import DataError
from calibration.metrics.inference import RESAMPLES, Estimate, Graded, Statistic, interval
from calibration.metrics.outcomes import FloatArray, IntArray, tally

_TINY = 1e-12
"""Differences of accuracy below this are rounding."""


@dataclass(frozen=True)
class CostQuality:
    """Accuracy of the system as the least confident answers are escalated first.

    The exact curve: straight between the points given, because the order inside a tie is random.
    """

    share: FloatArray
    """Shares of the questions escalated, from 0 to 1; shape [points]."""
    accuracy: FloatArray
    """Accuracy of kept and escalated answers together; shape [points]."""

    @property
    def weak(self) -> float:
        """Accuracy of the small model alone."""
        return float(self.accuracy[0])

    @property
    def strong(self) -> float:
        """Accuracy of the large model alone."""
        return float(self.accuracy[-1])

    @property
    def apgr(self) -> float:
        """Average performance gap recovered: the mean over all escalation shares of what part is won.

        (area under the curve - weak) / (strong - weak), the area exact.

        Returns:
            0.5 for escalation at random, whatever the models; more for a confidence that knows which
            answers are wrong, at most what `oracle` has. nan when the large model is no better.

        Source: Ong et al. 2024, "RouteLLM", whose script integrates over ten thresholds and leaves out
        the ends.
        """
        return float(_apgr(self.share, self.accuracy))

    def call_share(self, quality: float) -> float:
        """Call-performance threshold: least share of calls that recovers a part of the gap.

        Args:
            quality: Part of the gap between the models, in [0, 1]; 0.8 is the usual one.

        Returns:
            In [0, 1], the share at which the curve first reaches the quality; escalation at random needs
            `quality` itself. nan when the large model is no better.

        Raises:
            DataError: `quality` is out of range.

        Source: Ong et al. 2024. Their script interpolates the share over accuracies, which is only right
        where accuracy never falls as more is escalated.
        """
        if not 0 <= quality <= 1:
            raise DataError(f"quality must be a part of the gap in [0, 1]; got {quality}")
        return float(_call_share(self.share, self.accuracy, quality))

    def random(self, share: ArrayLike) -> FloatArray:
        """Accuracy when `share` of the questions is escalated at random: a straight line."""
        return np.asarray(self.weak + np.asarray(share, dtype=np.float64) * (self.strong - self.weak))


def cost_quality(confidence: ArrayLike, correct: ArrayLike, *, llm: float | ArrayLike) -> CostQuality:
    """The exact curve of accuracy against escalation.

    Args:
        confidence: Shape [n], each in [0, 1], or nan for one that could not be read: escalated first.
        correct: Shape [n], each 0 or 1: whether the small model is right.
        llm: Whether the large model is right on the same questions, shape [n], each 0 or 1; or one
            accuracy in [0, 1] that it is assumed to have on all of them, which is too kind to
            escalation where the questions that are hard for one are hard for the other.

    Raises:
        DataError: The lists differ in length, are empty, or hold a value out of range.

    >>> curve = cost_quality([0.1, 0.4, 0.6, 0.9], [0, 0, 1, 1], llm=1.0)
    >>> curve.accuracy.tolist()  # the first two calls repair an error each, the others nothing
    [0.5, 0.75, 1.0, 1.0, 1.0]
    >>> curve.apgr, curve.call_share(0.5)
    (0.75, 0.25)
    """
    values, marks = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    gain = _large_marks(values, marks, llm) - marks
    share, accuracy = _curves(values, marks, gain, np.arange(values.size)[None])
    return CostQuality(share[0], accuracy[0])


def oracle(correct: ArrayLike, *, llm: float | ArrayLike) -> CostQuality:
    """The best curve that these answers allow: what gains most by escalation is escalated first."""
    marks = np.asarray(correct, dtype=np.float64)
    gain = _large_marks(np.zeros(marks.shape), marks, llm) - marks
    return cost_quality((1 - gain) / 2, marks, llm=llm)


@dataclass(frozen=True)
class CurveIntervals:
    """Figures of a curve with their 95 % intervals."""

    apgr: Estimate
    call_share_50: Estimate
    """Least share of calls that recovers half of the gap."""
    call_share_80: Estimate
    """Least share of calls that recovers four fifths of it."""


def curve_intervals(
    answers: Graded, *, llm: float | ArrayLike, seed: int, times: int = RESAMPLES
) -> CurveIntervals:
    """Bootstrap the figures of `cost_quality` over questions, both models' marks drawn together.

    An assumed accuracy stays what it is assumed to be. Resamples in which the large model is no better
    are left out.

    Args:
        answers: Graded answers of the small model; a confidence may be nan.
        llm: As for `cost_quality`, in the order of `answers`.
        seed: Seeds the resampling.
        times: Resamples.

    Raises:
        DataError: As `cost_quality`, or a question is answered twice.
    """
    large = dict(
        zip(answers.ids, _large_marks(answers.confidence, answers.correct, llm).tolist(), strict=True)
    )

    def on_curve(figure: Callable[[FloatArray, FloatArray], FloatArray]) -> Statistic:
        def statistic(drawn: Graded, picks: IntArray) -> FloatArray:
            gain = np.array([large[question] for question in drawn.ids]) - drawn.correct
            return figure(*_curves(drawn.confidence, drawn.correct, gain, picks))

        return statistic

    figures = (_apgr, lambda s, a: _call_share(s, a, 0.5), lambda s, a: _call_share(s, a, 0.8))
    return CurveIntervals(*(interval(answers, on_curve(f), seed=seed, times=times) for f in figures))


def _large_marks(confidence: FloatArray, correct: FloatArray, llm: float | ArrayLike) -> FloatArray:
    """The large model's mark of each answer, everything checked."""
    tally(np.where(np.isnan(confidence), 0.0, confidence), correct)
    large = np.asarray(llm, dtype=np.float64)
    if large.ndim == 0:
        if not 0 <= large <= 1:
            raise DataError(f"llm must be an accuracy in [0, 1] or one mark an answer; got {large}")
        return np.full(correct.shape, large)
    if large.shape != correct.shape:
        raise DataError(
            f"llm must hold one mark an answer; got shape {large.shape} for {correct.size} answers"
        )
    if (bad := (large != 0) & (large != 1)).any():
        index = int(bad.argmax())
        raise DataError(
            f"llm[{index}] must be 0 or 1 (leave questions out that could not be judged for both models); "
            f"got {large[index]}"
        )
    return large


def _curves(
    confidence: FloatArray, correct: FloatArray, gain: FloatArray, picks: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Shares and accuracies of each resample, [resamples, levels + 1] both."""
    rows, n = picks.shape
    level, cell = np.unique(np.where(np.isnan(confidence), -1.0, confidence), return_inverse=True)
    place = (cell[picks] + level.size * np.arange(rows)[:, None]).ravel()
    count, won = (
        np.bincount(place, weights, minlength=rows * level.size).reshape(rows, level.size)
        for weights in (None, gain[picks].ravel())
    )
    share, accuracy = np.zeros((2, rows, level.size + 1))
    share[:, 1:] = np.cumsum(count, axis=-1) / n
    accuracy[:, 1:] = np.cumsum(won, axis=-1) / n
    return share, accuracy + correct[picks].mean(axis=-1)[:, None]


def _gap(accuracy: FloatArray) -> FloatArray:
    gap = accuracy[..., -1] - accuracy[..., 0]
    return np.where(gap > _TINY, gap, np.nan)


def _apgr(share: FloatArray, accuracy: FloatArray) -> FloatArray:
    area = np.trapezoid(accuracy, share, axis=-1)
    return np.asarray((area - accuracy[..., 0]) / _gap(accuracy))


def _call_share(share: FloatArray, accuracy: FloatArray, quality: float) -> FloatArray:
    """Where each curve first reaches a part of its gap."""
    target = accuracy[..., :1] + quality * _gap(accuracy)[..., None]
    after = (accuracy >= target - _TINY).argmax(axis=-1)[..., None]
    before = np.maximum(after - 1, 0)
    s0, s1 = (np.take_along_axis(share, at, -1) for at in (before, after))
    a0, a1 = (np.take_along_axis(accuracy, at, -1) for at in (before, after))
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.where(after == before, 0.0, np.clip((target - a0) / (a1 - a0), 0, 1))
    return np.asarray((np.where(np.isnan(target), np.nan, s0 + part * (s1 - s0)))[..., 0])
