"""What an evaluation says: the contents of report.json, typed."""

from typing import Literal

from pydantic import Field

from calibration.routing.policy import RouterPolicy
from calibration.routing.rates import Rate, RoutingRow
from calibration.schema import Schema

Outcome = Literal["pass", "fail", "undecided"]
Level = Literal["minimum", "target", "stretch"]
LEVELS: tuple[Level, ...] = ("minimum", "target", "stretch")


class Interval(Schema):
    """The ends of a 95 % interval."""

    low: float
    high: float


class Row(Schema):
    """One system, read one way, on one set of questions; `calibration.metrics` defines every figure."""

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
    accuracy: float | None = None
    """Over all judged questions, readable or not. None when none were judged."""
    accuracy_whatever: Interval | None = None
    """Accuracy if every unjudged question were wrong, and if every one were right. None when none is."""
    mean_confidence: float | None = None
    rms_hle: float | None = None
    """As published with HLE: the most confident bin is dropped. None where that function fails (n < 200)."""
    rms: float | None = None
    rms_floor: float | None = None
    """What a perfectly calibrated model with these confidences scores on average."""
    rms_debiased: float | None = None
    """Without what chance adds to it."""
    l1: float | None = None
    max_error: float | None = None
    """Of the worst bin."""
    ece: float | None = None
    """L1 over 15 bins of equal width, the form most papers report."""
    smooth_ece: float | None = None
    brier: float | None = None
    log_loss: float | None = None
    miscalibration: float | None = None
    """Part of the Brier score that a perfect post-hoc map would remove."""
    discrimination: float | None = None
    """Part of the Brier score's uncertainty that the confidence resolves."""
    uncertainty: float | None = None
    """Brier score of a constant at the accuracy; brier = miscalibration - discrimination + uncertainty."""
    auroc: float | None = None
    """None, as all ranking figures but AURC and AUGRC, when all are right or all are wrong."""
    average_precision: float | None = None
    aurc: float | None = None
    excess_aurc: float | None = None
    augrc: float | None = None
    rejection_ratio: float | None = None
    levels: int | None = None
    """Distinct confidences."""
    effective_levels: float | None = None
    top_two_share: float | None = None
    span_low: float | None = None
    """5 % quantile of the confidence."""
    span_high: float | None = None
    """95 % quantile of the confidence."""
    intervals: dict[str, Interval] = Field(default_factory=dict)
    """95 % intervals by figure, for the systems that are judged."""


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


class Value(Schema):
    """A figure with its 95 % interval; None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None


class CostQualityRow(Schema):
    """How well one system's confidence chooses what to escalate, whatever the threshold."""

    system: str
    readout: str
    llm_accuracy: float
    """Assumed of the large model."""
    apgr: Value
    """Average performance gap recovered; .5 is escalation at random."""
    calls_for_half: Value
    """Least share of questions to escalate to recover half of the gap between the models."""
    calls_for_most: Value
    """The same for 80 % of the gap."""


class Guarantee(Schema):
    """Whether answers can be kept at a stated accuracy."""

    system: str
    readout: str
    accuracy: float
    """Least accuracy of the answers kept."""
    delta: float
    """Probability that they are less accurate all the same."""
    threshold: float | None
    """Keep from this confidence on, before any map; None when nothing can be guaranteed."""
    kept: Rate
    """Share of the answers that this keeps, of those it was found on."""
    is_about_truth: bool = False
    """The accuracy is that of true labels, with what an audit leaves open about the judge; else it is what
    the judge calls right."""


class JudgeRow(Schema):
    """What the judge's own errors do to one system's figures."""

    system: str
    readout: str
    audited: int
    """Answers whose truth a person has established."""
    sensitivity: Value
    """Share of right answers that the judge marks right."""
    specificity: Value
    """Share of wrong answers that the judge marks wrong."""
    accuracy: Value
    """As the true labels would have it, like the figures below."""
    rms: Value
    brier: Value
    auroc: Value


class GroupRow(Schema):
    """One kind of question of one system."""

    system: str
    readout: str
    group_by: str
    """By what the questions were sorted, such as `topic`."""
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

    base: str = "base"
    """The system that improvements are counted from."""
    recommended: str | None = None
    """The system whose policy a router should follow; None leaves it to the verdict."""
    rows: tuple[Row, ...]
    verdicts: tuple[VerdictReport, ...] = ()
    routing: tuple[RoutingRow, ...] = ()
    cost_quality: tuple[CostQualityRow, ...] = ()
    guarantees: tuple[Guarantee, ...] = ()
    policies: dict[str, RouterPolicy] = Field(default_factory=dict)
    """What a router may do, by system."""
    judge: tuple[JudgeRow, ...] = ()
    """Empty when the judge was taken at its word."""
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
    note: str = ""
    """What was wrong with its stored result, which was made again."""
