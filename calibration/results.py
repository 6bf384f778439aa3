"""What an evaluation says: the contents of report.json, typed."""

from typing import Literal

from pydantic import Field

from calibration.schema import Schema

Outcome = Literal["pass", "fail", "undecided"]
Level = Literal["minimum", "target", "stretch"]
LEVELS: tuple[Level, ...] = ("minimum", "target", "stretch")


class Row(Schema):
    """One system, read one way, on one set of questions."""

    system: str
    """`base`, `constant`, or the name of a method."""
    model: str
    readout: str
    map: Literal["none", "platt", "platt_crossfit"]
    split: str
    n: int
    """Questions that were judged and have a confidence: those the figures are about."""
    n_unjudged: int
    n_unreadable: int
    """Judged, but without a readable confidence."""
    accuracy: float | None
    """Over all judged questions, readable or not. None when none were judged."""
    mean_confidence: float | None
    rms_hle: float | None
    """As published with HLE: the most confident bin is dropped. None where that function fails (n < 200)."""
    rms: float | None
    rms_floor: float | None
    """What a perfectly calibrated model with these confidences scores on average."""
    l1: float | None
    brier: float | None
    auroc: float | None
    """None when all are right or all are wrong."""
    aurc: float | None
    effective_levels: float | None
    top_two_share: float | None
    span_low: float | None
    """5 % quantile of the confidence."""
    span_high: float | None
    """95 % quantile of the confidence."""


class Line(Schema):
    """One criterion of a verdict."""

    name: str
    value: float | None
    low: float | None = None
    """95 % interval, where the criterion has one."""
    high: float | None = None
    threshold: float | None
    outcome: Outcome
    note: str = ""
    """What was compared, and what makes it undecided."""


class VerdictReport(Schema):
    """Whether a method reached a level, and every line that decided it."""

    system: str
    level: Level
    outcome: Outcome
    lines: tuple[Line, ...]
    literal: bool = False
    """True for the criteria exactly as the original specification wrote them."""


class Rate(Schema):
    """A share with its exact (Clopper-Pearson) 95 % interval."""

    count: int
    total: int
    value: float | None
    low: float | None
    high: float | None


class RoutingRow(Schema):
    """What a router does with one system at one threshold."""

    system: str
    readout: str
    map: str
    rule: str
    """`reference 0.7`, or `cost-optimal`."""
    threshold: float
    escalated: Rate
    kept_accuracy: Rate
    false_escalations: Rate
    """Right answers that are escalated, among right answers."""
    missed_errors: Rate
    """Wrong answers that are kept, among wrong answers."""
    system_accuracy: float
    """With the large model's assumed accuracy on what is escalated."""
    cost_per_question: float
    """In the currency of the experiment's prices."""


class GroupRow(Schema):
    """One topic or answer type of one system."""

    system: str
    readout: str
    group_by: Literal["topic", "answer_type"]
    group: str
    n: int
    accuracy: float
    mean_confidence: float
    rms: float
    rms_floor: float
    auroc: float | None


class Curve(Schema):
    """The confidences and marks behind the figures of one system."""

    system: str
    readout: str
    map: str
    confidence: tuple[float, ...]
    correct: tuple[bool, ...]


class Example(Schema):
    """One answer worth looking at."""

    system: str
    question: str
    expected: str
    answer: str
    topic: str
    confidence: float = Field(ge=0, le=1)
    is_correct: bool
    why: Literal["confidently wrong", "doubted but right"]


class MissingSystem(Schema):
    """A method that has no numbers, and why."""

    system: str
    reason: str


class Evaluation(Schema):
    """All the numbers of one run."""

    rows: tuple[Row, ...]
    verdicts: tuple[VerdictReport, ...] = ()
    routing: tuple[RoutingRow, ...] = ()
    groups: tuple[GroupRow, ...] = ()
    curves: tuple[Curve, ...] = ()
    examples: tuple[Example, ...] = ()
    missing: tuple[MissingSystem, ...] = ()
    counts: dict[str, int]
    """Questions in each split."""
    notes: tuple[str, ...] = ()
    """What a reader must know to read the numbers right."""


class StageRecord(Schema):
    """One stage of a run."""

    name: str
    state: str
    seconds: float
