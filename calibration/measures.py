"""One system's figures: a row of the table, a row a group, a row a routing rule, a curve for the pictures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from calibration.errors import CalibrationError
from calibration.metrics.errors import (
    BIN_SIZE,
    calibration_error,
    calibration_floor,
    hle_calibration_error,
    width_error,
)
from calibration.metrics.inference import Estimate, Graded, intervals
from calibration.metrics.noise import audit_judge, corrected
from calibration.metrics.outcomes import BoolArray, FloatArray, Outcomes, tally
from calibration.metrics.ranking import augrc, aurc, auroc, average_precision, excess_aurc, rejection_ratio
from calibration.metrics.scores import brier, brier_parts, log_loss, overconfidence, spread
from calibration.metrics.smooth import smooth_error
from calibration.results import (
    CostQualityRow,
    Curve,
    GroupRow,
    Guarantee,
    Interval,
    JudgeRow,
    Row,
    Value,
)
from calibration.routing.certificate import JudgeError, certify
from calibration.routing.curve import curve_intervals
from calibration.routing.rates import Rate, RoutingRow, rate, route
from calibration.routing.rules import Prices, Rule
from calibration.systems import ENOUGH_TO_FIT, System

WITH_INTERVAL: Mapping[str, Callable[[Outcomes], FloatArray]] = {
    "mean_confidence": lambda o: o.mean_confidence,
    "rms": calibration_error,
    "brier": brier,
    "auroc": auroc,
    "aurc": aurc,
}
"""Figures of a row that get a bootstrap interval."""

GUARANTEED = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Accuracies that a router's owner may want of the answers kept."""
DELTA = 0.1
"""Probability of being wrong about each of them."""

_RANKING: Mapping[str, Callable[[Outcomes], FloatArray]] = {
    "auroc": auroc,
    "average_precision": average_precision,
    "aurc": aurc,
    "excess_aurc": excess_aurc,
    "augrc": augrc,
    "rejection_ratio": rejection_ratio,
}


def measure(model: str, system: System, split: str, *, seed: int | None = None) -> Row:
    """All figures of one system on one split.

    Args:
        model: The model's name, for the row.
        system: What is measured.
        split: Where.
        seed: Seeds the intervals; without one there are none.
    """
    scores = system.on(split)
    judged, usable = int(scores.judged.sum()), int(scores.usable.sum())
    correct = rate(int(scores.correct[scores.judged].sum()), judged)
    graded = scores.where(scores.usable)
    return Row(
        system=system.name,
        model=model,
        readout=system.readout,
        map=system.map,
        split=split,
        n=usable,
        n_unjudged=len(scores.ids) - judged,
        n_unreadable=judged - usable,
        accuracy=correct.value,
        intervals={} if seed is None else _intervals(correct, graded, seed),
        **(_figures(graded) if usable else {}),
    )


def _figures(graded: Graded) -> dict[str, Any]:
    """Every figure of the answers; None where it is undefined."""
    o = tally(graded.confidence, graded.correct)
    spreads, parts = spread(o), brier_parts(o)
    values: dict[str, Any] = {
        "mean_confidence": o.mean_confidence,
        **_errors(o),
        "rms_floor": calibration_floor(o),
        "ece": width_error(o),
        "smooth_ece": smooth_error(o),
        "brier": brier(o),
        "log_loss": log_loss(o),
        "miscalibration": parts.miscalibration,
        "discrimination": parts.discrimination,
        "uncertainty": parts.uncertainty,
        **{name: metric(o) for name, metric in _RANKING.items()},
        "levels": spreads.levels,
        "effective_levels": spreads.effective_levels,
        "top_two_share": spreads.top_two_share,
        "span_low": spreads.q05,
        "span_high": spreads.q95,
    }
    if int(o.n) >= 2 * BIN_SIZE:
        values["rms_hle"] = hle_calibration_error(graded.confidence, graded.correct)
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def _errors(o: Outcomes) -> dict[str, float]:
    """The errors over shared bins, refused unless |gap| <= L1 <= RMS <= max, as any binning must have it."""
    gap = abs(float(overconfidence(o)))
    l1, rms, largest = (float(calibration_error(o, norm=norm)) for norm in (1, 2, "max"))
    if not (gap <= l1 + 1e-9 and l1 <= rms + 1e-9 and rms <= largest + 1e-9):
        raise CalibrationError(f"|gap| <= L1 <= RMS <= max must hold; got {gap}, {l1}, {rms}, {largest}")
    debiased = float(calibration_error(o, debias=True)) if o.n > 1 else np.nan
    return {"l1": l1, "rms": rms, "max_error": largest, "rms_debiased": debiased}


def _intervals(correct: Rate, graded: Graded, seed: int) -> dict[str, Interval]:
    ends = {"accuracy": (correct.low, correct.high)}
    if graded.ids:
        found = intervals(graded, WITH_INTERVAL, seed=seed)
        ends |= {name: (estimate.low, estimate.high) for name, estimate in found.items()}
    return {
        name: Interval(low=low, high=high)
        for name, (low, high) in ends.items()
        if low is not None and high is not None and np.isfinite(low)
    }


