"""Post-hoc calibration maps: from a model's confidence to a probability, fitted on graded answers.

A map never learns on the answers it is judged by: it is fitted on the calibration split, or, where there
is none, cross-fitted. In sample an isotonic map scores a calibration error of 0 on any data at all.

A map repairs how large the confidence is, never which answer gets the larger one: routing is worth what
the ranking is worth, and no map improves that. A map without ties leaves every ranking metric as it was.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, model_validator
from scipy.optimize import brentq, isotonic_regression
from scipy.special import expit, logit

from calibration.errors import CalibrationError, ConfigurationError, DataError
from calibration.metrics.outcomes import FloatArray, tally
from calibration.metrics.scores import brier, overconfidence
from calibration.schema import Schema

EPSILON = 1e-4
"""Confidences are kept this far from 0 and 1 before their logit is taken.

A model that writes "1.00" is not infinitely sure: at a smaller epsilon a few such answers stand so far
out that they alone decide the slope. Token probabilities beyond it become ties.
"""

SAME_LOGIT = 1e-6
"""Logits with a standard deviation up to this are one confidence (0.3 and 3 * 0.1): they tell no slope."""

FOLDS = 5

BINS = 10
"""Bins of a histogram map."""

COLDEST, HOTTEST = 0.01, 100.0
"""Temperatures that a fit may end at. Where the likelihood rises without end, it ends at one of them."""

Probability: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class PostHocMap(Schema):
    """What every map does."""

    def __call__(self, confidence: ArrayLike) -> FloatArray:
        """Map confidences to probabilities.

        Args:
            confidence: Any shape, each in [0, 1]; nan stands for one that could not be read.

        Returns:
            The same shape, each in [0, 1]; nan stays nan.

        Raises:
            DataError: A confidence is out of range.
        """
        values = np.asarray(confidence, dtype=np.float64)
        if (bad := (values < 0) | (values > 1)).any():
            raise DataError(
                f"confidence must be in [0, 1] (divide percentages by 100) to be mapped; got {values[bad][0]}"
            )
        return np.where(np.isnan(values), np.nan, self._probability(values))

    @property
    def is_increasing(self) -> bool:
        """Whether answers keep their order: none is overtaken, and not all become equal.

        Then every threshold on the probability is a threshold on the confidence, and what was certified
        of the one holds of the other. Answers may still become tied (see each map), which changes AUROC.
        """
        lowest, highest = self([0.0, 1.0])  # every map but the histogram rises or falls throughout
        return bool(lowest < highest)

    @abstractmethod
    def _probability(self, confidence: FloatArray) -> FloatArray:
        """Probabilities for confidences in [0, 1]; what it returns for nan is not used."""


class Identity(PostHocMap):
    """The confidence as it is."""

    kind: Literal["identity"] = "identity"

    def _probability(self, confidence: FloatArray) -> FloatArray:
        return confidence


class Constant(PostHocMap):
    """The same probability for every answer: calibrated, and of no use to a router.

    It removes calibration error more thoroughly than any other map, and all ranking with it (AUROC .5):
    whatever a calibration error is worth, this is worth as much.
    """

    kind: Literal["constant"] = "constant"
    value: Probability
    """The probability."""

    def _probability(self, confidence: FloatArray) -> FloatArray:
        return np.full_like(confidence, self.value)


class Shift(PostHocMap):
    """The confidence minus a fixed amount, cut off at 0 and 1.

    Repairs: confidence that is too high, or too low, by the same amount everywhere. Cannot repair: a
    confidence whose differences are too large or too small. Ties: whatever is cut off, which then says
    "impossible" or "certain" and costs the log loss 36 where it errs. Labels: about 50, for one mean.

    >>> Shift(gap=0.5)([0.25, 0.75]).tolist()
    [0.0, 0.25]
    """

    kind: Literal["shift"] = "shift"
    gap: float = Field(ge=-1, le=1)
    """What is subtracted: mean confidence minus accuracy."""

    def _probability(self, confidence: FloatArray) -> FloatArray:
        return np.clip(confidence - self.gap, 0, 1)


class Temperature(PostHocMap):
    """The logit divided by a temperature: 1 / (1 + exp(-logit(c) / T)).

    Repairs: a confidence that is too sharp or too flat around .5, such as a classifier's with two equally
    frequent classes. Cannot repair: a model that is mostly wrong and mostly sure. No temperature moves a
    confidence across .5, so the most likely one then is infinite, and every answer gets .5. At accuracy
    .194, mean confidence .702 and AUROC .7 it brings the RMS calibration error from .51 to .33, where
    Platt reaches .04 and a constant .01: it would pass for a large improvement and is no baseline. Ties:
    only beyond `EPSILON`. Labels: about 100.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", for one logit.

    >>> round(float(Temperature(temperature=2)([0.9])[0]), 6)  # odds of 9 become odds of 3
    0.75
    """

    kind: Literal["temperature"] = "temperature"
    temperature: float = Field(ge=COLDEST, le=HOTTEST)
    """1 keeps the confidence; more moves it towards .5, less towards 0 and 1."""

    def _probability(self, confidence: FloatArray) -> FloatArray:
        return np.asarray(expit(clipped_logit(confidence) / self.temperature))


class Platt(PostHocMap):
    """Logistic regression on the logit: 1 / (1 + exp(-(slope * logit(c) + offset))).

    Repairs: level and sharpness at once. Cannot repair: a gap that comes and goes along the confidence,
    such as an accuracy that jumps. Ties: only beyond `EPSILON`. Labels: at accuracy .194, mean confidence
    .702 and AUROC .7, 100 bring the RMS calibration error from .51 to .06, and 1000 to its floor of .04;
    of fits on 30, 7 % turn the order round.

    >>> float(Platt(slope=1, offset=0)([0.25])[0])
    0.25
    """

    kind: Literal["platt"] = "platt"
    slope: float
    """1 keeps the sharpness; 0 says the same of every answer; negative turns the order round."""
    offset: float
    """In logits; negative lowers every probability."""

    def _probability(self, confidence: FloatArray) -> FloatArray:
        return np.asarray(expit(self.slope * clipped_logit(confidence) + self.offset))


class Histogram(PostHocMap):
    """The share of right answers in the confidence's bin.

    Repairs: any gap wider than a bin, rising or not. Cannot repair: what happens inside a bin, whose
    answers all become equal. Ties: everywhere; it has as many values as bins, and a chance fall from one
    bin to the next turns their order round. Labels: 1000, which is 100 a bin.

    >>> Histogram(edges=(0.5,), values=(0.1, 0.4))([0.2, 0.5, 0.9]).tolist()
    [0.1, 0.4, 0.4]
    """

    kind: Literal["histogram"] = "histogram"
    edges: tuple[Probability, ...]
    """Where one bin ends and the next begins, ascending; a confidence at an edge is in the upper bin."""
    values: tuple[Probability, ...]
    """The probability in each bin; one more than edges."""

    @model_validator(mode="after")
    def _bins_are_ordered(self) -> Self:
        if len(self.values) != len(self.edges) + 1:
            counts = f"{len(self.values)} values for {len(self.edges)} edges"
            raise ValueError(f"a histogram must have one value more than edges; got {counts}")
        _refuse_disorder("edges", self.edges)
        return self

    @property
    def is_increasing(self) -> bool:
        """Whether no bin has a lower probability than the one below it, and not all have the same."""
        return list(self.values) == sorted(self.values) and self.values[0] < self.values[-1]

    def _probability(self, confidence: FloatArray) -> FloatArray:
        return np.asarray(self.values)[np.searchsorted(self.edges, confidence, side="right")]


class Isotonic(PostHocMap):
    """The best map among all that never fall: straight lines between knots, level outside them.

    Between neighbouring knots x[i] < c < x[i + 1] the probability is y[i] + (y[i + 1] - y[i]) *
    (c - x[i]) / (x[i + 1] - x[i]), at a knot exactly its y; below the first knot it is the first y, above
    the last the last.

    Repairs: any gap that leaves the order right, of whatever shape. Cannot repair: order. Ties: all
    answers between two knots of one height, so it changes AUROC (fitted on 1000 answers at AUROC .70 it
    lowers it by .005, on 100 by .018). Its ends are often exactly 0 and 1, where one error costs the log
    loss 36. Labels: 1000 (`LABELS_NEEDED`); with fewer it draws the noise.

    Source: Zadrozny and Elkan 2002, "Transforming Classifier Scores into Accurate Multiclass Probability
    Estimates"; interpolated as by scikit-learn's IsotonicRegression.

    >>> Isotonic(x=(0.5, 1.0), y=(0.0, 0.5))([0.2, 0.75, 1.0]).tolist()
    [0.0, 0.25, 0.5]
    """

    kind: Literal["isotonic"] = "isotonic"
    x: tuple[Probability, ...] = Field(min_length=1)
    """Confidences at the knots, strictly ascending."""
    y: tuple[Probability, ...]
    """Probabilities there, never falling."""

    @model_validator(mode="after")
    def _knots_are_ordered(self) -> Self:
        if len(self.x) != len(self.y):
            raise ValueError(f"x and y must be equally long; got {len(self.x)} and {len(self.y)} knots")
        _refuse_disorder("x", self.x)
        if any(after < before for before, after in pairwise(self.y)):
            raise ValueError(f"y must never fall; got {self.y}")
        return self

    def _probability(self, confidence: FloatArray) -> FloatArray:
        x, y = np.asarray(self.x), np.asarray(self.y)
        above = y[np.minimum(np.searchsorted(x, confidence), x.size - 1)]
        # Between 0 and a denormal confidence the slope of the line is infinite, and so is what it gives.
        return np.asarray(np.minimum(np.interp(confidence, x, y), above))


CalibrationMap: TypeAlias = Annotated[
    Identity | Constant | Shift | Temperature | Platt | Histogram | Isotonic, Field(discriminator="kind")
]


def _refuse_disorder(name: str, values: Sequence[float]) -> None:
    for before, after in pairwise(values):
        if after <= before:
            raise ValueError(f"{name} must be strictly ascending; got {before} before {after}")


def clipped_logit(confidence: ArrayLike) -> FloatArray:
    """ln(c / (1 - c)) with c kept in [`EPSILON`, 1 - `EPSILON`]; nan stays nan."""
    values = np.asarray(confidence, dtype=np.float64)
    return np.asarray(logit(np.clip(values, EPSILON, 1 - EPSILON)))


def fit_identity(confidence: ArrayLike, correct: ArrayLike) -> Identity:
    """Nothing is learned; the answers are checked all the same."""
    tally(confidence, correct)
    return Identity()


def fit_constant(confidence: ArrayLike, correct: ArrayLike) -> Constant:
    """The accuracy, for every answer."""
    return Constant(value=float(tally(confidence, correct).accuracy))


def fit_shift(confidence: ArrayLike, correct: ArrayLike) -> Shift:
    """Subtract the mean gap between confidence and correctness.

    What is cut off at 0 is not subtracted, so on average the mapped confidence of an overconfident model
    stays a little above the accuracy.

    Args:
        confidence: Shape [n], each in [0, 1].
        correct: Shape [n], each 0 or 1.

    Raises:
        DataError: See `tally`.

    >>> fit_shift([0.75, 0.75], [1, 0]).gap
    0.25
    """
    return Shift(gap=float(overconfidence(tally(confidence, correct))))


def fit_temperature(confidence: ArrayLike, correct: ArrayLike) -> Temperature:
    """Fit the temperature by maximum likelihood within [`COLDEST`, `HOTTEST`].

    The log-likelihood is concave in the slope 1 / T; its derivative, the sum of x (correct - p) over the
    answers with logits x, has one zero at most. Without one between the bounds the nearer bound is the
    answer: `HOTTEST` where a still flatter confidence would be likelier (a model mostly sure and mostly
    wrong), `COLDEST` where .5 separates right from wrong. Logits that are all 0 tell nothing: 1.

    Args:
        confidence: Shape [n], each in [0, 1].
        correct: Shape [n], each 0 or 1.

    Raises:
        DataError: See `tally`.

    >>> round(fit_temperature([0.9, 0.9, 0.9, 0.9], [1, 1, 1, 0]).temperature, 6)  # says 9 to 1, is 3 to 1
    2.0
    """
    o = tally(confidence, correct)
    x = clipped_logit(o.level)
    if not x.any():
        return Temperature(temperature=1)

    def excess(slope: float) -> float:
        """Minus the derivative of the log-likelihood: rises with the slope."""
        return float((x * (o.count * expit(slope * x) - o.right)).sum())

    if excess(1 / HOTTEST) >= 0:
        return Temperature(temperature=HOTTEST)
    if excess(1 / COLDEST) <= 0:
        return Temperature(temperature=COLDEST)
    return Temperature(temperature=1 / brentq(excess, 1 / HOTTEST, 1 / COLDEST))


def fit_platt(confidence: ArrayLike, correct: ArrayLike) -> Platt:
    """Fit slope and offset by maximum likelihood on Platt's smoothed targets.

    With r right and w wrong answers the targets are (r + 1) / (r + 2) and 1 / (w + 2) instead of 1 and 0,
    so that the fit is finite even where the classes are separable or one is missing. Newton's method on
    standardised logits, the step halved while it would raise the loss.

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
    centre = (x * o.count).sum() / o.n
    spread = np.sqrt(((x - centre) ** 2 * o.count).sum() / o.n)
    scale = spread if spread > SAME_LOGIT else np.inf
    design = np.stack([(x - centre) / scale, np.ones_like(x)])
    per_scale, offset = _newton(design, o.count.astype(np.float64), target)
    slope = float(per_scale / scale)
    return Platt(slope=slope, offset=float(offset - slope * centre))


