"""From graded answers to a router policy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType

import numpy as np

from calibration.errors import DataError
from calibration.maps import CalibrationMap, Fit, Identity, fit_platt, fold_of
from calibration.metrics.inference import Graded
from calibration.metrics.outcomes import BoolArray, FloatArray, tally
from calibration.routing.certificate import JudgeError
from calibration.routing.goals import Choice, Evidence, Goal
from calibration.routing.policy import Digests, Feasibility, GroupFigures, PolicyReadout, RouterPolicy
from calibration.routing.rates import figures, rate
from calibration.routing.rules import Prices
from calibration.systems import ENOUGH_TO_FIT

LIFETIME = timedelta(days=90)
"""How long a policy is followed unless it says otherwise: models, prompts and questions change."""

NO_GROUPS: Mapping[str, Sequence[str]] = MappingProxyType({})


def build_policy(
    fit: Graded,
    *,
    rule: Goal,
    readout: PolicyReadout,
    prices: Prices,
    created: datetime,
    test: Graded | None = None,
    threshold_on: Graded | None = None,
    groups: Mapping[str, Sequence[str]] = NO_GROUPS,
    fit_map: Fit = fit_platt,
    judge: JudgeError | None = None,
    span_rule: str | None = None,
    digests: Digests | None = None,
    lifetime: timedelta = LIFETIME,
) -> RouterPolicy:
    """Fit a map, choose a threshold, and measure what the two do to answers they have not seen.

    The certificate stands though the map was fitted on the same answers: what is certified is a
    threshold on the confidence, and which answers that keeps depends on the order of the confidences
    alone. An increasing map carries the threshold over without changing the order. A map that does not
    increase makes the policy infeasible.

    Args:
        fit: The answers that the map is fitted on; a confidence may be nan.
        rule: What is asked for.
        readout: How the confidences were read.
        prices: What answers cost and are worth.
        created: When, with its time zone.
        test: Answers to other questions, that the expected figures are measured on. Unset, they are
            cross-fitted: map and threshold are made anew from four fifths of `fit` for each fifth.
        threshold_on: Answers that the threshold is chosen on; unset, `fit`. Given, `test` must be too.
        groups: Kinds of the measured answers (`test`, or `fit` without it), one label an answer, by what
            they are sorted by: {"topic": ["Art", "Sports", ...]}.
        fit_map: How the map is fitted.
        judge: The judge's known error rates; a certificate is corrected for them. Probabilities, prices
            and figures remain about what is judged right.
        span_rule: Which tokens are the answer's own, where tokens are read.
        digests: What the answers were made from.
        lifetime: How long the policy is to be followed.

    Raises:
        DataError: No answers, a value out of range, test questions that are no others, labels that are
            not one an answer, or `threshold_on` without `test`.
    """
    _check(fit, test, threshold_on)
    maker = _Maker(rule, prices, judge, fit_map)
    fitted, choice = maker.make(fit, threshold_on or fit)
    measured = fit if test is None else test
    kept = maker.cross_fitted(fit) if test is None and not choice.problem else _kept(fitted, choice, measured)
    return RouterPolicy(
        created=created,
        expires=created + lifetime,
        readout=readout,
        span_rule=span_rule,
        map=fitted,
        rule=rule,
        threshold=choice.threshold,
        feasibility=Feasibility(is_feasible=not choice.problem, reason=choice.problem),
        certificate=choice.certificate,
        measured_on="cross-fit" if test is None else "test",
        expected=figures(kept, measured.correct, prices),
        groups=tuple(_group_figures(groups, kept, measured.correct)),
        prices=prices,
        n=len(fit.ids),
        base_rate=float(fit.correct.mean()),
        judge=judge,
        digests=digests or Digests(),
    )


@dataclass(frozen=True)
class _Maker:
    """Makes map and threshold from answers, whichever they are."""

    rule: Goal
    prices: Prices
    judge: JudgeError | None
    fit_map: Fit

    def make(self, fit: Graded, threshold_on: Graded) -> tuple[CalibrationMap, Choice]:
        usable = ~np.isnan(fit.confidence)
        if usable.sum() < ENOUGH_TO_FIT:
            problem = f"a map needs {ENOUGH_TO_FIT} graded answers with a confidence, and has {usable.sum()}"
            return Identity(), Choice(problem=problem)
        fitted = self.fit_map(fit.confidence[usable], fit.correct[usable])
        if not fitted.is_increasing:
            problem = "the surer the model is, the less often it is right: the map does not increase"
            return fitted, Choice(problem=problem)
        evidence = Evidence(
            confidence=threshold_on.confidence,
            probability=fitted(threshold_on.confidence),
            correct=threshold_on.correct,
            prices=self.prices,
            judge=self.judge,
        )
        return fitted, self.rule.choose(evidence)

    def cross_fitted(self, answers: Graded) -> BoolArray:
        """Which answers are kept when others decide; none of those whose others reach no threshold."""
        kept = np.zeros(len(answers.ids), dtype=np.bool_)
        fold = np.array([fold_of(question) for question in answers.ids])
        for held_out in np.unique(fold):
            inside = fold == held_out
            others = _some(answers, ~inside)
            kept[inside] = _kept(*self.make(others, others), _some(answers, inside))
        return kept


def _kept(fitted: CalibrationMap, choice: Choice, answers: Graded) -> BoolArray:
    if choice.threshold is None:
        return np.zeros(len(answers.ids), dtype=np.bool_)
    return np.asarray(fitted(answers.confidence) >= choice.threshold)


def _some(answers: Graded, mask: BoolArray) -> Graded:
    ids = tuple(question for question, is_in in zip(answers.ids, mask, strict=True) if is_in)
    return Graded(ids, answers.confidence[mask], answers.correct[mask])


def _group_figures(
    groups: Mapping[str, Sequence[str]], kept: BoolArray, correct: FloatArray
) -> Iterator[GroupFigures]:
    for group_by, labels in groups.items():
        if len(labels) != kept.size:
            raise DataError(
                f"groups[{group_by!r}] must hold one label an answer that is measured; "
                f"got {len(labels)} for {kept.size}"
            )
        label = np.array(labels, dtype=object)
        for group in sorted(set(labels)):
            inside = label == group
            n_kept = int((kept & inside).sum())
            yield GroupFigures(
                group_by=group_by,
                group=group,
                coverage=rate(n_kept, int(inside.sum())),
                kept_accuracy=rate(int((kept & inside & (correct == 1)).sum()), n_kept),
            )


def _check(fit: Graded, test: Graded | None, threshold_on: Graded | None) -> None:
    for answers in (fit, threshold_on, test):
        if answers is not None:
            tally(np.nan_to_num(answers.confidence), answers.correct)
    if test is None:
        if threshold_on is not None:
            raise DataError("threshold_on must come with test, answers that neither it nor fit has seen")
        return
    for name, seen in (("fit", fit), ("threshold_on", threshold_on)):
        if seen is not None and (both := set(seen.ids) & set(test.ids)):
            raise DataError(
                f"test must hold other questions than {name}; both hold {min(both)!r}. Split them by question"
            )