def groups(system: System) -> Iterator[GroupRow]:
    """Each topic and answer type of the test split that has a usable answer; nothing where all are alike."""
    scores = system.on("test")
    kinds: tuple[Literal["topic", "answer_type"], ...] = ("topic", "answer_type")
    for group_by in kinds:
        labels = np.array(getattr(scores, group_by), dtype=object)
        names = sorted(set(labels))
        for group in names if len(names) > 1 else ():
            inside = labels == group
            if (inside & scores.usable).any():
                yield _group(system, group_by, group, inside)


def _group(
    system: System, group_by: Literal["topic", "answer_type"], group: str, inside: BoolArray
) -> GroupRow:
    scores = system.on("test")
    o = replace(scores, correct=np.where(inside, scores.correct, np.nan)).outcomes()
    ranking = float(auroc(o))
    return GroupRow(
        system=system.name,
        readout=system.readout,
        group_by=group_by,
        group=group,
        n=int(o.n),
        accuracy=float(scores.correct[inside & scores.judged].mean()),
        mean_confidence=float(o.mean_confidence),
        rms=float(calibration_error(o)),
        rms_floor=calibration_floor(o),
        auroc=None if np.isnan(ranking) else ranking,
    )


def routing(system: System, rules: Sequence[Rule], prices: Prices) -> Iterator[RoutingRow]:
    """What each rule does to the judged test answers; nothing when none were judged."""
    scores = system.on("test")
    for rule in rules if scores.judged.any() else ():
        yield route(
            scores.confidence[scores.judged],
            scores.correct[scores.judged],
            rule,
            prices,
            system=system.name,
            readout=system.readout,
            map_name=system.map,
        )


def cost_quality(system: System, prices: Prices, seed: int) -> CostQualityRow | None:
    """How well the confidence chooses what to escalate; None when no test answer was judged."""
    scores = system.on("test")
    if not scores.judged.any():
        return None
    found = curve_intervals(scores.where(scores.judged), llm=prices.llm_accuracy, seed=seed)
    return CostQualityRow(
        system=system.name,
        readout=system.readout,
        llm_accuracy=prices.llm_accuracy,
        apgr=_value(found.apgr),
        calls_for_half=_value(found.call_share_50),
        calls_for_most=_value(found.call_share_80),
    )


def guarantees(system: System, judge: JudgeError | None) -> Iterator[Guarantee]:
    """What can be promised of the answers kept, at each of `GUARANTEED`.

    Thresholds are found on the calibration split, or, without a usable one, on the test split: a
    certificate is valid on the answers it was made from.
    """
    known = system.scores_by_split.get("calibration")
    scores = system.on("test") if known is None or known.judged.sum() < ENOUGH_TO_FIT else known
    if not scores.judged.any():
        return
    graded = scores.where(scores.judged)
    for accuracy in GUARANTEED:
        found = certify(graded.confidence, graded.correct, accuracy=accuracy, delta=DELTA, judge=judge)
        yield Guarantee(
            system=system.name,
            readout=system.readout,
            accuracy=accuracy,
            delta=DELTA,
            threshold=found.threshold if found else None,
            kept=rate(found.kept if found else 0, len(graded.ids)),
        )


def judge_row(system: System, truth: FloatArray, seed: int) -> JudgeRow:
    """The system's figures as the true labels would have them.

    Args:
        system: Marked by the judge.
        truth: Shape [n] of its test split: a person's marks, nan where nobody looked.
        seed: Seeds the intervals.

    Raises:
        DataError: Too few answers were audited, or the judge is no better than chance.
    """
    scores = system.on("test")
    audit = audit_judge(scores.correct[scores.judged], truth[scores.judged])
    graded = scores.where(scores.usable)
    found = corrected(graded, audit, seed=seed, is_drawn_from_answers=True)
    return JudgeRow(
        system=system.name,
        readout=system.readout,
        audited=audit.right + audit.wrong,
        sensitivity=_value(audit.sensitivity),
        specificity=_value(audit.specificity),
        accuracy=_value(found.accuracy),
        rms=_value(found.rms),
        brier=_value(found.brier),
        auroc=_value(found.auroc),
    )


def judge_error(row: JudgeRow) -> JudgeError:
    """The judge's rates, for a certificate."""
    assert row.sensitivity.value is not None  # noqa: S101 - an audit without them is refused
    assert row.specificity.value is not None  # noqa: S101
    return JudgeError(sensitivity=row.sensitivity.value, specificity=row.specificity.value)


def _value(estimate: Estimate) -> Value:
    ends = (estimate.value, estimate.low, estimate.high)
    value, low, high = (end if np.isfinite(end) else None for end in ends)
    return Value(value=value, low=low, high=high)


def curve(system: System) -> Curve:
    """The usable test answers, for the pictures."""
    scores = system.on("test")
    graded = scores.where(scores.usable)
    return Curve(
        system=system.name,
        readout=system.readout,
        map=system.map,
        confidence=tuple(graded.confidence.tolist()),
        correct=tuple(mark == 1 for mark in graded.correct.tolist()),
    )
