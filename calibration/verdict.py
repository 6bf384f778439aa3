"""Whether a trained model really got better: the verdict, which a cheater cannot pass.

Training buys discrimination (knowing which answers are right); a post-hoc map with a hundred labels buys
calibration, and so does a constant. So a level is passed only when the calibration error falls *and*
the confidence beats the base model after both were given the same post-hoc map, on re-judged answers,
without losing accuracy, readability or variety. Every line has a number, and an interval where it can
have one: it passes when the whole interval is good enough, fails when the whole interval is not, and is
undecided in between: there are not enough questions to tell.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibration.errors import DataError
from calibration.metrics.errors import BIN_SIZE, calibration_error
from calibration.metrics.inference import (
    Estimate,
    Graded,
    Statistic,
    compare,
    hle_error,
    noninferior,
    on_outcomes,
    ratio_reduction,
)
from calibration.metrics.outcomes import BoolArray, FloatArray, Outcomes, tally
from calibration.metrics.ranking import auroc
from calibration.metrics.scores import brier, brier_skill, spread
from calibration.results import LEVELS, Level, Line, Outcome, VerdictReport
from calibration.routing.rates import rate
from calibration.systems import (
    ENOUGH_TO_FIT,
    READABLE,
    MapName,
    Scores,
    System,
    fitted_platt,
    with_crossfit,
    with_platt,
)

REDUCTION: dict[Level, float] = {"minimum": 0.10, "target": 0.20, "stretch": 0.30}
"""Share of the base's RMS calibration error that each level wants removed."""
ACCURACY_MARGIN = 0.05
"""Relative loss of accuracy that counts as none."""
SMALLEST_GAIN = 0.01
"""Least gain in Brier skill that counts. Not 0: a map that bends the scale, or keeps digits that the
comparison rounds, gains a sliver that any number of questions would call certain."""
AUROC_MARGIN = 0.02
"""Loss of AUROC that counts as none; one that is certain, and not certainly smaller, fails."""
EFFECTIVE_LEVELS = 10.0
TOP_TWO_SHARE = 0.5
ENOUGH = 100
"""Fewer questions than this decide nothing."""

LITERAL_ACCURACY: dict[Level, float] = {"minimum": -0.05, "target": 0.0, "stretch": 0.08}
"""Least relative change of accuracy in the original specification: 19.4 % to 18.4, 19.4 and 21 %."""
LITERAL_SPAN = (0.2, 0.9)


def verdicts(base_seed: System, base_best: System, trained: System, *, seed: int) -> list[VerdictReport]:
    """Judge one trained system at every level, and by the original specification's own criteria.

    Lines: `rms_hle_reduction` and `rms_reduction` (against `base_seed`), `brier_after_map` and
    `auroc_after_map` (against `base_best`, both behind Platt maps), `accuracy` (against `base_seed`),
    `readable`, `effective_levels`, `top_two_share`; from target on `shift`; for stretch `answer_types`.
    Figures of a pair are about the questions that both systems have judged and readable answers to.
    Intervals hold the fitted maps fixed: they are about these maps on new questions.

    Args:
        base_seed: The base model under the readout that improvements are counted from.
        base_best: The base model under its best readout, from `best_base`.
        trained: The trained model under its main readout.
        seed: Seeds every interval.

    Returns:
        One report a level, then one a level with `literal` true.

    Raises:
        DataError: A system has no test split, or they answered different questions.
    """
    hle = _reduction(base_seed, trained, "test", hle_error, least=2 * BIN_SIZE, seed=seed)
    rms = _reduction(base_seed, trained, "test", on_outcomes(calibration_error), seed=seed)
    types = _reductions_by_type(base_seed, trained, seed)
    shift = _shift(base_seed, trained, seed)
    change = _accuracy_change(base_seed, trained, seed)
    common = [
        *_after_map(base_best, trained, seed),
        _decide("accuracy", change, -ACCURACY_MARGIN),
        _readable(trained),
        *_variety(trained),
    ]
    reports = []
    for level in LEVELS:
        lines = [
            _decide("rms_hle_reduction", hle, REDUCTION[level]),
            _decide("rms_reduction", rms, REDUCTION[level]),
            *common,
        ]
        if level != "minimum":
            lines.append(shift)
        if level == "stretch":
            lines.append(_answer_types(types))
        reports.append(_report(trained, level, lines))
    return reports + _literal(trained, hle, change, types)


