"""Whether a system is still what it was when its policy was made, and what to do when it isn't.

A policy stands on a map from confidence to probability, and on a confidence that ranks right answers
above wrong ones. Where only the map has gone wrong, a new one from new answers mends it; where the
ranking has, no map does. `compare` looks at a system's answers then and now, and says which it is.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from pydantic import Field
from scipy.special import ndtri

from calibration.errors import DataError
from calibration.maps import CalibrationMap
from calibration.metrics.errors import calibration_error
from calibration.metrics.inference import (
    CONFIDENCE,
    POWER,
    SHARE,
    Estimate,
    Graded,
    Range,
    bootstrap,
    exact_interval,
    paired,
    resample,
)
from calibration.metrics.outcomes import FloatArray, IntArray
from calibration.metrics.ranking import auroc
from calibration.routing.policy import RouterPolicy
from calibration.schema import Schema
from calibration.systems import READABLE, Scores, System, fitted_platt, with_platt
from calibration.verdict import ACCURACY_MARGIN, AUROC_MARGIN, ENOUGH

Decision: TypeAlias = Literal["unchanged", "cannot tell", "refit", "retrain"]
DECISIONS: tuple[Decision, ...] = ("unchanged", "cannot tell", "refit", "retrain")
"""From nothing to do to most to do."""
Figure: TypeAlias = Literal["accuracy", "mean_confidence", "gap", "rms", "auroc"]
Questions: TypeAlias = Literal["same questions", "new questions"]

RANGES: Mapping[Figure, Range] = {
    "accuracy": SHARE,
    "mean_confidence": SHARE,
    "gap": (-1.0, 1.0),
    "rms": SHARE,
    "auroc": SHARE,
}
"""The figures that are compared, with the values each can have."""


class Allowance(Schema):
    """What a re-measurement lets pass."""

    accuracy: float = Field(default=ACCURACY_MARGIN, gt=0, lt=1)
    """Relative loss of accuracy beyond which training is asked for."""
    gap: float = Field(default=0.05, gt=0, lt=1)
    """Change of the gap between mean probability and accuracy up to which the map counts as unchanged."""
    false_alarm: float = Field(default=0.05, gt=0, lt=1)
    """Probability of asking for a new map or a new training where nothing has changed."""


class Change(Schema):
    """One figure, then and now."""

    name: Figure
    before: float | None
    """None where it is undefined, as all below."""
    after: float | None
    change: float | None
    """After minus before."""
    low: float | None
    """Ends of the change's interval. The intervals of one re-measurement all hold together with probability
    1 - `false_alarm`."""
    high: float | None


class Comparison(Schema):
    """A system's answers then and now, and what follows."""

    questions: Questions
    """`same questions`: both times the same, compared one by one. `new questions`: those that were not asked
    then, with the old ones they are compared with."""
    n_before: int
    n_after: int
    """Answers compared: those with a mark and a readable confidence."""
    n_left_out: int
    """Answers of now without them; of the same questions, of then or now."""
    n_identical: int | None = None
    """Same answer with the same confidence but for rounding, of the same questions."""
    changes: tuple[Change, ...] = ()
    decision: Decision
    reason: str
    """Why, in one sentence."""
    needed: int | None = None
    """Answers of now that would show, with probability .8, that nothing changed; None where these tell, or
    where no number of them would: the old answers are too few."""

    def of(self, name: Figure) -> Change:
        """One figure."""
        return next(change for change in self.changes if change.name == name)


class Drift(Schema):
    """What a re-measurement found: the content of `drift.json`."""

    system: str
    """`base`, or the name of a method."""
    model: str
    """The model's name in the experiment."""
    readout: str
    base: str
    """The run that it was compared with."""
    decision: Decision
    """The most that any comparison asks for."""
    comparisons: tuple[Comparison, ...]
    allowed: Allowance
    policy: RouterPolicy | None = None
    """With the map fitted anew, where that suffices."""

    @property
    def reason(self) -> str:
        """The sentence that decided."""
        decided = (c for c in self.comparisons if c.decision == self.decision)
        return next(f"{c.reason} ({c.questions})" for c in decided)


