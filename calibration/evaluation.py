"""From judged answers to all the numbers of a report.

The test split is opened here and nowhere else, and no choice or fit is made on it: maps and the constant
come from the calibration split, the base's best readout from the validation split. The one exception is
declared wherever it applies: without a calibration split, maps are cross-fitted on the test split
(`platt_crossfit`).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import get_args

import numpy as np

from calibration.confidence import READOUTS, Readout, read_confidence
from calibration.errors import ConfigurationError, DataError
from calibration.measures import corrected_row, cost_quality, curve, groups, guarantees, measure, routing
from calibration.metrics.errors import BIN_SIZE
from calibration.metrics.noise import JudgeAudit
from calibration.records import Elicitation, Judged, Split
from calibration.results import Evaluation, Example, MissingSystem, Row
from calibration.routing.build import build_policy
from calibration.routing.goals import Goal
from calibration.routing.policy import RouterPolicy
from calibration.routing.rules import REFERENCE, Prices, cost_optimal
from calibration.systems import ENOUGH_TO_FIT, Scores, System, best_base, fitted_platt, with_platt
from calibration.verdict import KINDS, verdicts

SPLITS_SHOWN = ("test", "shift")
EXAMPLES = 5
"""Answers shown of each kind and system."""


@dataclass(frozen=True)
class Study:
    """What is compared: a model as it was, and what was made of it."""

    model: str
    """The model's name."""
    base: System
    """The model before, as improvements are counted from."""
    trained: tuple[System, ...] = ()
    """What was made of it, each under its main readout: what is judged."""
    readouts: tuple[System, ...] = ()
    """The base under its other readouts; the best one is the bar after a map."""
    asides: tuple[tuple[str, System], ...] = ()
    """Model and system of what is only measured."""
    kinds: str | None = KINDS
    """By what the questions are sorted of which every kind must improve; None, nothing is asked."""
    held_out: bool = True
    """Whether the test questions are known to be kept out of training and fitting."""


@dataclass(frozen=True)
class Trained:
    """One method's model, and how its confidence is read."""

    name: str
    readouts: tuple[Readout, ...]
    """The main one first: it is the one that is judged."""
    judged: Sequence[Judged]
    """Its answers, re-judged, on every split that it was asked."""


def assess(
    study: Study,
    *,
    prices: Prices,
    router: Goal,
    measured: datetime,
    seed: int,
    judges: Mapping[str, JudgeAudit] = MappingProxyType({}),
) -> Evaluation:
    """Compute every number of a report that confidences and marks allow.

    Args:
        study: What is compared.
        prices: For everything about routing.
        router: What the policies aim at.
        measured: When the answers were given; the policies' lifetime begins there.
        seed: Seeds every interval.
        judges: What an audit says of the marks, by system; without one they are taken as true.

    Raises:
        DataError: A system has no answers on the test split, or systems answered different questions.
    """
    best = best_base([study.base, *study.readouts])
    mains = [study.base, *study.trained]
    views = [view for system in mains for view in _views(system)]
    asides = [*((study.model, system) for system in study.readouts), *study.asides]
    aside_views = [(model, view) for model, system in asides for view in _views(system)]
    rows = [
        *_rows([(study.model, view) for view in views], seed),
        *_rows(aside_views, None),
        *_rows([(study.model, _constant(study.base))], None),
    ]
    rules = (REFERENCE, cost_optimal(prices))
    return Evaluation(
        base=study.base.name,
        rows=tuple(rows),
        verdicts=tuple(
            report
            for main in study.trained
            for report in verdicts(
                study.base, best, main, seed=seed, kinds=study.kinds, held_out=study.held_out
            )
        ),
        routing=tuple(row for view in views for row in routing(view, rules, prices)),
        cost_quality=tuple(filter(None, (cost_quality(system, prices, seed) for system in mains))),
        guarantees=tuple(row for system in mains for row in guarantees(system, judges.get(system.name))),
        policies={
            system.name: policy
            for system in mains
            if (policy := route(system, prices, router, measured, judges.get(system.name))) is not None
        },
        groups=tuple(row for system in mains for row in groups(system)),
        curves=tuple(curve(view) for view in views),
        counts={split: len(scores.ids) for split, scores in study.base.scores_by_split.items()},
        notes=_notes(study, best, prices),
    )


