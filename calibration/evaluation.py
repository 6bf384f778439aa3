"""From judged answers to all the numbers of a report.

The test split is opened here and nowhere else, and no choice or fit is made on it: maps and the constant
come from the calibration split, the base's best readout from the validation split. The one exception is
declared wherever it applies: without a calibration split, maps are cross-fitted on the test split
(`platt_crossfit`).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from calibration.confidence import READOUTS, Readout, read_confidence
from calibration.errors import CalibrationError, ConfigurationError, DataError
from calibration.maps import cross_fit, fit_constant
from calibration.metrics.errors import BIN_SIZE, calibration_error, calibration_floor, hle_calibration_error
from calibration.metrics.outcomes import BoolArray, Outcomes
from calibration.metrics.ranking import aurc, auroc
from calibration.metrics.scores import brier, overconfidence, spread
from calibration.records import Elicitation, Judged
from calibration.results import Curve, Evaluation, Example, GroupRow, MissingSystem, RoutingRow, Row
from calibration.routing.rates import route
from calibration.routing.rules import REFERENCE, Prices, Rule, cost_optimal
from calibration.verdict import ENOUGH_TO_FIT, Scores, System, best_base, fitted_platt, verdicts, with_platt

SPLITS_SHOWN = ("test", "shift")
EXAMPLES = 5
"""Answers shown of each kind and system."""


@dataclass(frozen=True)
class Trained:
    """One method's model, and how its confidence is read."""

    name: str
    readouts: tuple[Readout, ...]
    """The main one first: it is the one that is judged."""
    judged: Sequence[Judged]
    """Its answers, re-judged, on every split that it was asked."""


def evaluate(
    base: Mapping[str, Mapping[Elicitation, Sequence[Judged]]],
    target: str,
    trained: Sequence[Trained],
    *,
    prices: Prices,
    seed: int,
    seed_readout: Readout = "geometric_mean",
    missing: Mapping[str, str],
) -> Evaluation:
    """Compute every number of a report.

    Args:
        base: Judged answers of each model before training, by model and way of asking.
        target: The model that was taught; the others are only measured.
        trained: What each method made of it.
        prices: For the routing rows.
        seed: Seeds every interval.
        seed_readout: The readout of the base that improvements are counted from.
        missing: Methods without numbers, with the reason.

    Raises:
        ConfigurationError: The target was not measured in a way that `seed_readout` can read.
        DataError: A system has no answers on the test split, or systems answered different questions.
    """
    seed_rows = _seed_rows(base, target, seed_readout)
    measured = {model: _base_systems(by_way) for model, by_way in base.items()}
    seed_base = next(system for system in measured[target] if system.readout == seed_readout)
    best = best_base([seed_base, *(system for system in measured[target] if system is not seed_base)])
    taught = [[read_system(one.name, readout, one.judged) for readout in one.readouts] for one in trained]
    mains = [seed_base, *(systems[0] for systems in taught)]
    answers = [seed_rows, *(one.judged for one in trained)]
    views = [view for system in mains for view in _views(system)]
    read = [(model, system) for model, systems in measured.items() for system in systems]
    read += [(target, system) for systems in taught for system in systems]
    shown = [(model, view) for model, system in read for view in _views(system)]
    shown.append((target, _constant(seed_base)))
    return Evaluation(
        rows=tuple(row for model, view in shown for row in _rows(model, view)),
        verdicts=tuple(report for main in mains[1:] for report in verdicts(seed_base, best, main, seed=seed)),
        routing=tuple(row for view in views for row in _routing(view, prices)),
        groups=tuple(row for system in mains for row in _groups(system)),
        curves=tuple(_curve(view) for view in views),
        examples=tuple(example for pair in zip(mains, answers, strict=True) for example in _examples(*pair)),
        missing=tuple(MissingSystem(system=name, reason=reason) for name, reason in missing.items()),
        counts=dict(Counter(row.question.split for row in seed_rows)),
        notes=_notes(seed_base, best, mains, prices),
    )


def _base_systems(by_way: Mapping[Elicitation, Sequence[Judged]]) -> list[System]:
    """One untrained model under every readout that its ways of asking allow."""
    return [read_system("base", readout, rows) for way, rows in by_way.items() for readout in READOUTS[way]]