@dataclass(frozen=True)
class Measurement:
    """One system's answers at one time, read in the policy's way."""

    system: System
    answers: Mapping[str, str]
    """What it answered, by question."""


def measure_drift(
    before: Measurement,
    after: Measurement,
    policy: RouterPolicy,
    *,
    allowed: Allowance,
    seed: int,
) -> tuple[Comparison, ...]:
    """Compare two measurements: on the test questions of both, and on questions that are new.

    New questions of every split but `shift` are compared with the old test questions: neither training nor
    a map has seen any of them. Fewer than `ENOUGH` are left out of it where the same questions can tell.

    Raises:
        DataError: They have no test question in common, and no question is new.
    """
    old, new = before.system.on("test"), after.system.on("test")
    asked = {question for scores in before.system.scores_by_split.values() for question in scores.ids}
    splits = [scores for name, scores in after.system.scores_by_split.items() if name != "shift"]
    fresh = _joined(splits, lambda question: question not in asked)
    shared = frozenset(old.ids) & frozenset(new.ids)
    has_fresh = len(fresh.ids) >= (ENOUGH if shared else 1)
    if not shared and not has_fresh:
        raise DataError("the data must hold test questions of the base run, or new questions; got neither")
    comparer = _Comparer(policy, after.system, allowed, seed, comparisons=bool(shared) + has_fresh)
    found = []
    if shared:
        then, now = (_joined([scores], shared.__contains__) for scores in (old, new))
        found.append(comparer.of_pairs(then, now, _identical(before, after, then, now)))
    if has_fresh:
        found.append(comparer.of_samples(old, fresh))
    return tuple(found)


def conclude(comparisons: Sequence[Comparison]) -> Decision:
    """The most that any of them asks for."""
    return max((comparison.decision for comparison in comparisons), key=DECISIONS.index)


def mended_by_map(system: System, allowed: Allowance, seed: int) -> bool:
    """Whether a map fitted anew would fit: it keeps the order, and its error is not certainly too large.

    It is fitted on the calibration split and looked at on the test split, or cross-fitted there. Its RMS
    calibration error, without what chance adds, must not lie above `allowed.gap` with its whole interval.
    """
    mapped, fitted = with_platt(system), fitted_platt(system)
    if mapped is None or (fitted is not None and not fitted.is_increasing):
        return False
    scores = mapped.on("test")
    answers = scores.where(scores.usable).by_id()
    if len(answers.ids) < ENOUGH:
        return True
    [error] = bootstrap(len(answers.ids), lambda picks: _rms(answers, picks)[None], within=SHARE, seed=seed)
    return bool(error.low <= allowed.gap)


