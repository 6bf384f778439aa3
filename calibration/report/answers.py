"""What a run says, in sentences: where the base stands, whether a method helped, what a router may do."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

from calibration.metrics.errors import BIN_SIZE
from calibration.report.words import criterion, is_one_bin, joined, number, percent
from calibration.results import LEVELS, Evaluation, Level, Outcome, Row, VerdictReport
from calibration.routing.policy import RouterPolicy

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What a run says of one method, in one sentence."""

    system: str
    outcome: Outcome | None
    """None for what is no verdict."""
    sentence: str
    badge: str = ""
    """What stands in place of an outcome."""


def answers(evaluation: Evaluation) -> tuple[Answer, ...]:
    """The run in plain words: where the base stands, then one sentence a method."""
    graded = [verdict for verdict in evaluation.verdicts if not verdict.literal]
    base = called(evaluation, evaluation.base)
    methods = [_method_answer(system, verdicts, base) for system, verdicts in grouped(graded, "system")]
    gaps = [
        Answer(gap.system, None, f"{gap.system} has no numbers: {gap.reason}", "missing")
        for gap in evaluation.missing
    ]
    return (*_base_answer(evaluation), *methods, *gaps, *_router_answer(evaluation))


def grouped(items: Iterable[T], *names: str) -> list[tuple[Any, list[T]]]:
    """Items that agree in some attributes, in the order in which each group begins."""
    groups: dict[Any, list[T]] = {}
    for item in items:
        groups.setdefault(attrgetter(*names)(item), []).append(item)
    return list(groups.items())


def target_model(evaluation: Evaluation) -> str | None:
    """The model that was taught: the one that systems other than the base are made of."""
    made = [row.model for row in evaluation.rows if row.system != evaluation.base]
    return next(iter([*made, *(row.model for row in evaluation.rows)]), None)


def called(evaluation: Evaluation, system: str) -> str:
    """What a sentence calls a system: the base by the name of its model, any other by its own."""
    return (target_model(evaluation) if system == evaluation.base else None) or system


def _base_answer(evaluation: Evaluation) -> list[Answer]:
    name = called(evaluation, evaluation.base)
    rows = (row for row in evaluation.rows if (row.system, row.map) == (evaluation.base, "none"))
    row = next((row for row in rows if (row.model, row.split) == (name, "test")), None)
    if row is None:
        return []
    return [
        Answer(evaluation.base, None, f"As it is, {name} {_accuracy(row)} {_error(row)}".strip(), "as it is")
    ]


def _accuracy(row: Row) -> str:
    """How often it is right and how sure: the one of all judged answers, the other of the readable ones."""
    judged = row.n + row.n_unreadable
    if not judged:
        return "has no judged answer."
    right = f"is right in {percent(row.accuracy)} of {judged} questions"
    if not row.n:
        return f"{right}, and none of its confidences can be read."
    where = f", readable for {row.n} of them," if row.n_unreadable else ""
    return f"{right}; its confidence{where} averages {percent(row.mean_confidence)}."


def _error(row: Row) -> str:
    if row.rms is None:
        return ""
    if is_one_bin(row.n):
        return (
            f"Its RMS calibration error is {number(row.rms)}: below {2 * BIN_SIZE} answers, that is just "
            "how far its mean confidence is from its accuracy."
        )
    return (
        f"Its RMS calibration error is {number(row.rms)}; if calibrated, it would score about "
        f"{number(row.rms_floor)}."
    )


def _method_answer(system: str, verdicts: Sequence[VerdictReport], base: str) -> Answer:
    by_level = {verdict.level: verdict for verdict in verdicts}
    level = decisive(verdicts)
    verdict, reached = by_level[level], LEVELS.index(level)
    if verdict.outcome == "pass":
        return Answer(system, "pass", f"{system} reaches every level, minimum to stretch.")
    subject = f"{system} reaches the {LEVELS[reached - 1]} level; it" if reached else system
    if verdict.outcome == "fail":
        weak = joined(criterion(line.name).short for line in verdict.lines if line.outcome == "fail")
        sentence = f"{subject} does not reach the {level} level: it fails on {weak}."
    else:
        sentence = f"{subject} may or may not reach the {level} level: {_open(verdict)}."
    return Answer(system, "pass" if reached else verdict.outcome, sentence + _against_the_map(verdict, base))


def _open(verdict: VerdictReport) -> str:
    """What is missing to tell: more questions, or questions of a kind of which there are none."""
    undecided = [line for line in verdict.lines if line.outcome == "undecided"]
    absent = [line.name for line in undecided if line.value is None and criterion(line.name).needs]
    few = [criterion(line.name).short for line in undecided if line.name not in absent]
    parts = [f"too few questions to tell on {joined(few)}"] if few else []
    if absent:
        takes = joined(criterion(name).needs for name in absent)
        parts.append(f"it also takes {takes}" if few else f"to tell takes {takes}")
    return "; ".join(parts)