def _report(system: System, level: Level, lines: Sequence[Line], *, literal: bool = False) -> VerdictReport:
    outcomes = {line.outcome for line in lines}
    order: tuple[Outcome, ...] = ("fail", "undecided", "pass")
    outcome = next(outcome for outcome in order if outcome in outcomes)
    return VerdictReport(
        system=system.name, level=level, outcome=outcome, lines=tuple(lines), literal=literal
    )


@dataclass(frozen=True)
class _Finding:
    """A number, its interval, how many questions it rests on, and what was compared."""

    estimate: Estimate
    n: int
    note: str


def _decide(
    name: str,
    found: _Finding,
    threshold: float,
    *,
    fail_below: float | None = None,
    is_strict: bool = False,
) -> Line:
    """Pass when the whole interval reaches the threshold, fail when all of it lies below `fail_below`.

    Args:
        name: The line's name.
        found: What was measured; more is better.
        threshold: What the lower end must reach.
        fail_below: What the upper end must reach not to fail; unset, the threshold.
        is_strict: The lower end must exceed the threshold by more than rounding.
    """
    low, high = found.estimate.low, found.estimate.high
    reached = low > threshold + 1e-9 if is_strict else low >= threshold
    outcome: Outcome = "undecided"
    if found.n >= ENOUGH and not np.isnan(low):
        if reached:
            outcome = "pass"
        elif high < (threshold if fail_below is None else fail_below):
            outcome = "fail"
    return Line(
        name=name,
        value=_number(found.estimate.value),
        low=_number(low),
        high=_number(high),
        threshold=threshold,
        outcome=outcome,
        note=found.note,
    )


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _pair(
    a: Scores, b: Scores, usable: Callable[[Scores], BoolArray], among: frozenset[str] | None = None
) -> tuple[Graded, Graded]:
    """The answers that both systems have, question by question.

    Raises:
        DataError: The systems were not asked the same questions.
    """
    if odd := sorted(set(a.ids).symmetric_difference(b.ids)):
        raise DataError(
            f"two systems must answer the same questions to be compared; only one answered {odd[0]!r}"
        )
    shared = set(a.where(usable(a)).ids) & set(b.where(usable(b)).ids)
    if among is not None:
        shared &= among
    keep = [np.array([question in shared for question in s.ids], dtype=bool) for s in (a, b)]
    return a.where(keep[0]), b.where(keep[1])


def _nothing(n: int, note: str) -> _Finding:
    return _Finding(Estimate(np.nan, np.nan, np.nan), n, note)


def _reduction(
    base: System,
    trained: System,
    split: str,
    statistic: Statistic,
    *,
    seed: int,
    least: int = 1,
    among: frozenset[str] | None = None,
) -> _Finding:
    """By which share the trained system lowers an error of the base."""
    old, new = _pair(base.on(split), trained.on(split), lambda scores: scores.usable, among)
    n = len(old.ids)
    if n < least:
        return _nothing(n, f"needs {least} questions that both answered readably; got {n}")
    whole = np.arange(n)[None]
    before, after = (float(statistic(graded, whole)[0]) for graded in (old, new))
    note = f"{before:.3f} ({base.readout}) to {after:.3f} ({trained.readout}) on {n} questions"
    return _Finding(ratio_reduction(old, new, statistic, seed=seed), n, note)