@dataclass(frozen=True)
class _Comparer:
    """Compares answers and says what follows; one for all comparisons of a re-measurement."""

    policy: RouterPolicy
    after: System
    allowed: Allowance
    seed: int
    comparisons: int

    def of_pairs(self, then: Scores, now: Scores, n_identical: int) -> Comparison:
        """The same questions, resampled together."""
        shared = set(then.where(then.usable).ids) & set(now.where(now.usable).ids)
        old, new = (_only(scores, shared) for scores in (then, now))
        left_out = len(then.ids) - len(shared)
        return self._compared("same questions", old, new, then, now, left_out, _of_pairs, n_identical)

    def of_samples(self, then: Scores, now: Scores) -> Comparison:
        """Other questions, each set resampled by itself."""
        old, new = (scores.where(scores.usable) for scores in (then, now))
        left_out = len(now.ids) - len(new.ids)
        return self._compared("new questions", old, new, then, now, left_out, _of_samples, None)

    def _compared(
        self,
        questions: Questions,
        old: Graded,
        new: Graded,
        then: Scores,
        now: Scores,
        left_out: int,
        change: "Callable[[Graded, Graded, CalibrationMap, int], _Found]",
        n_identical: int | None,
    ) -> Comparison:
        found = _Found((), (), ())
        if min(len(old.ids), len(new.ids)) >= ENOUGH:
            found = change(old, new, self.policy.map, self.seed).stretched(
                self._reach / float(ndtri((1 + CONFIDENCE) / 2))
            )
        changes = tuple(found.changes())
        decision, reason, needed = self._decided(changes, found, old, new, then, now)
        return Comparison(
            questions=questions,
            n_before=len(old.ids),
            n_after=len(new.ids),
            n_left_out=left_out,
            n_identical=n_identical,
            changes=changes,
            decision=decision,
            reason=reason,
            needed=needed,
        )

    @property
    def _error(self) -> float:
        """How often each interval may miss, so that all hold together: figures, promise, readability."""
        return self.allowed.false_alarm / ((len(RANGES) + 2) * self.comparisons)

    @property
    def _reach(self) -> float:
        """How many standard errors each interval reaches to either side."""
        return float(ndtri(1 - self._error / 2))

    def _decided(
        self, changes: Sequence[Change], found: "_Found", old: Graded, new: Graded, then: Scores, now: Scores
    ) -> tuple[Decision, str, int | None]:
        if unread := self._unreadable(then, now):
            return "retrain", unread, None
        if not changes:
            n = min(len(old.ids), len(new.ids))
            needed = ENOUGH if len(old.ids) >= ENOUGH or old.ids == new.ids else None
            return "cannot tell", f"{n} answers are too few to compare; it takes {ENOUGH}", needed
        by_name = {change.name: change for change in changes}
        if worse := self._beyond_a_map(by_name):
            return "retrain", worse, None
        moved = _moved(by_name, self.allowed.gap) or _broken_promise(self.policy, new, 1 - self._error)
        if moved and not mended_by_map(self.after, self.allowed, self.seed):
            return "retrain", f"{moved}, and no map fitted anew would fit", None
        if moved:
            return "refit", f"{moved}, and the confidence is not shown to rank worse", None
        return self._still_fits(by_name["gap"], found, len(new.ids))

    def _unreadable(self, then: Scores, now: Scores) -> str:
        """Whether fewer confidences can be read than then, and too few, in words."""
        sides = [(int(scores.usable.sum()), int(scores.judged.sum())) for scores in (then, now)]
        if any(total < ENOUGH for _, total in sides):
            return ""
        (least, _), (_, most) = (exact_interval(*side, 1 - self._error) for side in sides)
        if most >= min(least, READABLE):
            return ""
        (was, then_all), (is_now, now_all) = sides
        return f"only {is_now} of {now_all} confidences can be read; it was {was} of {then_all}"

    def _beyond_a_map(self, changes: Mapping[Figure, Change]) -> str:
        """What no map mends, in words; empty when there is nothing of the kind."""
        ranking, right = changes["auroc"], changes["accuracy"]
        if _differs(ranking, AUROC_MARGIN) and (ranking.high or 0) < 0:
            return f"the confidence ranks worse: AUROC {_written(ranking)}"
        if right.high is None or not right.before:
            return ""
        if right.high < -self.allowed.accuracy * right.before:
            return f"accuracy fell by more than {self.allowed.accuracy:.0%} of itself: it {_written(right)}"
        return ""

    def _still_fits(self, gap: Change, found: "_Found", n: int) -> tuple[Decision, str, int | None]:
        """Unchanged when a gap that matters would have shown, else how many answers would show it."""
        if gap.low is None or gap.high is None or gap.change is None:
            return "cannot tell", "the gap between probability and accuracy is undefined", None
        if -self.allowed.gap <= gap.low and gap.high <= self.allowed.gap:
            return "unchanged", f"the map still fits: the gap to the accuracy {_written(gap)}", None
        reason = f"the gap to the accuracy may or may not have changed: {_written(gap)}"
        # An interval around a change that is not quite 0 by chance must still end within what is allowed.
        spare = self._reach / (self._reach + float(ndtri((1 + POWER) / 2)))
        return "cannot tell", reason, found.needed(self.allowed.gap * spare, n)