def read_system(name: str, readout: Readout, judged: Sequence[Judged]) -> System:
    """Read the confidences of one system's answers in one way, by split.

    Answers that were asked for in another way than the readout reads are left to other readouts. Within
    a split answers stand in the order of their question ids, so that nothing depends on the file's order.

    Raises:
        DataError: No answer on the test split can be read in this way, or a question has two answers.
    """
    by_split: dict[str, list[Judged]] = {}
    for row in sorted(_asked_for(readout, judged), key=lambda row: row.question.id):
        by_split.setdefault(row.question.split, []).append(row)
    scores = {split: _scores(rows, readout) for split, rows in by_split.items()}
    if "test" not in scores:
        raise DataError(f"{name} must have answers on the split 'test' that {readout!r} can read; got none")
    return System(name, readout, scores)


def _asked_for(readout: str, judged: Sequence[Judged]) -> list[Judged]:
    return [row for row in judged if readout in READOUTS[row.generation.elicitation]]


def _scores(rows: Sequence[Judged], readout: Readout) -> Scores:
    confidence = [read_confidence(row.generation, readout) for row in rows]
    correct = [row.verdict.is_correct for row in rows]
    return Scores(
        ids=tuple(row.question.id for row in rows),
        confidence=np.array(confidence, dtype=np.float64),  # None becomes nan
        correct=np.array(correct, dtype=np.float64),
        topic=tuple(row.question.topic for row in rows),
        answer_type=tuple(row.question.answer_type for row in rows),
    )


def _seed_rows(
    base: Mapping[str, Mapping[Elicitation, Sequence[Judged]]], target: str, readout: Readout
) -> Sequence[Judged]:
    """The target's answers that improvements are counted from."""
    if target not in base:
        raise ConfigurationError(f"target must be one of {', '.join(base)}; got {target!r}")
    for way, rows in base[target].items():
        if readout in READOUTS[way]:
            return rows
    raise ConfigurationError(
        f"{target} must be asked in a way that readout {readout!r} can read; "
        f"it was asked {', '.join(base[target]) or 'in none'}"
    )


def _views(system: System) -> list[System]:
    """The system as it is, and behind its Platt map where one can be fitted."""
    mapped = with_platt(system)
    return [system] if mapped is None else [system, mapped]


def _constant(base: System) -> System:
    """The base's answers with its accuracy as every confidence: what no information scores."""
    if fitted_platt(base) is not None:
        known = base.on("calibration")
        value = float(known.correct[known.judged].mean())
        splits = {
            split: replace(scores, confidence=np.full(len(scores.ids), value))
            for split, scores in base.scores_by_split.items()
        }
    else:
        splits = _crossfitted_constant(base.on("test"))
    return System("constant", "constant", splits)


def _crossfitted_constant(scores: Scores) -> dict[str, Scores]:
    if scores.judged.sum() < ENOUGH_TO_FIT:
        return {}
    judged = scores.where(scores.judged)
    confidence = np.full(len(scores.ids), np.nan)
    confidence[scores.judged] = cross_fit(fit_constant, judged.ids, np.zeros(len(judged.ids)), judged.correct)
    return {"test": replace(scores, confidence=confidence)}


def _rows(model: str, system: System) -> Iterator[Row]:
    for split in SPLITS_SHOWN:
        if split in system.scores_by_split:
            yield _row(model, system, split)


def _row(model: str, system: System, split: str) -> Row:
    scores = system.on(split)
    judged, usable = int(scores.judged.sum()), int(scores.usable.sum())
    o = scores.outcomes() if usable else None
    rms, l1 = _errors(o) if o else (None, None)
    spreads = spread(o) if o else None
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
        accuracy=float(scores.correct[scores.judged].mean()) if judged else None,
        mean_confidence=float(o.mean_confidence) if o else None,
        rms_hle=hle_calibration_error(graded.confidence, graded.correct) if usable >= 2 * BIN_SIZE else None,
        rms=rms,
        rms_floor=calibration_floor(o) if o else None,
        l1=l1,
        brier=float(brier(o)) if o else None,
        auroc=_auroc(o) if o else None,
        aurc=float(aurc(o)) if o else None,
        effective_levels=spreads.effective_levels if spreads else None,
        top_two_share=spreads.top_two_share if spreads else None,
        span_low=spreads.q05 if spreads else None,
        span_high=spreads.q95 if spreads else None,
    )


def _errors(o: Outcomes) -> tuple[float, float]:
    """RMS and L1, refused unless |gap| <= L1 <= RMS <= max, as any common binning must have it."""
    gap = abs(float(overconfidence(o)))
    l1, rms, largest = (float(calibration_error(o, norm=norm)) for norm in (1, 2, "max"))
    if not (gap <= l1 + 1e-9 and l1 <= rms + 1e-9 and rms <= largest + 1e-9):
        raise CalibrationError(f"|gap| <= L1 <= RMS <= max must hold; got {gap}, {l1}, {rms}, {largest}")
    return rms, l1


