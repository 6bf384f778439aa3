"""The report of one run: a page to read, summaries in markdown and plain text, every number as JSON."""

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import JsonValue, field_validator

from calibration.report import words
from calibration.report.words import criterion, duration, interval, joined, number
from calibration.results import LEVELS, Evaluation, Level, Outcome, Row, StageRecord, VerdictReport
from calibration.routing.policy import RouterPolicy
from calibration.schema import Schema

if TYPE_CHECKING:
    from jinja2 import Template

T = TypeVar("T")

_MAIN_COLUMNS = ("system", "read by", "map", "accuracy", "confidence", "RMS", "floor", "Brier", "AUROC")


class RunInfo(Schema):
    """Where the numbers come from."""

    run: str
    """Id of the run."""
    experiment: str
    """Name of the experiment."""
    seed: int
    backend: str
    """Where the heavy work ran: the backend's settings, as JSON text with a `kind`."""
    started: str
    """Date and time, ISO 8601."""
    seconds: float
    """From the first stage to the report."""
    stages: tuple[StageRecord, ...]
    """In the order they ran."""
    versions: dict[str, str]
    """Python and the libraries that decide the numbers."""
    settings: str
    """The whole experiment, as JSON text."""
    code: str
    """Digest of the code that ran."""

    @field_validator("settings", "backend")
    @classmethod
    def _is_json(cls, text: str) -> str:
        json.loads(text)  # its error is a ValueError and names the place
        return text