@dataclass(frozen=True)
class _Found:
    """Each figure then, now, and its change, in the order of `RANGES`; empty where too little was asked."""

    before: tuple[Estimate, ...]
    after: tuple[Estimate, ...]
    change: tuple[Estimate, ...]
    is_paired: bool = True

    def stretched(self, by: float) -> "_Found":
        """With every interval so many times as wide."""
        before, after, change = (
            tuple(_stretched(found, by) for found in column)
            for column in (self.before, self.after, self.change)
        )
        return _Found(before, after, change, self.is_paired)

    def changes(self) -> list[Change]:
        """A row a figure."""
        return [
            Change(
                name=name,
                before=_number(before.value),
                after=_number(after.value),
                change=_number(change.value),
                low=_number(change.low),
                high=_number(change.high),
            )
            for name, before, after, change in zip(RANGES, self.before, self.after, self.change, strict=False)
        ]

    def needed(self, half: float, n: int) -> int | None:
        """Answers of now at which the gap's interval reaches so far to either side.

        The square of that falls as 1 / n; the part that the old answers have in it stays. None where that
        part alone is too much.
        """
        place = list(RANGES).index("gap")
        old, new, both = (_half(column[place]) for column in (self.before, self.after, self.change))
        ours, theirs = (both, 0.0) if self.is_paired else (new, old)
        room = half**2 - theirs**2
        return max(ENOUGH, math.ceil(n * ours**2 / room)) if room > 0 else None


SAME = 1e-5
"""Confidences that differ by less are the same: a batch of other questions moves their last digits."""


def _figures(mapped: CalibrationMap, answers: Graded) -> Callable[[IntArray], FloatArray]:
    """Every figure of each resample, [figures, resamples]."""
    probability = Graded(answers.ids, mapped(answers.confidence), answers.correct)

    def statistics(picks: IntArray) -> FloatArray:
        right = answers.correct[picks].mean(axis=-1)
        figures: dict[Figure, FloatArray] = {
            "accuracy": right,
            "mean_confidence": answers.confidence[picks].mean(axis=-1),
            "gap": probability.confidence[picks].mean(axis=-1) - right,
            "rms": _rms(probability, picks),
            "auroc": auroc(resample(answers, picks)),
        }
        return np.stack([figures[name] for name in RANGES])

    return statistics


def _rms(answers: Graded, picks: IntArray) -> FloatArray:
    """The RMS calibration error without what chance adds, which differs with the size of a sample."""
    return calibration_error(resample(answers, picks), debias=True)


def _of_pairs(old: Graded, new: Graded, mapped: CalibrationMap, seed: int) -> _Found:
    then, now = (_figures(mapped, answers) for answers in paired([old, new]))

    def all_three(picks: IntArray) -> FloatArray:
        before, after = then(picks), now(picks)
        return np.concatenate([before, after, after - before])

    ranges, k = list(RANGES.values()), len(RANGES)
    changes = [(low - high, high - low) for low, high in ranges]
    found = bootstrap(len(old.ids), all_three, within=[*ranges, *ranges, *changes], seed=seed)
    return _Found(tuple(found[:k]), tuple(found[k : 2 * k]), tuple(found[2 * k :]))


def _of_samples(old: Graded, new: Graded, mapped: CalibrationMap, seed: int) -> _Found:
    """The intervals of two independent estimates make that of their difference (Zou and Donner 2008)."""
    before, after = (
        bootstrap(len(side.ids), _figures(mapped, side.by_id()), within=list(RANGES.values()), seed=seed + i)
        for i, side in enumerate((old, new))
    )
    change = tuple(_difference(now, then) for then, now in zip(before, after, strict=True))
    return _Found(tuple(before), tuple(after), change, is_paired=False)