def evaluate(
    base: Mapping[str, Mapping[Elicitation, Sequence[Judged]]],
    target: str,
    trained: Sequence[Trained],
    *,
    prices: Prices,
    router: Goal,
    measured: datetime,
    seed: int,
    seed_readout: Readout = "geometric_mean",
    missing: Mapping[str, str],
    audit: JudgeAudit | None = None,
) -> Evaluation:
    """Compute every number of a report from judged answers.

    Args:
        base: Judged answers of each model before training, by model and way of asking.
        target: The model that was taught; the others are only measured.
        trained: What each method made of it.
        prices: For everything about routing.
        router: What the policies aim at.
        measured: When the answers were given.
        seed: Seeds every interval.
        seed_readout: The readout of the base that improvements are counted from.
        missing: Methods without numbers, with the reason.
        audit: What a person's audit says of the judge; certificates allow for it, and
            the figures are given without its errors too.

    Raises:
        ConfigurationError: The target was not measured in a way that `seed_readout` can read.
        DataError: A system has no answers on the test split, or systems answered different questions.
    """
    seed_rows = _seed_rows(base, target, seed_readout)
    systems = {model: _base_systems(by_way) for model, by_way in base.items()}
    taught = [[read_system(one.name, readout, one.judged) for readout in one.readouts] for one in trained]
    study = Study(
        model=target,
        base=next(system for system in systems[target] if system.readout == seed_readout),
        trained=tuple(main for main, *_ in taught),
        readouts=tuple(system for system in systems[target] if system.readout != seed_readout),
        asides=(
            *((target, system) for _, *rest in taught for system in rest),
            *((model, system) for model in systems if model != target for system in systems[model]),
        ),
    )
    answers = zip((study.base, *study.trained), (seed_rows, *(one.judged for one in trained)), strict=True)
    mains = (study.base, *study.trained)
    judges = {system.name: audit for system in mains} if audit else {}
    evaluation = assess(study, prices=prices, router=router, measured=measured, seed=seed, judges=judges)
    return evaluation.model_copy(
        update={
            "examples": tuple(example for pair in answers for example in _examples(*pair)),
            "missing": tuple(MissingSystem(system=name, reason=reason) for name, reason in missing.items()),
            "counts": dict(Counter(row.question.split for row in seed_rows)),
            "judge": tuple(corrected_row(system, audit, seed) for system in mains if audit),
        }
    )


def _base_systems(by_way: Mapping[Elicitation, Sequence[Judged]]) -> list[System]:
    """One untrained model under every readout that its ways of asking allow."""
    return [read_system("base", readout, rows) for way, rows in by_way.items() for readout in READOUTS[way]]


def read_system(name: str, readout: Readout, judged: Sequence[Judged], *, needed: Split = "test") -> System:
    """Read the confidences of one system's answers in one way, by split.

    Answers that were asked for in another way than the readout reads are left to other readouts. Within
    a split answers stand in the order of their question ids, so that nothing depends on the file's order.

    Raises:
        DataError: No answer on the split `needed` can be read in this way, or a question has two answers.
    """
    by_split: dict[str, list[Judged]] = {}
    for row in sorted(_asked_for(readout, judged), key=lambda row: row.question.id):
        by_split.setdefault(row.question.split, []).append(row)
    scores = {split: _scores(rows, readout) for split, rows in by_split.items()}
    if needed not in scores:
        raise DataError(
            f"{name} must have answers on the split {needed!r} that {readout!r} can read; got none"
        )
    rules = {row.generation.span_rule for row in _asked_for(readout, judged)}
    if len(rules) > 1:
        raise DataError(f"answers of {name} must share one span rule; got {', '.join(sorted(rules))}")
    return System(name, readout, scores, span_rule=None if readout.startswith("stated") else rules.pop())