def _auroc(o: Outcomes) -> float | None:
    value = float(auroc(o))
    return None if np.isnan(value) else value


def _routing(system: System, prices: Prices) -> Iterator[RoutingRow]:
    """Both rules on the judged test answers; none when none were judged."""
    scores = system.on("test")
    rules: tuple[Rule, ...] = (REFERENCE, cost_optimal(prices)) if scores.judged.any() else ()
    for rule in rules:
        yield route(
            scores.confidence[scores.judged],
            scores.correct[scores.judged],
            rule,
            prices,
            system=system.name,
            readout=system.readout,
            map_name=system.map,
        )


def _groups(system: System) -> Iterator[GroupRow]:
    """Each topic and answer type of the test split that has a usable answer."""
    scores = system.on("test")
    kinds: tuple[Literal["topic", "answer_type"], ...] = ("topic", "answer_type")
    for group_by in kinds:
        labels = np.array(getattr(scores, group_by), dtype=object)
        for group in sorted(set(labels)):
            inside = labels == group
            if (inside & scores.usable).any():
                yield _group(system, group_by, group, inside)


def _group(
    system: System, group_by: Literal["topic", "answer_type"], group: str, inside: BoolArray
) -> GroupRow:
    scores = system.on("test")
    o = replace(scores, correct=np.where(inside, scores.correct, np.nan)).outcomes()
    return GroupRow(
        system=system.name,
        readout=system.readout,
        group_by=group_by,
        group=group,
        n=int(o.n),
        accuracy=float(scores.correct[inside & scores.judged].mean()),
        mean_confidence=float(o.mean_confidence),
        rms=_errors(o)[0],
        rms_floor=calibration_floor(o),
        auroc=_auroc(o),
    )


def _curve(system: System) -> Curve:
    scores = system.on("test")
    graded = scores.where(scores.usable)
    return Curve(
        system=system.name,
        readout=system.readout,
        map=system.map,
        confidence=tuple(graded.confidence.tolist()),
        correct=tuple(mark == 1 for mark in graded.correct.tolist()),
    )


def _examples(system: System, judged: Sequence[Judged]) -> Iterator[Example]:
    """The most confident wrong and the least confident right answers of the test split."""
    scores = system.on("test")
    rows = {row.question.id: row for row in _asked_for(system.readout, judged)}
    graded = scores.where(scores.usable)
    found = sorted(zip(graded.confidence.tolist(), graded.ids, graded.correct.tolist(), strict=True))
    wrong = [(c, i) for c, i, mark in reversed(found) if mark == 0][:EXAMPLES]
    right = [(c, i) for c, i, mark in found if mark == 1][:EXAMPLES]
    for is_correct, picked in ((False, wrong), (True, right)):
        for confidence, question_id in picked:
            row = rows[question_id]
            yield Example(
                system=system.name,
                question=row.question.text,
                expected=next(iter(row.question.answers), ""),
                answer=row.generation.answer,
                topic=row.question.topic,
                confidence=confidence,
                is_correct=is_correct,
                why="doubted but right" if is_correct else "confidently wrong",
            )


def _notes(base: System, best: System, systems: Sequence[System], prices: Prices) -> tuple[str, ...]:
    """What a reader must know to read the numbers right."""
    chosen_on = next((s for s in ("validation", "calibration") if s in base.scores_by_split), None)
    why = f"its best on the {chosen_on} split" if chosen_on else "as no split allows a choice"
    counted = f"Improvements are counted from the base read by {base.readout}"
    notes = [f"{counted}; after-map lines compare with the base read by {best.readout}, {why}."]
    notes.append(
        f"Routing assumes that the large model answers {prices.llm_accuracy:g} of the escalated questions "
        "rightly, whichever they are."
    )
    if without := sorted({system.name for system in systems if fitted_platt(system) is None}):
        notes.append(
            f"No calibration split of {ENOUGH_TO_FIT} graded answers for {', '.join(without)}: maps are "
            "cross-fitted on the test questions, by a hash of the question."
        )
    if fitted_platt(base) is None:
        notes.append("The constant is the accuracy on the other folds of the test questions.")
    else:
        notes.append("The constant is the base's accuracy on the calibration split.")
    if "shift" not in base.scores_by_split:
        notes.append("There is no shift split: nothing is said of topics that training has not seen.")
    if len(base.on("test").ids) < 2 * BIN_SIZE:
        notes.append(f"HLE's RMS needs {2 * BIN_SIZE} answers and is left out of smaller sets.")
    return tuple(notes)