def _difference(a: Estimate, b: Estimate) -> Estimate:
    value = a.value - b.value
    low = value - math.hypot(a.value - a.low, b.high - b.value)
    return Estimate(value, low, value + math.hypot(a.high - a.value, b.value - b.low))


def _stretched(found: Estimate, by: float) -> Estimate:
    low, high = (found.value + by * (end - found.value) for end in (found.low, found.high))
    return Estimate(found.value, low, high)


def _half(found: Estimate) -> float:
    return (found.high - found.low) / 2


def _moved(changes: Mapping[Figure, Change], tolerance: float) -> str:
    """How the map has come to misfit, in words; empty when it has not, or certainly by no more than allowed.

    The certain but tiny does not count: the same model in batches of other questions adds up its numbers in
    another order, and its confidences differ in their last digits.
    """
    gap, error = changes["gap"], changes["rms"]
    if _differs(gap, tolerance):
        return f"the map no longer fits: the gap to the accuracy {_written(gap)}"
    if _differs(error, tolerance) and (error.low or 0) > 0:
        return f"the map no longer fits: its RMS calibration error {_written(error)}"
    return ""


def _differs(change: Change, tolerance: float) -> bool:
    """Whether a figure has certainly changed, and not certainly by less than the tolerance."""
    if change.low is None or change.high is None:
        return False
    is_other = change.low > 0 or change.high < 0
    return is_other and not -tolerance <= change.low <= change.high <= tolerance


def _broken_promise(policy: RouterPolicy, new: Graded, confidence: float) -> str:
    """What the policy was asked for and no longer does, in words; the map may fit all the same."""
    if policy.threshold is None:
        return ""
    kept = policy.map(new.confidence) >= policy.threshold
    n_kept, right = int(kept.sum()), int(new.correct[kept].sum())
    if policy.rule.kind == "certified":
        highest = exact_interval(right, n_kept, confidence)[1] if n_kept else 1.0
        if highest < policy.rule.accuracy:
            return f"only {right / n_kept:.1%} of what it keeps is right, not {policy.rule.accuracy:.0%}"
    if policy.rule.kind == "budget":
        escalated = kept.size - n_kept
        if exact_interval(escalated, kept.size, confidence)[0] > policy.rule.escalated:
            return f"it escalates {escalated / kept.size:.1%}, more than {policy.rule.escalated:.0%}"
    return ""


def _written(change: Change) -> str:
    """A change in words, such as ".412 then, .355 now (change -.080 to -.034)"."""
    then, now = (_short(value) for value in (change.before, change.after))
    return f"was {then} and is {now} (change {_short(change.low)} to {_short(change.high)})"


def _short(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}".replace("0.", ".", 1)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _only(scores: Scores, questions: set[str]) -> Graded:
    return scores.where(np.array([question in questions for question in scores.ids], dtype=np.bool_))


def _joined(parts: Sequence[Scores], is_wanted: Callable[[str], bool]) -> Scores:
    """Some questions of several splits as one."""
    masks = [np.array([is_wanted(q) for q in part.ids], dtype=np.bool_) for part in parts]
    pairs = list(zip(parts, masks, strict=True))
    return Scores(
        ids=tuple(q for part, mask in pairs for q, is_in in zip(part.ids, mask, strict=True) if is_in),
        confidence=np.concatenate([part.confidence[mask] for part, mask in pairs]),
        correct=np.concatenate([part.correct[mask] for part, mask in pairs]),
    )


def _identical(before: Measurement, after: Measurement, then: Scores, now: Scores) -> int:
    """Questions with the same answer and the same confidence."""
    old = dict(zip(then.ids, then.confidence.tolist(), strict=True))
    return sum(
        before.answers[question] == after.answers[question]
        and (
            math.isclose(confidence, old[question], rel_tol=0, abs_tol=SAME)
            or (math.isnan(confidence) and math.isnan(old[question]))
        )
        for question, confidence in zip(now.ids, now.confidence.tolist(), strict=True)
    )