@dataclass(frozen=True)
class RenderedReport:
    """A report in every form it is read in."""

    html: str
    """One file that needs no other and asks the network for nothing."""
    markdown: str
    """A summary; its pictures are the files beside it."""
    summary: str
    """A shorter one in plain text, for a terminal."""
    json: dict[str, JsonValue]
    """Every number, under the names of `calibration.results`."""
    figures: Mapping[str, bytes]
    """File name -> file, as `draw` made them."""
    policy: RouterPolicy | None
    """The recommended system's, for a router to read."""

    def files(self) -> dict[str, bytes]:
        """File name -> content of all that belongs in a report's folder."""
        texts = {
            "report.html": self.html,
            "report.md": self.markdown,
            "report.json": json.dumps(self.json, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        }
        if self.policy is not None:
            texts["router_policy.json"] = self.policy.model_dump_json(indent=1) + "\n"
        return {name: text.encode() for name, text in texts.items()} | dict(self.figures)

    def standalone_markdown(self) -> str:
        """The summary with its pictures inside, for a viewer that has no folder to look in."""
        text = self.markdown
        for name, content in self.figures.items():
            text = text.replace(f"]({name})", f"]({data_uri(name, content)})")
        return text


@dataclass(frozen=True)
class Answer:
    """What a run says of one method, in one sentence."""

    system: str
    outcome: Outcome | None
    """None for what is no verdict."""
    sentence: str
    badge: str = ""
    """What stands in place of an outcome."""


def render(evaluation: Evaluation, info: RunInfo, figures: Mapping[str, bytes]) -> RenderedReport:
    """Write the report.

    Args:
        evaluation: All numbers.
        info: Where they come from.
        figures: What `calibration.report.figures.draw` made of the same evaluation.
    """
    pictures = {name: data_uri(name, content) for name, content in figures.items()}
    main, target = judged_rows(evaluation), target_model(evaluation)
    html = _page().render(
        evaluation=evaluation,
        info=info,
        answers=answers(evaluation),
        decisive=decisive,
        recommended=recommended(evaluation),
        pictures={name.removesuffix(".svg"): uri for name, uri in pictures.items() if name.endswith(".svg")},
        main=main,
        asides=[row for row in evaluation.rows if row.model == target and row not in main],
        others=[row for row in evaluation.rows if row.model != target],
        backend=json.loads(info.backend),
        settings=json.loads(info.settings),
        longest=max((stage.seconds for stage in info.stages), default=0) or 1,
    )
    return RenderedReport(
        html=html,
        markdown=markdown(evaluation, info, [name for name in figures if name.endswith(".png")]),
        summary=summary(evaluation),
        json=numbers(evaluation, info),
        figures=figures,
        policy=evaluation.policies.get(recommended(evaluation)),
    )


def numbers(evaluation: Evaluation, info: RunInfo) -> dict[str, JsonValue]:
    """The contents of report.json: the run, then all of the evaluation but the curves."""
    values = evaluation.model_dump(mode="json", exclude={"curves"})
    where = info.model_dump(mode="json")
    first = {key: where[key] for key in ("run", "experiment", "seed")}
    main = {key: values.pop(key) for key in ("rows", "verdicts", "routing")}
    last = {key: where[key] for key in ("stages", "versions", "started", "seconds", "code")}
    texts = {key: json.loads(where[key]) for key in ("settings", "backend")}
    return first | main | last | values | texts


def data_uri(name: str, content: bytes) -> str:
    """A picture as a URI that contains it.

    >>> data_uri("a.svg", b"<svg/>")
    'data:image/svg+xml;base64,PHN2Zy8+'
    """
    kind = "svg+xml" if name.endswith(".svg") else "png"
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def answers(evaluation: Evaluation) -> tuple[Answer, ...]:
    """The run in plain words: where the base stands, then one sentence a method."""
    graded = [verdict for verdict in evaluation.verdicts if not verdict.literal]
    methods = [_method_answer(system, verdicts) for system, verdicts in grouped(graded, "system")]
    gaps = [
        Answer(gap.system, None, f"{gap.system} has no numbers: {gap.reason}", "missing")
        for gap in evaluation.missing
    ]
    return (*_base_answer(evaluation), *methods, *gaps, *_router_answer(evaluation))


def _base_answer(evaluation: Evaluation) -> list[Answer]:
    row = next((row for row in _on_test(evaluation) if row.system == "base" and row.map == "none"), None)
    if row is None:
        return []
    sentence = (
        f"As it is, {row.model} is right in {number(row.accuracy)} of {row.n} questions and "
        f"{number(row.mean_confidence)} confident on average. Its RMS calibration error is "
        f"{number(row.rms)}; if calibrated, it would score about {number(row.rms_floor)}."
    )
    return [Answer("base", None, sentence, "as it is")]


def recommended(evaluation: Evaluation) -> str:
    """The system a router should use: of those that reach the highest level the first, else the base."""
    reached = {
        verdict.system: LEVELS.index(verdict.level)
        for verdict in evaluation.verdicts
        if not verdict.literal and verdict.outcome == "pass"
    }
    return max(reached, key=reached.__getitem__, default="base")


def _router_answer(evaluation: Evaluation) -> list[Answer]:
    """What a router may do with the recommended system."""
    system = recommended(evaluation)
    policy = evaluation.policies.get(system)
    if policy is None:
        return []
    expected = policy.expected
    kept = 1 - (expected.escalated.value or 0)
    if policy.threshold is None:
        reason = policy.feasibility.reason or "no answer is sure enough"
        sentence = f"Escalate every answer of {system}: {reason}."
    else:
        sentence = (
            f"Keep an answer of {system} whose calibrated probability is at least "
            f"{number(policy.threshold)}: that is {number(kept)} of the answers, "
            f"{number(expected.kept_accuracy.value)} of them right. Escalate the rest."
        )
    return [Answer(system, None, sentence, "router")]


def _method_answer(system: str, verdicts: Sequence[VerdictReport]) -> Answer:
    by_level = {verdict.level: verdict for verdict in verdicts}
    level = decisive(verdicts)
    verdict, reached = by_level[level], LEVELS.index(level)
    if verdict.outcome == "pass":
        return Answer(system, "pass", f"{system} reaches every level, minimum to stretch.")
    weak = joined(criterion(line.name).short for line in verdict.lines if line.outcome == verdict.outcome)
    subject = f"{system} reaches the {LEVELS[reached - 1]} level; it" if reached else system
    if verdict.outcome == "fail":
        sentence = f"{subject} does not reach the {level} level: it fails on {weak}."
    else:
        sentence = f"{subject} may or may not reach the {level} level: too few questions to tell on {weak}."
    return Answer(system, "pass" if reached else verdict.outcome, sentence + _against_the_map(verdict))


def _against_the_map(verdict: VerdictReport) -> str:
    """What training has to beat: two parameters fitted on a calibration split."""
    outcome = next((line.outcome for line in verdict.lines if line.name == "brier_after_map"), "pass")
    return {
        "pass": "",
        "fail": " The base with a two-parameter map is as good.",
        "undecided": " These questions cannot tell it from the base with a two-parameter map.",
    }[outcome]


def decisive(verdicts: Iterable[VerdictReport]) -> Level:
    """The lowest level that is not reached; the highest when all are.

    Args:
        verdicts: Of one system; the literal criteria do not count.
    """
    missed = {verdict.level for verdict in verdicts if not verdict.literal and verdict.outcome != "pass"}
    return next((level for level in LEVELS if level in missed), LEVELS[-1])


def target_model(evaluation: Evaluation) -> str | None:
    """The model that was taught: the one that systems other than `base` are made of."""
    made = [row.model for row in evaluation.rows if row.system != "base"]
    return next(iter([*made, *(row.model for row in evaluation.rows)]), None)


def judged_rows(evaluation: Evaluation) -> list[Row]:
    """The rows that verdicts and pictures are about, and the constant's."""
    target = target_model(evaluation)
    judged = {(curve.system, curve.readout, curve.map) for curve in evaluation.curves}
    rows = [row for row in evaluation.rows if row.model == target]
    return [row for row in rows if row.system == "constant" or (row.system, row.readout, row.map) in judged]


def _on_test(evaluation: Evaluation) -> list[Row]:
    return [row for row in judged_rows(evaluation) if row.split == "test"]


def grouped(items: Iterable[T], *names: str) -> list[tuple[Any, list[T]]]:
    """Items that agree in some attributes, in the order in which each group begins."""
    groups: dict[Any, list[T]] = {}
    for item in items:
        groups.setdefault(attrgetter(*names)(item), []).append(item)
    return list(groups.items())


def summary(evaluation: Evaluation) -> str:
    """The answers, and the main numbers in columns, as plain text."""
    cells = [_MAIN_COLUMNS, *(_main_cells(row) for row in _on_test(evaluation))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            text.ljust(w) if i < 3 else text.rjust(w)
            for i, (text, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    marks = [
        f"[{words.OUTCOMES[a.outcome]}] {a.sentence}" if a.outcome else a.sentence
        for a in answers(evaluation)
    ]
    return "\n".join([*marks, "", *(line.rstrip() for line in lines)]) + "\n"


def _main_cells(row: Row) -> tuple[str, ...]:
    figures = (row.accuracy, row.mean_confidence, row.rms, row.rms_floor, row.brier, row.auroc)
    return (row.system, words.readout(row.readout), words.post_hoc(row.map), *map(number, figures))


def markdown(evaluation: Evaluation, info: RunInfo, pictures: Sequence[str]) -> str:
    """The summary of a run in markdown.

    Args:
        evaluation: All numbers.
        info: Where they come from.
        pictures: Files to show, from the folder in which the summary lies.
    """
    marked = [
        (f"**{words.OUTCOMES[a.outcome]}**: " if a.outcome else "") + _md(a.sentence)
        for a in answers(evaluation)
    ]
    stages = [(stage.name, stage.state, duration(stage.seconds)) for stage in info.stages]
    when = f"started {info.started}, {duration(info.seconds)}, seed {info.seed}"
    parts = [
        f"# {_md(info.experiment)}: calibration report",
        *(f"- {line}" for line in marked),
        *(
            f"\n## Verdict: {_md(name)}\n\n{_verdict_table(v)}"
            for name, v in grouped(evaluation.verdicts, "system")
        ),
        f"\n## Systems\n\n{_table(_MAIN_COLUMNS, [_main_cells(row) for row in _on_test(evaluation)])}",
        *(f"\n![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in pictures),
        f"\n## Routing\n\n{_routing_table(evaluation)}" if evaluation.routing else "",
        "\n## How to read this\n",
        *(f"- {_md(note)}" for note in evaluation.notes),
        f"\n## The run\n\n{_md(info.run)}, {when}\n",
        _table(("stage", "state", "time"), stages),
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _verdict_table(verdicts: Sequence[VerdictReport]) -> str:
    """A line a criterion and a column a level; the original specification's criteria come last."""
    measured: dict[tuple[str, ...], dict[str, str]] = {}
    for verdict in verdicts:
        for line in verdict.lines:
            rule = criterion(line.name)
            name = rule.name + (", original" if verdict.literal else "")
            need = "" if line.threshold is None else f" {rule.sign} {number(line.threshold)}"
            cells = measured.setdefault((name, number(line.value), interval(line.low, line.high)), {})
            cells[verdict.level] = words.SIGNS[line.outcome] + need
    rows = [(*key, *(cells.get(level, "") for level in LEVELS)) for key, cells in measured.items()]
    for literal, label in ((False, "all of these"), (True, "all of the original criteria")):
        found = {v.level: words.OUTCOMES[v.outcome] for v in verdicts if v.literal == literal}
        if found:
            rows.append((label, "", "", *(found.get(level, "") for level in LEVELS)))
    return _table(("criterion", "value", "95 % interval", *LEVELS), rows)


def _routing_table(evaluation: Evaluation) -> str:
    head = (
        "system",
        "map",
        "rule",
        "threshold",
        "escalated",
        "false escalations",
        "missed errors",
        "accuracy of both",
    )
    rows = []
    for row in evaluation.routing:
        rates = (row.threshold, row.escalated.value, row.false_escalations.value, row.missed_errors.value)
        numbers = map(number, (*rates, row.system_accuracy))
        rows.append((row.system, words.post_hoc(row.map), row.rule, *numbers))
    return _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_md(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _md(text: str) -> str:
    """Text that markdown shows as it is: on one line, its marks escaped."""
    return re.sub(r"[\\`*_\[\]|<&~]", r"\\\g<0>", " ".join(text.split()))


def _pretty(value: JsonValue) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _page() -> "Template":
    """The template of report.html; whatever is put into it is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "amount": words.amount,
        "duration": duration,
        "figure": words.figure,
        "grouped": grouped,
        "map_words": words.post_hoc,
        "number": number,
        "pretty": _pretty,
        "readout_words": words.readout,
        "shorten": words.shorten,
    }
    environment.globals |= {
        "criterion": criterion,
        "FIGURES": words.FIGURES,
        "interval": interval,
        "number": number,
        "OUTCOMES": words.OUTCOMES,
        "SIGNS": words.SIGNS,
    }
    return environment.from_string(files("calibration.report").joinpath("page.html.jinja").read_text("utf-8"))
