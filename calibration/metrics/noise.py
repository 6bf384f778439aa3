"""What the judge's own errors do to accuracy and calibration, measured by an audit and taken out again.

A judge marks a right answer right with probability se (sensitivity) and a wrong one wrong with
probability sp (specificity). A person's marks of some answers, the audit, tell both. With J = se + sp - 1
(Youden's index), (mark + sp - 1) / J has the expectation of the true label, so whatever is linear in the
labels can be corrected without bias.

How to read it. A corrected number says what the true labels would have scored; its interval holds the
audit's own uncertainty, and is wider than the naive one for it. Where the corrected interval does not
hold the naive number, the judge and not the model explains the difference. Two systems under the same
judge differ in accuracy by J times their true difference: a noisy judge hides differences, and does not
make any.

It rests on one assumption: a judge errs as often whatever the confidence of the answer. Leniency towards
confident answers is not corrected; audit confident and unconfident answers apart where you suspect it.
Answers without any mark are another matter: see `bounds`.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from calibration.errors import DataError
from calibration.metrics.errors import BIN_SIZE, bin_edges, calibration_error, label_variance
from calibration.metrics.inference import (
    CONFIDENCE,
    RESAMPLES,
    Estimate,
    Graded,
    exact_interval,
    paired,
    resample,
    resamples,
)
from calibration.metrics.outcomes import BoolArray, FloatArray, Outcomes
from calibration.metrics.ranking import auroc


@dataclass(frozen=True)
class JudgeAudit:
    """A judge's marks beside the truth, as counts of audited answers.

    Without `marked_right_share` the audited answers are a simple random sample. With it they were drawn
    at random within each mark (say, half among those marked right and half among those marked wrong),
    and the counts are weighted back to the shares that the marks have among all answers. Answers that
    were picked because two judges disagree are neither, and must be left out.
    """

    right_marked_right: int
    """Truly right answers that the judge marked right."""
    right: int
    """Truly right answers."""
    wrong_marked_wrong: int
    """Truly wrong answers that the judge marked wrong."""
    wrong: int
    """Truly wrong answers."""
    marked_right_share: float | None = None
    """Share that the judge marked right of all answers from which the audited ones were drawn, in (0, 1);
    None for a simple random sample."""
    n: int | None = None
    """How many answers that share was counted over; None where it is known, as of very many."""

    def __post_init__(self) -> None:
        """Refuse counts that tell nothing of one kind of error."""
        for name, hits, total in (
            ("right", self.right_marked_right, self.right),
            ("wrong", self.wrong_marked_wrong, self.wrong),
        ):
            if not 0 <= hits <= total or total == 0:
                raise DataError(
                    f"an audit must hold at least one truly {name} answer; got {hits} of {total} "
                    f"marked {name}. Audit more answers"
                )
        share = self.marked_right_share
        if share is not None and not 0 < share < 1:
            raise DataError(f"marked_right_share must be in (0, 1); got {share}")
        if share is not None:
            self.counts(by_mark=True)

    @property
    def sensitivity(self) -> Estimate:
        """Share of truly right answers that are marked right; a judge that guesses has 1 - specificity.

        The interval never covers less often than 95 %: Clopper and Pearson's 1934 for a simple random
        sample; by mark, what follows from theirs for the two marks, at .95**.5 each.
        """
        return self._estimates()[0]

    @property
    def specificity(self) -> Estimate:
        """Share of truly wrong answers that are marked wrong, with an interval as for `sensitivity`."""
        return self._estimates()[1]

    @property
    def youden(self) -> float:
        """Sensitivity + specificity - 1: 1 for a perfect judge, 0 for one that guesses."""
        return self.sensitivity.value + self.specificity.value - 1

    def counts(self, *, by_mark: bool) -> tuple[tuple[int, int], tuple[int, int]]:
        """Two independent samples, each as (hits, misses).

        Args:
            by_mark: Truly right and truly wrong answers among those marked right, then among those
                marked wrong. Else hits and misses of the judge among the truly right, then among the
                truly wrong.

        Raises:
            DataError: By mark, and one of the marks was not audited.
        """
        lost, passed = self.right - self.right_marked_right, self.wrong - self.wrong_marked_wrong
        if not by_mark:
            return (self.right_marked_right, lost), (self.wrong_marked_wrong, passed)
        marked_right, marked_wrong = (self.right_marked_right, passed), (lost, self.wrong_marked_wrong)
        if not sum(marked_right) or not sum(marked_wrong):
            raise DataError(
                "an audit by mark must hold answers of both marks; got "
                f"{sum(marked_right)} marked right and {sum(marked_wrong)} marked wrong. Audit more answers"
            )
        return marked_right, marked_wrong

    def worst(self, alpha: float) -> tuple[float, float]:
        """The most lenient judge that the audit allows: highest sensitivity, lowest specificity.

        Args:
            alpha: Probability that the judge is more lenient than that in one of the two, at most. Every
                count it rests on gets an equal part: two ends of Clopper and Pearson's, and by mark both
                ends of two intervals and the upper one of the share.

        >>> [round(rate, 3) for rate in JudgeAudit(45, 50, 48, 50).worst(0.05)]  # .9 and .96 as they are
        [0.967, 0.863]
        """
        first, second = self.counts(by_mark=self.marked_right_share is not None)
        share = self.marked_right_share
        if share is None:
            return _share(first, 1 - alpha)[1], _share(second, 1 - alpha)[0]
        part = alpha / (2 if self.n is None else 3)
        kept, lost = _share(first, 1 - part), _share(second, 1 - part)
        if self.n is not None:
            share = exact_interval(round(share * self.n), self.n, 1 - 2 * part)[1]
        # More answers marked right mean that more of the right are, and fewer of the wrong marked wrong.
        return float(judge_rates(kept[1], lost[0], share)[0]), float(judge_rates(kept[0], lost[1], share)[1])

    def _estimates(self) -> tuple[Estimate, Estimate]:
        share = self.marked_right_share
        first, second = self.counts(by_mark=share is not None)
        values = first[0] / sum(first), second[0] / sum(second)
        if share is None:
            return Estimate(values[0], *_share(first)), Estimate(values[1], *_share(second))
        kept, lost = (_share(counts, CONFIDENCE**0.5) for counts in (first, second))
        # Both rates rise with what a mark "right" is worth, and fall with what a mark "wrong" hides.
        corners = values, (kept[0], lost[1]), (kept[1], lost[0])
        found = np.array([judge_rates(*corner, share) for corner in corners])
        return Estimate(*found[:, 0].tolist()), Estimate(*found[:, 1].tolist())


def audit_judge(marks: ArrayLike, truth: ArrayLike) -> JudgeAudit:
    """Count a judge's marks against a person's.

    Give the marks of all answers, and the truth of those that were audited: they may then have been
    drawn at random, or at random within each mark. Where the truth of every answer is given, the
    answers must be a simple random sample of those that the judge will mark.

    Args:
        marks: Shape [n], 1 where the judge marked the answer right, 0 where wrong.
        truth: Shape [n], 1 where it is right, 0 where wrong, nan where nobody looked.

    Raises:
        DataError: Not two equally long lists of such values, no audited answer that is truly right or
            none that is truly wrong, or none of one mark while some answers were not audited.

    >>> audit = audit_judge([1, 1, 0, 0, 0, 0], [1, 0, 1, 0, float("nan"), float("nan")])
    >>> audit.right_marked_right, audit.right, round(audit.marked_right_share, 3)
    (1, 2, 0.333)
    >>> round(audit.sensitivity.value, 3)  # .333 * .5 of all caught, .667 * .5 of all missed
    0.333
    """
    marked, is_right = (np.asarray(values, dtype=np.float64) for values in (marks, truth))
    if marked.ndim != 1 or marked.shape != is_right.shape:
        raise DataError(
            f"marks and truth must be two equally long lists; got shapes {marked.shape} and {is_right.shape}"
        )
    audited = ~np.isnan(is_right)
    _refuse("marks", marked, ~np.isin(marked, (0, 1)), "0 or 1 (leave unjudged answers out)")
    _refuse("truth", is_right, audited & ~np.isin(is_right, (0, 1)), "0, 1 or nan (not audited)")
    hits = audited & (marked == is_right)
    return JudgeAudit(
        right_marked_right=int((hits & (is_right == 1)).sum()),
        right=int((is_right == 1).sum()),
        wrong_marked_wrong=int((hits & (is_right == 0)).sum()),
        wrong=int((is_right == 0).sum()),
        marked_right_share=None if audited.all() else float(marked.mean()),
        n=None if audited.all() else marked.size,
    )


def judge_rates(
    right_if_marked_right: FloatArray | float,
    right_if_marked_wrong: FloatArray | float,
    share: FloatArray | float,
) -> tuple[FloatArray, FloatArray]:
    """Sensitivity and specificity from what the marks are worth, by Bayes' rule.

    Args:
        right_if_marked_right: Probability that an answer marked right is right.
        right_if_marked_wrong: Probability that an answer marked wrong is right.
        share: Share of the answers that are marked right.

    Returns:
        In [0, 1]; nan where no answer is right, or none is wrong.

    >>> [round(float(x), 3) for x in judge_rates(0.8, 0.05, 0.25)]  # .2 / .2375 and .7125 / .7625
    [0.842, 0.934]
    """
    marked_right, marked_wrong = np.asarray(share), 1 - np.asarray(share)
    caught, missed = marked_right * right_if_marked_right, marked_wrong * right_if_marked_wrong
    passed, refused = marked_right - caught, marked_wrong - missed
    with np.errstate(invalid="ignore"):
        return caught / (caught + missed), refused / (refused + passed)


@dataclass(frozen=True)
class Corrected:
    """What the true labels would have scored, each with its interval."""

    accuracy: Estimate
    """Rogan and Gladen's estimate."""
    rms: Estimate
    """`calibration_error` of norm 2, with its floor: what the true labels score, chance included."""
    brier: Estimate
    """Mean squared difference between confidence and true label."""
    auroc: Estimate
    """Ranking of the truly right above the truly wrong; nan when the corrected accuracy is 0 or 1."""