def _newton(design: FloatArray, count: FloatArray, target: FloatArray) -> tuple[float, float]:
    """Weights w [2] that minimise sum(count * ln(1 + exp(z)) - target * z) with z = w @ design."""

    def loss(weights: FloatArray) -> float:
        z = weights @ design
        return float((count * np.logaddexp(0, z) - target * z).sum())

    weights = np.array([0.0, logit(target.sum() / count.sum())])
    reached = loss(weights)
    for _ in range(100):
        p = expit(weights @ design)
        gradient = design @ (count * p - target)
        curvature = (design * (count * p * (1 - p))) @ design.T
        step = np.linalg.lstsq(curvature, gradient, rcond=1e-12)[0]
        while (lower := loss(weights - step)) > reached and np.abs(step).max() > 1e-12:
            step = step / 2
        weights, reached = weights - step, lower
        if np.abs(step).max() < 1e-10:
            return float(weights[0]), float(weights[1])
    raise CalibrationError(f"Newton's method must converge within 100 steps; it stopped at {weights}")


def fit_histogram(confidence: ArrayLike, correct: ArrayLike, *, bins: int = BINS) -> Histogram:
    """Share of right answers in bins of equally many answers.

    Equal confidences share a bin, the one their middle answer falls in; a bin that gets none vanishes.
    An edge lies half-way between the confidences on its two sides. Each bin is given one more answer, at
    the accuracy of all ((r + 1) / (n + 2) with r of n right): so no bin says 0 or 1 of its few answers,
    and the mean probability stays the accuracy.

    Args:
        confidence: Shape [n], each in [0, 1].
        correct: Shape [n], each 0 or 1.
        bins: How many bins at most.

    Raises:
        DataError: See `tally`.
        ConfigurationError: `bins` < 1.

    Source: Zadrozny and Elkan 2001, "Obtaining calibrated probability estimates from decision trees and
    naive Bayesian classifiers". Deviations: ties stay together, and the answer added to each bin.

    >>> fit_histogram([0.2, 0.4, 0.6, 0.8], [0, 0, 1, 1], bins=2)  # (0 + 1/2) / 3 and (2 + 1/2) / 3
    Histogram(kind='histogram', edges=(0.5,), values=(0.16666666666666666, 0.8333333333333334))
    """
    if bins < 1:
        raise ConfigurationError(f"bins must be at least 1; got {bins}")
    o = tally(confidence, correct)
    twice_middle = 2 * np.cumsum(o.count) - o.count  # in whole numbers, so that no rounding moves a level
    start = np.flatnonzero(np.diff(bins * twice_middle // (2 * o.n), prepend=-1))
    count, right = np.add.reduceat(o.count, start), np.add.reduceat(o.right, start)
    accuracy = (o.right.sum() + 1) / (o.n + 2)
    below, above = o.level[start[1:] - 1], o.level[start[1:]]
    edges = np.maximum((below + above) / 2, np.nextafter(below, 1))  # of two neighbouring floats: the upper
    values = (right + accuracy) / (count + 1)
    return Histogram(edges=tuple(edges.tolist()), values=tuple(values.tolist()))


def fit_isotonic(confidence: ArrayLike, correct: ArrayLike) -> Isotonic:
    """Fit the non-decreasing map with the smallest Brier score; knots are the ends of its level pieces.

    Args:
        confidence: Shape [n], each in [0, 1].
        correct: Shape [n], each 0 or 1.

    Raises:
        DataError: See `tally`.

    Source: Ayer et al. 1955 (pool adjacent violators), by `scipy.optimize.isotonic_regression`.

    >>> fit_isotonic([0.2, 0.4, 0.6, 0.8], [0, 1, 0, 1])  # .4 and .6 are out of order and share 1/2
    Isotonic(kind='isotonic', x=(0.2, 0.4, 0.6, 0.8), y=(0.0, 0.5, 0.5, 1.0))
    """
    o = tally(confidence, correct)
    fitted = isotonic_regression(o.right / o.count, weights=o.count)
    knots = np.union1d(fitted.blocks[:-1], fitted.blocks[1:] - 1)  # first and last level of each piece
    return Isotonic(x=tuple(o.level[knots].tolist()), y=tuple(fitted.x[knots].tolist()))


Fit: TypeAlias = Callable[[ArrayLike, ArrayLike], CalibrationMap]
"""From confidences [n] and marks [n] to a map."""

FITS: Mapping[str, Fit] = MappingProxyType(
    {
        "identity": fit_identity,
        "constant": fit_constant,
        "shift": fit_shift,
        "temperature": fit_temperature,
        "platt": fit_platt,
        "histogram": fit_histogram,
        "isotonic": fit_isotonic,
    }
)
"""How each kind of map is fitted."""

LABELS_NEEDED: Mapping[str, int] = MappingProxyType({"histogram": 1000, "isotonic": 1000})
"""Graded answers from which a kind of map is a candidate of `choose_fit`; other kinds always are."""


def named_fit(kind: str) -> Fit:
    """The fit of a kind of map that somebody named.

    Raises:
        ConfigurationError: There is no such kind.
    """
    if kind not in FITS:
        raise ConfigurationError(f"a map must be one of {', '.join(FITS)}; got {kind!r}")
    return FITS[kind]


def choose_fit(
    ids: Sequence[str],
    confidence: ArrayLike,
    correct: ArrayLike,
    names: Sequence[str] = ("platt", "isotonic"),
) -> str:
    """The kind of map with the lowest cross-fitted Brier score; of equals, the one named first.

    Args:
        ids: The question of each answer, [n].
        confidence: Shape [n], each in [0, 1], of a calibration split: the choice is a fit as well.
        correct: Shape [n], each 0 or 1.
        names: Kinds to choose among. Those that need more than n answers (`LABELS_NEEDED`) are passed over.

    Raises:
        ConfigurationError: A name is no kind of map.
        DataError: Every kind needs more answers, or `cross_fit` refuses the answers.

    >>> choose_fit(["a", "b", "c"], [0.9, 0.9, 0.9], [0, 0, 1], names=("identity", "constant"))
    'constant'
    """
    fits = {name: named_fit(name) for name in names}
    eligible = [name for name in fits if LABELS_NEEDED.get(name, 0) <= len(ids)]
    if not eligible:
        raise DataError(
            f"a choice among {', '.join(names) or 'no maps'} needs more graded answers; got {len(ids)}. "
            "Add 'platt', which is content with few"
        )
    scores = [
        float(brier(tally(cross_fit(fits[name], ids, confidence, correct), correct))) for name in eligible
    ]
    return eligible[int(np.argmin(scores))]


def cross_fit(
    fit: Fit,
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
        DataError: All questions fall into one fold (there are too few), `ids` has another length, or
            `tally` refuses a value.
    """
    tally(confidence, correct)
    values, marks = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if len(ids) != values.size:
        raise DataError(f"every answer must have a question id; got {len(ids)} ids, {values.size} answers")
    fold = np.array([fold_of(question, folds) for question in ids])
    if np.unique(fold).size < 2:
        raise DataError(f"cross-fitting needs questions in two folds at least; got {len(ids)} in one")
    mapped = np.empty_like(values)
    for held_out in np.unique(fold):
        inside = fold == held_out
        mapped[inside] = fit(values[~inside], marks[~inside])(values[inside])
    return mapped


def fold_of(question: str, folds: int = FOLDS) -> int:
    """The fold of a question, in [0, folds): the same in every system and run, whatever else is asked."""
    # The prefix keeps folds independent of splits, which are made by hashing the id as well.
    return int.from_bytes(hashlib.sha256(f"fold:{question}".encode()).digest()[:8]) % folds