def _after_map(base: System, trained: System, seed: int) -> tuple[Line, Line]:
    """Brier skill and AUROC of both systems, each behind its own Platt map."""
    fit = with_platt if fitted_platt(base) and fitted_platt(trained) else with_crossfit
    mapped = [fit(system) for system in (base, trained)]
    if mapped[0] is None or mapped[1] is None:
        gain = loss = _nothing(0, f"needs {ENOUGH_TO_FIT} readable answers to fit a map on")
    else:
        old, new = _pair(mapped[0].on("test"), mapped[1].on("test"), lambda scores: scores.usable)
        gain = _gain(base, mapped[1].map, old, new, brier_skill, brier, "Brier score", seed)
        loss = _gain(base, mapped[1].map, old, new, auroc, auroc, "AUROC", seed)
    return (
        _decide("brier_after_map", gain, SMALLEST_GAIN),
        _decide("auroc_after_map", loss, -AUROC_MARGIN, fail_below=0.0),
    )


def _gain(
    base: System,
    map_name: MapName,
    old: Graded,
    new: Graded,
    metric: Callable[[Outcomes], FloatArray],
    shown: Callable[[Outcomes], FloatArray],
    label: str,
    seed: int,
) -> _Finding:
    n = len(old.ids)
    if not n:
        return _nothing(0, "no question has a readable answer by both")
    before, after = (float(shown(tally(graded.confidence, graded.correct))) for graded in (old, new))
    note = f"{label} {before:.4f} (base, {base.readout} + {map_name}) to {after:.4f} on {n} questions"
    if metric is not shown:
        note += "; the line is the gain in Brier skill, 1 - Brier / (accuracy (1 - accuracy))"
    return _Finding(compare(new, old, on_outcomes(metric), seed=seed), n, note)


def _accuracy_change(base: System, trained: System, seed: int) -> _Finding:
    """Relative change of accuracy over all judged answers, readable or not."""
    old, new = _pair(base.on("test"), trained.on("test"), lambda scores: scores.judged)
    n = len(old.ids)
    if not n:
        return _nothing(0, "no question has a judged answer by both")
    found = noninferior(old, new, margin=ACCURACY_MARGIN, seed=seed)
    note = (
        f"{old.correct.mean():.3f} to {new.correct.mean():.3f} on {n} questions; had nothing been lost, "
        f"this would show with probability {found.power:.2f}"
    )
    if found.needed is not None and found.needed > n:
        note += f" (.80 with {found.needed} questions)"
    return _Finding(found.change, n, note)


def _readable(trained: System) -> Line:
    scores = trained.on("test")
    share = rate(int(scores.usable.sum()), int(scores.judged.sum()))
    outcome: Outcome = "undecided"
    if share.value is not None and share.high is not None and share.total >= ENOUGH:
        if share.value >= READABLE:
            outcome = "pass"
        elif share.high < READABLE:
            outcome = "fail"
    return Line(
        name="readable",
        value=share.value,
        low=share.low,
        high=share.high,
        threshold=READABLE,
        outcome=outcome,
        note=f"{share.count} of {share.total} judged answers have a readable confidence",
    )


def _variety(trained: System) -> tuple[Line, Line]:
    """Whether the confidence, as the model gives it, still says different things of different answers."""
    scores = trained.on("test")
    n = int(scores.usable.sum())
    spreads = spread(scores.outcomes()) if n else None
    levels, share = (spreads.effective_levels, spreads.top_two_share) if spreads else (None, None)

    def line(name: str, value: float | None, threshold: float, *, is_good: bool) -> Line:
        outcome: Outcome = "undecided" if n < ENOUGH else "pass" if is_good else "fail"
        note = f"{n} confidences as the model gives them, to two decimals"
        return Line(name=name, value=value, threshold=threshold, outcome=outcome, note=note)

    return (
        line("effective_levels", levels, EFFECTIVE_LEVELS, is_good=(levels or 0) >= EFFECTIVE_LEVELS),
        line("top_two_share", share, TOP_TWO_SHARE, is_good=(1 if share is None else share) <= TOP_TWO_SHARE),
    )