def corrected(
    answers: Graded,
    audit: JudgeAudit,
    *,
    seed: int,
    times: int = RESAMPLES,
    is_drawn_from_answers: bool = False,
) -> Corrected:
    """Accuracy, calibration error, Brier score and AUROC as the true labels would have given them.

    The intervals come from resampled questions, each resample with its own sensitivity and specificity
    from the audit's posterior (Jeffreys' Beta for each of its two samples). What resampling alone adds to
    a value on average is taken off, as in `interval`. A draw in which the judge is no better than chance
    allows any value and counts as the worst at either end, so a poor audit gives [0, 1].

    Args:
        answers: Marked by the judge.
        audit: What is known of the judge, from other answers.
        seed: Seeds the draws.
        times: Resamples.
        is_drawn_from_answers: The audited answers are some of `answers`, drawn at random or at random
            within each mark. What a mark is worth is then taken from the audit, and how often it is given
            from `answers`; without this the intervals would be too wide.

    Returns:
        Values and intervals cut to [0, 1]; with a perfect judge the values of the marks themselves.

    Raises:
        DataError: By its audit, the judge is not better than chance; or a confidence is missing.

    Source: Rogan and Gladen 1978, "Estimating prevalence from the results of a screening test"; the
    AUROC as in Menon et al. 2015, "Learning from Corrupted Binary Labels via Class-Probability
    Estimation"; that intervals must hold the audit's uncertainty, Lee et al. 2025, "How to Correctly
    Report LLM-as-a-Judge Evaluations".

    >>> marks = np.array([1.0] * 3 + [0.0] * 7)
    >>> marked = Graded(tuple("abcdefghij"), np.full(10, 0.3), marks)
    >>> round(corrected(marked, JudgeAudit(8, 10, 9, 10), seed=0).accuracy.value, 4)  # (.3 - .1) / .7
    0.2857
    """
    ordered = paired([answers])[0]
    n, noise = len(ordered.ids), _noise_weights(ordered.outcomes)
    by_mark = is_drawn_from_answers or audit.marked_right_share is not None
    counts = audit.counts(by_mark=by_mark)

    def values(o: Outcomes, known: FloatArray) -> FloatArray:
        share = o.accuracy if is_drawn_from_answers else audit.marked_right_share
        rates = known if share is None else judge_rates(known[0], known[1], share)
        return _true_values(o, rates[0], rates[1], noise)

    known = np.array([[hits / (hits + misses)] for hits, misses in counts])
    value = values(resample(ordered, np.arange(n)[None]), known)[:, 0]
    if np.isnan(value[0]):
        raise DataError(
            "a judge must be better than chance (sensitivity + specificity > 1) to be corrected for; got "
            f"{audit.sensitivity.value:.3f} + {audit.specificity.value:.3f}. Take another judge"
        )
    rng = np.random.default_rng((seed, 1))
    drawn = np.stack([rng.beta(hits + 0.5, misses + 0.5, times) for hits, misses in counts])
    fixed, moved = np.empty((2, value.size, times))
    done = 0
    for picks in resamples(n, times, seed):
        o, rows = resample(ordered, picks), slice(done, done + len(picks))
        fixed[:, rows], moved[:, rows] = values(o, known), values(o, drawn[:, rows])
        done = rows.stop
    accuracy, square, brier, roc = map(_estimate, value, fixed, moved)
    rms = Estimate(*(math.sqrt(x) for x in (square.value, square.low, square.high)))
    return Corrected(accuracy, rms, brier, roc)