def _asked_for(readout: str, judged: Sequence[Judged]) -> list[Judged]:
    return [row for row in judged if readout in READOUTS[row.generation.elicitation]]


def _scores(rows: Sequence[Judged], readout: Readout) -> Scores:
    confidence = [read_confidence(row.generation, readout) for row in rows]
    correct = [row.verdict.is_correct for row in rows]
    return Scores(
        ids=tuple(row.question.id for row in rows),
        confidence=np.array(confidence, dtype=np.float64),  # None becomes nan
        correct=np.array(correct, dtype=np.float64),
        kinds={
            "topic": tuple(row.question.topic for row in rows),
            KINDS: tuple(row.question.answer_type for row in rows),
        },
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
    """The base's answers with its accuracy as every confidence: what no information scores.

    The accuracy on the calibration split; without a usable one that on the test split itself, which no
    constant surpasses. (Other folds' accuracies would be lower the better a fold is, and rank it last.)
    """
    known = base.on("calibration" if fitted_platt(base) is not None else "test")
    if not known.judged.any():
        return System("constant", "constant", {})
    value = float(known.correct[known.judged].mean())
    splits = {
        split: replace(scores, confidence=np.full(len(scores.ids), value))
        for split, scores in base.scores_by_split.items()
    }
    return System("constant", "constant", splits)


def route(
    system: System, prices: Prices, router: Goal, measured: datetime, judge: JudgeAudit | None
) -> RouterPolicy | None:
    """What a router may do with a system; None when no test answer was judged.

    Map and threshold come from the calibration split and are measured on the test split; without a usable
    calibration split they come from the test split, and what is expected of them is cross-fitted.
    """
    test = system.on("test")
    if not test.judged.any():
        return None
    known = system.scores_by_split.get("calibration") if fitted_platt(system) else None
    graded = test.where(test.judged)
    kinds = {
        name: tuple(np.array(labels, dtype=object)[test.judged].tolist())
        for name, labels in test.kinds.items()
        if len(set(labels)) > 1
    }
    return build_policy(
        known.where(known.judged) if known else graded,
        system=system.name,
        test=graded if known else None,
        rule=router,
        readout=next((name for name in get_args(Readout) if name == system.readout), "confidence"),
        prices=prices,
        created=measured,
        groups=kinds,
        judge=judge,
        span_rule=system.span_rule,
    )


def _rows(shown: Sequence[tuple[str, System]], seed: int | None) -> Iterator[Row]:
    for model, system in shown:
        for split in SPLITS_SHOWN:
            if split in system.scores_by_split:
                yield measure(model, system, split, seed=seed)


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


def _notes(study: Study, best: System, prices: Prices) -> tuple[str, ...]:
    """What a reader must know to read the numbers right."""
    base, notes = study.base, []
    if study.readouts:
        chosen_on = next((s for s in ("validation", "calibration") if s in base.scores_by_split), None)
        why = f"its best on the {chosen_on} split" if chosen_on else "as no split allows a choice"
        counted = f"Improvements are counted from the base read by {base.readout}"
        notes.append(f"{counted}; after-map lines compare with the base read by {best.readout}, {why}.")
    notes.append(
        f"Routing assumes that the large model answers {100 * prices.llm_accuracy:.3g} % of the escalated "
        "questions rightly, whichever they are."
    )
    mains = (base, *study.trained)
    if without := sorted({system.name for system in mains if fitted_platt(system) is None}):
        notes.append(
            f"No calibration split of {ENOUGH_TO_FIT} graded answers for {', '.join(without)}: maps are "
            "cross-fitted on the test questions, by a hash of the question."
        )
    if fitted_platt(base) is None:
        notes.append("The constant is the base's accuracy on the test questions: no constant does better.")
    else:
        notes.append("The constant is the base's accuracy on the calibration split.")
    if study.trained and study.held_out and "shift" not in base.scores_by_split:
        notes.append("There is no shift split: nothing is said of topics that training has not seen.")
    if len(base.on("test").ids) < 2 * BIN_SIZE:
        notes.append(f"HLE's RMS needs {2 * BIN_SIZE} answers and is left out of smaller sets.")
    return tuple(notes)
