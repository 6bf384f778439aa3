"""Post-hoc calibration maps: from a model's confidence to a probability, fitted on graded answers.

A map never learns on the answers it is judged by: it is fitted on the calibration split, or, where there
is none, cross-fitted. An increasing map leaves every ranking metric as it was.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field
from scipy.special import expit, logit

from calibration.errors import CalibrationError, DataError
from calibration.metrics.outcomes import FloatArray, tally
from calibration.schema import Schema

EPSILON = 1e-4
"""Confidences are kept this far from 0 and 1 before their logit is taken.

A model that writes "1.00" is not infinitely sure: at a smaller epsilon a few such answers stand so far
out that they alone decide the slope. Token probabilities beyond it become ties.
"""

FOLDS = 5


class Identity(Schema):
    """The confidence as it is."""

    kind: Literal["identity"] = "identity"

    def __call__(self, confidence: ArrayLike) -> FloatArray:
        """Return the confidences unchanged; nan stays nan."""
        return np.asarray(confidence, dtype=np.float64)


class Constant(Schema):
    """The same probability for every answer: calibrated, and of no use to a router."""

    kind: Literal["constant"] = "constant"
    value: float = Field(ge=0, le=1)
    """The probability."""

    def __call__(self, confidence: ArrayLike) -> FloatArray:
        """Replace every confidence by `value`; nan stays nan."""
        values = np.asarray(confidence, dtype=np.float64)
        return np.where(np.isnan(values), np.nan, self.value)


class Platt(Schema):
    """Logistic regression on the logit: 1 / (1 + exp(-(slope * logit(c) + offset))).

    >>> float(Platt(slope=1, offset=0)([0.25])[0])
    0.25
    """

    kind: Literal["platt"] = "platt"
    slope: float
    """1 keeps the sharpness; 0 says the same of every answer; negative turns the order round."""
    offset: float
    """In logits; negative lowers every probability."""

    def __call__(self, confidence: ArrayLike) -> FloatArray:
        """Map confidences in [0, 1] to probabilities in (0, 1); nan stays nan."""
        return np.asarray(expit(self.slope * clipped_logit(confidence) + self.offset))


CalibrationMap: TypeAlias = Annotated[Identity | Constant | Platt, Field(discriminator="kind")]


def clipped_logit(confidence: ArrayLike) -> FloatArray:
    """ln(c / (1 - c)) with c kept in [`EPSILON`, 1 - `EPSILON`]; nan stays nan."""
    values = np.asarray(confidence, dtype=np.float64)
    return np.asarray(logit(np.clip(values, EPSILON, 1 - EPSILON)))


def fit_constant(confidence: ArrayLike, correct: ArrayLike) -> Constant:
    """The accuracy, for every answer."""
    return Constant(value=float(tally(confidence, correct).accuracy))


def fit_platt(confidence: ArrayLike, correct: ArrayLike) -> Platt:
    """Fit slope and offset by maximum likelihood on Platt's smoothed targets.

    With r right and w wrong answers the targets are (r + 1) / (r + 2) and 1 / (w + 2) instead of 1 and 0,
    so that the fit is finite even where the classes are separable or one is missing. Newton's method,
    the step halved while it would raise the loss.

    Args:
        confidence: Shape [n], each in [0, 1].
        correct: Shape [n], each 0 or 1.

    Raises:
        DataError: See `tally`.
        CalibrationError: No convergence.

    Source: Platt 1999, section 2.2; Lin, Lin and Weng 2007. The input is the logit of the confidence.

    >>> round(fit_platt([0.3, 0.3, 0.3], [1, 0, 0]).slope, 12)  # one confidence tells nothing of the slope
    0.0
    """
    o = tally(confidence, correct)
    right, wrong = o.right.sum(), (o.count - o.right).sum()
    high, low = (right + 1) / (right + 2), 1 / (wrong + 2)
    target = o.right * high + (o.count - o.right) * low
    x = clipped_logit(o.level)
    centre = float((x * o.count).sum() / o.count.sum())
    design = np.stack([x - centre, np.ones_like(x)])
    slope, offset = _newton(design, o.count.astype(np.float64), target)
    return Platt(slope=slope, offset=offset - slope * centre)


def _newton(design: FloatArray, count: FloatArray, target: FloatArray) -> tuple[float, float]:
    """Weights w [2] that minimise sum(count * ln(1 + exp(z)) - target * z) with z = w @ design."""

    def loss(weights: FloatArray) -> float:
        z = weights @ design
        return float((count * np.logaddexp(0, z) - target * z).sum())

    weights = np.array([0.0, logit(target.sum() / count.sum())])
    for _ in range(100):
        p = expit(weights @ design)
        gradient = design @ (count * p - target)
        curvature = (design * (count * p * (1 - p))) @ design.T
        step = np.linalg.lstsq(curvature, gradient, rcond=1e-12)[0]
        while loss(weights - step) > loss(weights) and np.abs(step).max() > 1e-12:
            step = step / 2
        weights = weights - step
        if np.abs(step).max() < 1e-10:
            return float(weights[0]), float(weights[1])
    raise CalibrationError(f"Newton's method must converge within 100 steps; it stopped at {weights}")


def cross_fit(
    fit: Callable[[FloatArray, FloatArray], CalibrationMap],
    ids: Sequence[str],
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    folds: int = FOLDS,
) -> FloatArray:
    """Map each answer by a map fitted on the other folds; the fold follows from the question's id.

    Args:
        fit: `fit_platt`, `fit_constant`, ...
        ids: The question of each answer, [n]: one question's answers always share a fold, in every
            system and every run.
        confidence: Shape [n], each in [0, 1].
        correct: Shape [n], each 0 or 1.
        folds: Number of folds.

    Returns:
        Mapped confidences, shape [n].

    Raises:
        DataError: All questions fall into one fold (there are too few), or `tally` refuses a value.
    """
    tally(confidence, correct)
    values, marks = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    fold = np.array([_fold(question, folds) for question in ids])
    if np.unique(fold).size < 2:
        raise DataError(f"cross-fitting needs questions in two folds at least; got {len(ids)} in one")
    mapped = np.empty_like(values)
    for held_out in np.unique(fold):
        inside = fold == held_out
        mapped[inside] = fit(values[~inside], marks[~inside])(values[inside])
    return mapped


def _fold(question: str, folds: int) -> int:
    # The prefix keeps folds independent of splits, which are made by hashing the id as well.
    return int.from_bytes(hashlib.sha256(f"fold:{question}".encode()).digest()[:8]) % folds