def bounds(correct: ArrayLike) -> tuple[float, float]:
    """Accuracy if every unjudged answer were wrong, and if every one were right.

    Nothing is assumed about why answers could not be judged.

    Args:
        correct: Shape [n], 1, 0 or nan for an unjudged answer.

    Raises:
        DataError: No answers, or a value that is none of these.

    Source: Manski 1989, "Anatomy of the Selection Problem".

    >>> bounds([1, 0, 0, float("nan")])
    (0.25, 0.5)
    """
    marks = np.asarray(correct, dtype=np.float64)
    if marks.ndim != 1 or not marks.size:
        raise DataError(f"correct must be a non-empty list; got shape {marks.shape}")
    unjudged = np.isnan(marks)
    _refuse("correct", marks, ~(unjudged | np.isin(marks, (0, 1))), "0, 1 or nan (unjudged)")
    right = int((marks == 1).sum())
    return right / marks.size, (right + int(unjudged.sum())) / marks.size


def _true_values(
    o: Outcomes, sensitivity: FloatArray, specificity: FloatArray, noise: tuple[float, float]
) -> FloatArray:
    """Accuracy, mean square gap, Brier score and AUROC, [4, resamples]; nan unless J > 0.

    With y' = (mark + specificity - 1) / J in place of the label y, and p the share marked right:

    - accuracy a: the mean of y'.
    - Gaps: confidence - y' is 1 / J times 1 - specificity + J confidence (how often an answer of that
      confidence should be marked right) minus the mark. Its square has the expectation of the true one
      plus the variance that the judge adds to y', y sensitivity (1 - sensitivity) + (1 - y) specificity
      (1 - specificity) over J**2, which is linear in y and is taken off.
    - Brier score: (c - y)**2 = c**2 + (1 - 2 c) y is linear in y.
    - AUROC: say a share v of those marked right is right, and w of those marked wrong. A pair of one each
      is in true order with probability v (1 - w), turned round with (1 - v) w, and says nothing else. So
      the marks' AUROC - 1/2 is v - w = J a (1 - a) / (p (1 - p)) times the true one.
    """
    usable = sensitivity + specificity > 1
    youden, passed = np.where(usable, sensitivity + specificity - 1, 1.0), 1 - specificity
    p = o.accuracy
    a = (p - passed) / youden
    expected = passed[:, None] + youden[:, None] * o.level
    gaps = calibration_error(Outcomes(expected, o.count, o.right)) / youden
    every, marked_right = noise
    right = (marked_right - passed * every) / youden
    of_right, of_wrong = sensitivity * (1 - sensitivity), specificity * passed
    added = (of_right * right + of_wrong * (every - right)) / youden**2
    right = (o.right - passed[:, None] * o.count) / youden[:, None]
    brier = (right * (1 - o.level) ** 2 + (o.count - right) * o.level**2).sum(axis=-1) / o.n
    with np.errstate(invalid="ignore", divide="ignore"):
        roc = (auroc(o) - 0.5) * (p * (1 - p) / (youden * a * (1 - a))) + 0.5
    roc = np.where((a > 0) & (a < 1), roc, np.nan)
    return np.where(usable, np.stack([a, gaps**2 - added, brier, roc]), np.nan)