def _against_the_map(verdict: VerdictReport, base: str) -> str:
    """What training has to beat: two parameters fitted on graded answers."""
    outcome = next((line.outcome for line in verdict.lines if line.name == "brier_after_map"), "pass")
    return {
        "pass": "",
        "fail": f" With a two-parameter map, {base} does as well.",
        "undecided": f" These questions cannot tell it from {base} with a two-parameter map.",
    }[outcome]


def decisive(verdicts: Iterable[VerdictReport]) -> Level:
    """The lowest level that is not reached; the highest when all are.

    Args:
        verdicts: Of one system; the literal criteria do not count.
    """
    missed = {verdict.level for verdict in verdicts if not verdict.literal and verdict.outcome != "pass"}
    return next((level for level in LEVELS if level in missed), LEVELS[-1])


def recommended(evaluation: Evaluation) -> str:
    """The system a router should use.

    The one that the evaluation names; else, of those that reach the highest level, the first; else the base.
    """
    reached = _reached(evaluation)
    return evaluation.recommended or max(reached, key=reached.__getitem__, default=evaluation.base)


def why_recommended(evaluation: Evaluation) -> str:
    """Why that one, as the end of a sentence."""
    reached = _reached(evaluation)
    if evaluation.recommended is not None:
        return "the audited system"
    if reached:
        return f"the first to reach the {LEVELS[max(reached.values())]} level; no other reaches a higher one"
    return "as it was: nothing that was made of it reaches a level" if evaluation.verdicts else "as it is"


def _reached(evaluation: Evaluation) -> dict[str, int]:
    """The highest level that each system reaches."""
    passed = (verdict for verdict in evaluation.verdicts if not verdict.literal and verdict.outcome == "pass")
    return {
        system: max(LEVELS.index(verdict.level) for verdict in verdicts)
        for system, verdicts in grouped(passed, "system")
    }


def _router_answer(evaluation: Evaluation) -> list[Answer]:
    """What a router may do with the recommended system."""
    system = recommended(evaluation)
    policy = evaluation.policies.get(system)
    return (
        [] if policy is None else [Answer(system, None, routed(policy, called(evaluation, system)), "router")]
    )


def routed(policy: RouterPolicy, name: str) -> str:
    """A policy as sentences: what to keep, what that does to answers that are known, what is certain.

    Args:
        policy: What a router follows.
        name: What its system is called.
    """
    threshold = policy.threshold
    if threshold is None:
        why = policy.feasibility.reason or "the budget pays for all of them"
        return f"Escalate every answer of {name}: {why}."
    if policy.map(1.0) < threshold:
        most = number(float(policy.map(1.0)))
        return (
            f"Escalate every answer of {name}: an answer is kept from a calibrated probability of "
            f"{number(threshold)} on, and none can have more than {most}."
        )
    if policy.map(0.0) >= threshold:
        which = " whose confidence can be read" if policy.on_fit.escalated.count else ""
        rule = f"Keep every answer of {name}{which}: {_why_all(policy)}."
    else:
        rule = (
            f"Keep an answer of {name} whose calibrated probability is at least {number(threshold)}, and "
            "escalate the rest."
        )
    return f"{rule} {_does(policy)}{_certain(policy)}"


def _why_all(policy: RouterPolicy) -> str:
    if policy.rule.kind == "budget":
        return "the budget pays for no other"
    if policy.rule.kind == "cost" and policy.threshold is not None and policy.threshold <= 0:
        return "at these prices, the large model's answers are not worth what they cost"
    return "even the least confident one is kept"


def _does(policy: RouterPolicy) -> str:
    """What became of answers under this very policy, preferably of those that it has not seen."""
    is_new = policy.measured_on == "test"
    found = policy.expected if is_new else policy.on_fit
    kept, total = found.kept_accuracy, found.escalated.total
    which = (
        f"Of {total} answers that this rule has not seen"
        if is_new
        else (f"Of the {total} answers that this rule was made from")
    )
    if not kept.total:
        return f"{which}, none is kept."
    return f"{which}, {kept.total} are kept, {kept.count} of them right ({percent(kept.value)})."


def _certain(policy: RouterPolicy) -> str:
    found = policy.certificate
    if found is None:
        return ""
    marks = "the judge's" if found.judge is None else "people's"
    return (
        f" With a probability of {percent(1 - found.delta)}, at least {percent(found.accuracy)} of what is "
        f"kept is right by {marks} marks."
    )
