"""A threshold with a guarantee: what is kept is right often enough, or no threshold is named at all."""

from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, model_validator
from scipy.special import bdtr

from calibration.errors import DataError
from calibration.metrics.outcomes import tally
from calibration.routing.rules import Rule
from calibration.schema import Schema

COVERAGE = 0.05
"""Share of the answers that the first threshold tried keeps, where that is enough to decide anything."""
STEPS = 50
"""Thresholds tried at most."""


class JudgeError(Schema):
    """How often a judge is right, as an audit by people found it."""

    sensitivity: float = Field(ge=0, le=1)
    """Share of right answers that are judged right."""
    specificity: float = Field(ge=0, le=1)
    """Share of wrong answers that are judged wrong."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.sensitivity + self.specificity <= 1:
            raise ValueError(
                "sensitivity + specificity must exceed 1, or the judge does no better than guessing; "
                f"got {self.sensitivity:g} + {self.specificity:g}"
            )
        return self

    def judged(self, accuracy: float) -> float:
        """The accuracy that this judge reports, on average, where the true one is `accuracy`.

        Source: Rogan and Gladen 1978, read backwards.

        >>> round(JudgeError(sensitivity=0.9, specificity=0.95).judged(0.8), 6)  # .8 * .9 + .2 * .05
        0.73
        """
        return accuracy * self.sensitivity + (1 - accuracy) * (1 - self.specificity)


class Certificate(Schema):
    """Keep iff confidence >= `threshold`, and at least `accuracy` of what is kept is right.

    The guarantee: with probability at least 1 - `delta` over the draw of the graded answers, questions
    from the same distribution whose confidence reaches the threshold are answered rightly with
    probability `accuracy` or more. It holds for any n and any confidence, calibrated or not; `certify`
    names the one condition.

    What it is about:

    - *Independent questions from the same distribution* as the graded ones, and the same model, prompt
      and readout. After drift it says nothing.
    - *All kept questions together.* A topic among them may do worse.
    - *This one threshold, chosen from these answers once.* Certify ten systems or ten accuracies at
      `delta` and about one may fail: divide `delta` by their number.
    - *What the judge calls right*, unless `judge` is set: one of sensitivity 1 and specificity .8 reports
      an accuracy of .8 where the true one is .75. With `judge` the guarantee is about true accuracy,
      provided that those figures hold at every confidence. They are taken as known: to be safe give the
      upper end of the sensitivity's interval and the lower end of the specificity's, and count those
      intervals' chance of failing on top of `delta`.
    """

    accuracy: float = Field(gt=0, lt=1)
    """What was asked of the kept answers."""
    delta: float = Field(gt=0, lt=1)
    """Probability that the guarantee fails."""
    threshold: float = Field(ge=0, le=1)
    """On the confidence that was certified: the lowest that was kept."""
    kept: int
    """Graded answers at or above the threshold."""
    right: int
    """Those of them that were judged right."""
    n: int
    """All graded answers, those with an unreadable confidence among them."""
    p_value: float
    """Chance of so few errors among so many answers if the accuracy were just too low; at most `delta`."""
    judge: JudgeError | None = None
    """What the guarantee was corrected for."""

    @property
    def rule(self) -> Rule:
        """The threshold as a rule for `route`, on the confidence that was certified."""
        return Rule(f"certified {self.accuracy:g}", self.threshold, is_strict=False)


def certify(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    accuracy: float,
    delta: float = 0.1,
    judge: JudgeError | None = None,
) -> Certificate | None:
    """The lowest threshold whose kept answers are right often enough, with probability 1 - `delta`.

    Thresholds are tried from the most confident answers downward, each against the hypothesis that it is
    not good enough, with an exact binomial test: p = P(errors or fewer among the kept, each wrong with
    probability 1 - accuracy). The first that fails ends it, and the one before it is certified. Because
    the order of the tests is fixed before any mark is seen, every test may use all of `delta`.

    Up to `STEPS` thresholds are tried, at evenly spaced numbers of kept answers. These numbers depend on
    n, `accuracy` and `delta`, and the thresholds on confidences only; equal confidences are never split.
    The price of a fixed order: a bad start ends it at once, though a lower threshold would have passed.

    Args:
        confidence: Shape [n], each in [0, 1], or nan for one that could not be read. Those are never
            kept and count in n only.
        correct: Shape [n], each 0 or 1; answers that could not be judged are left out by the caller.
        accuracy: Least accuracy of what is kept, in (0, 1).
        delta: Probability of being wrong about it, in (0, 1).
        judge: The judge's known error rates, to certify true and not judged accuracy.

    Returns:
        None when no threshold can be certified: too few answers, or the most confident are not right
        often enough. Escalate everything then.

    Raises:
        DataError: No answers, or a value out of range.

    Source: Bauer 1991 (fixed-sequence testing); Angelopoulos et al. 2021, "Learn then Test". Two
    deviations. The first threshold keeps 5 % of the answers or as many as `first_step` says, so that a
    small sample is not lost to a test that it cannot pass. Thresholds are ranks of the data instead of a
    grid fixed beforehand: the guarantee stays exact where accuracy among the kept falls below `accuracy`
    once as the threshold goes down, as it does whenever more confident answers are no worse.

    >>> found = certify([0.9] * 20 + [0.1] * 20, [1] * 20 + [0] * 20, accuracy=0.8)
    >>> found.threshold, found.kept, round(found.p_value, 6)  # .8 ** 20
    (0.9, 20, 0.011529)
    """
    values, marks = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    is_readable = ~np.isnan(values)
    tally(np.where(is_readable, values, 0.0), marks)
    for name, value in (("accuracy", accuracy), ("delta", delta)):
        if not 0 < value < 1:
            raise DataError(f"{name} must lie between 0 and 1, the ends excluded; got {value}")
    start = first_step(values.size, accuracy, delta, judge)
    if start is None or start > is_readable.sum():
        return None
    o = tally(values[is_readable], marks[is_readable])
    level, kept, right = o.level[::-1], np.cumsum(o.count[::-1]), np.cumsum(o.right[::-1])
    wanted = np.ceil(np.linspace(start, kept[-1], STEPS))
    steps = np.unique(np.searchsorted(kept, wanted))  # a tie that begins inside a step is kept whole
    p = bdtr(kept[steps] - right[steps], kept[steps], 1 - _required(accuracy, judge))
    passed = int((np.cumsum(p > delta) == 0).sum())
    if not passed:
        return None
    last = steps[passed - 1]
    return Certificate(
        accuracy=accuracy,
        delta=delta,
        threshold=float(level[last]),
        kept=int(kept[last]),
        right=int(right[last]),
        n=values.size,
        p_value=float(p[passed - 1]),
        judge=judge,
    )


def first_step(n: int, accuracy: float, delta: float, judge: JudgeError | None = None) -> int | None:
    """How many answers the first threshold keeps.

    At least 5 % of them, and so many that the test is passed with half of the errors that `accuracy`
    allows: ten answers cannot show an accuracy of .8 even if all are right (.8 ** 10 > .1).

    Args:
        n: Graded answers.
        accuracy: Least accuracy of what is kept, in (0, 1).
        delta: Probability of being wrong about it, in (0, 1).
        judge: The judge's known error rates, as for `certify`.

    Returns:
        In [1, n]; None when n is too small for any.

    >>> first_step(1000, 0.8, 0.1), first_step(100, 0.8, 0.1), first_step(10, 0.8, 0.1)
    (50, 18, None)
    """
    allowed, kept = 1 - _required(accuracy, judge), np.arange(1, n + 1)
    errors = np.floor(kept * allowed / 2 + 1e-9)
    is_enough = (kept >= COVERAGE * n) & (bdtr(errors, kept, allowed) <= delta)
    return int(kept[is_enough.argmax()]) if is_enough.any() else None


def _required(accuracy: float, judge: JudgeError | None) -> float:
    """The judged accuracy that stands for the true one."""
    return accuracy if judge is None else judge.judged(accuracy)