def _shift(base: System, trained: System, seed: int) -> Line:
    """Whether the error also falls where neither training nor the map has been."""
    if not all("shift" in system.scores_by_split for system in (base, trained)):
        found = _nothing(0, "there is no shift split: keep some topics out of training")
    else:
        found = _reduction(base, trained, "shift", on_outcomes(calibration_error), seed=seed)
    return _decide("shift", found, 0.0, is_strict=True)


def _reductions_by_type(base: System, trained: System, seed: int) -> dict[str, _Finding]:
    """RMS reduction of each answer type with enough questions."""
    scores, statistic = base.on("test"), on_outcomes(calibration_error)
    found = {}
    for kind in sorted(set(scores.answer_type)):
        among = frozenset(i for i, t in zip(scores.ids, scores.answer_type, strict=True) if t == kind)
        found[kind] = _reduction(base, trained, "test", statistic, seed=seed, least=ENOUGH, among=among)
    return {kind: finding for kind, finding in found.items() if finding.n >= ENOUGH}


def _answer_types(types: Mapping[str, _Finding]) -> Line:
    """Whether every answer type improves; the line shows the one that comes nearest to not doing so."""
    if len(types) < 2:
        note = f"needs two answer types of {ENOUGH} questions; got {len(types)}"
        return _decide("answer_types", _nothing(0, note), 0.0)
    lines = {kind: _decide("answer_types", found, 0.0, is_strict=True) for kind, found in types.items()}
    severity = {"fail": 0, "undecided": 1, "pass": 2}
    worst = min(lines, key=lambda kind: (severity[lines[kind].outcome], lines[kind].low or -np.inf))
    rest = ", ".join(f"{kind} {found.estimate.value:.2f}" for kind, found in types.items())
    return lines[worst].model_copy(update={"note": f"{worst}: {lines[worst].note}; reductions: {rest}"})


def _literal(
    trained: System, hle: _Finding, change: _Finding, types: Mapping[str, _Finding]
) -> list[VerdictReport]:
    """The criteria of the original specification as it wrote them: point estimates, no floor, no map."""
    reports = []
    for level in LEVELS:
        lines = [
            _point("rms_hle_reduction", hle, REDUCTION[level]),
            _point("accuracy", change, LITERAL_ACCURACY[level]),
        ]
        if level == "minimum":
            lines += _literal_span(trained)
        if level == "target":
            note = "the test split is held out by construction"
            lines.append(Line(name="held_out", value=None, threshold=None, outcome="pass", note=note))
        if level == "stretch":
            worst = min(types.values(), key=lambda found: found.estimate.value, default=None)
            absent = _nothing(0, f"no answer type has {ENOUGH} questions")
            lines.append(_point("answer_types", worst or absent, 0.0))
        reports.append(_report(trained, level, lines, literal=True))
    return reports


def _point(name: str, found: _Finding, threshold: float) -> Line:
    value = _number(found.estimate.value)
    outcome: Outcome = "undecided" if value is None else "pass" if value >= threshold - 1e-9 else "fail"
    return Line(name=name, value=value, threshold=threshold, outcome=outcome, note=found.note)


def _literal_span(trained: System) -> list[Line]:
    """Confidences should reach from .2 to .9."""
    scores = trained.on("test")
    spreads = spread(scores.outcomes()) if scores.usable.any() else None
    note = "contradicts calibration where accuracy is low: few answers deserve a confidence of .9"

    def line(name: str, value: float | None, threshold: float, *, is_good: bool) -> Line:
        outcome: Outcome = "undecided" if value is None else "pass" if is_good else "fail"
        return Line(name=name, value=value, threshold=threshold, outcome=outcome, note=note)

    low, high = (spreads.q05, spreads.q95) if spreads else (None, None)
    return [
        line("span_low", low, LITERAL_SPAN[0], is_good=low is not None and low <= LITERAL_SPAN[0]),
        line("span_high", high, LITERAL_SPAN[1], is_good=high is not None and high >= LITERAL_SPAN[1]),
    ]