def _noise_weights(o: Outcomes) -> tuple[float, float]:
    """Mean square gap that errors of variance 1 add, in every label and in those marked right alone."""
    edges = bin_edges(int(o.n), BIN_SIZE)
    shares = np.ones_like(o.level), o.right / o.count
    every, right = (label_variance(share, edges, o) / np.diff(edges) for share in shares)
    return float(every.sum() / o.n), float(right.sum() / o.n)


def _estimate(value: float, fixed: FloatArray, moved: FloatArray) -> Estimate:
    """Cut to [0, 1].

    Args:
        value: What was found.
        fixed: Resampled questions under the judge as audited; how far their mean is from `value` is what
            resampling itself adds.
        moved: The same under judges that the audit allows; nan is a judge no better than chance.
    """
    if np.isnan(value):
        return Estimate(np.nan, np.nan, np.nan)
    known = fixed[np.isfinite(fixed)]
    moved = moved + value - (known.mean() if known.size else value)
    low = np.quantile(np.where(np.isnan(moved), 0.0, moved), 0.025)
    high = np.quantile(np.where(np.isnan(moved), 1.0, moved), 0.975)
    cut = np.clip((value, min(low, value), max(high, value)), 0, 1)
    return Estimate(*cut.tolist())


def _share(counts: tuple[int, int], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact interval of hits among hits and misses."""
    return exact_interval(counts[0], sum(counts), confidence)


def _refuse(name: str, values: FloatArray, bad: BoolArray, rule: str) -> None:
    if bad.any():
        index = int(bad.argmax())
        raise DataError(f"{name}[{index}] must be {rule}; got {values[index]}")
