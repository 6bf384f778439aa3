"""The report of one run: a page to read, summaries in markdown and plain text, every number as JSON."""

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from pydantic import JsonValue, field_validator

from calibration.report import words
from calibration.report.answers import (
    answers,
    called,
    decisive,
    grouped,
    recommended,
    target_model,
    why_recommended,
)
from calibration.report.words import criterion, duration, interval, number
from calibration.results import LEVELS, Evaluation, Row, StageRecord, VerdictReport
from calibration.routing.policy import RouterPolicy
from calibration.routing.rates import Figures
from calibration.schema import Schema

if TYPE_CHECKING:
    from jinja2 import Template

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
    judge_protocol: JsonValue = None
    """All that decides a verdict: the judge's version and, of a model, prompt, reply schema and settings."""

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
    policies: Mapping[str, RouterPolicy]
    """File name -> policy, for a router to read; the recommended system's is `router_policy.json`."""

    def files(self) -> dict[str, bytes]:
        """File name -> content of all that belongs in a report's folder."""
        texts = {
            "report.html": self.html,
            "report.md": self.markdown,
            "report.json": json.dumps(self.json, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        }
        for name, policy in self.policies.items():
            texts[name] = policy.model_dump_json(indent=1) + "\n"
        return {name: text.encode() for name, text in texts.items()} | dict(self.figures)

    def standalone_markdown(self) -> str:
        """The summary with its pictures inside, for a viewer that has no folder to look in."""
        text = self.markdown
        for name, content in self.figures.items():
            text = text.replace(f"]({name})", f"]({data_uri(name, content)})")
        return text


def render(evaluation: Evaluation, info: RunInfo, figures: Mapping[str, bytes]) -> RenderedReport:
    """Write the report.

    Args:
        evaluation: All numbers.
        info: Where they come from.
        figures: What `calibration.report.figures.draw` made of the same evaluation.
    """
    return RenderedReport(
        html=_html(evaluation, info, figures),
        markdown=markdown(evaluation, info, [name for name in figures if name.endswith(".png")]),
        summary=summary(evaluation),
        json=numbers(evaluation, info),
        figures=figures,
        policies={file: evaluation.policies[system] for system, file in name_policies(evaluation).items()},
    )


def _html(evaluation: Evaluation, info: RunInfo, figures: Mapping[str, bytes]) -> str:
    pictures = {name: data_uri(name, content) for name, content in figures.items() if name.endswith(".svg")}
    main, target = judged_rows(evaluation), target_model(evaluation)
    rows = [words.shown(row) for row in evaluation.rows]
    policy_files = name_policies(evaluation)
    return template("page.html.jinja").render(
        evaluation=evaluation,
        info=info,
        answers=answers(evaluation),
        decisive=decisive,
        policy_files=policy_files,
        recommended=called(evaluation, recommended(evaluation)),
        recommended_file=policy_files.get(recommended(evaluation)),
        why=why_recommended(evaluation),
        has_averages=any(policy.measured_on == "cross-fit" for policy in evaluation.policies.values()),
        fitted_on=fitted_on(main),
        is_crossed=any(row.map == "platt_crossfit" for row in main),
        readouts={row.readout for row in rows},
        pictures={name.removesuffix(".svg"): uri for name, uri in pictures.items()},
        main=main,
        asides=[row for row in rows if row.model == target and row not in main],
        others=[row for row in rows if row.model != target],
        backend=json.loads(info.backend),
        settings=json.loads(info.settings),
        longest=max((stage.seconds for stage in info.stages), default=0) or 1,
    )


def name_policies(evaluation: Evaluation) -> dict[str, str]:
    """The file of each system's policy: `router_policy.json` for the recommended, else one with its name.

    What cannot stand in the name of a file on every computer becomes an underscore; where two names would
    then be one, the later gets a number.
    """
    chosen = recommended(evaluation)
    named: dict[str, str] = {}
    for system in evaluation.policies:
        if system == chosen:
            named[system] = "router_policy.json"
            continue
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", system)
        taken = {file.casefold() for file in named.values()}
        numbered = (f"router_policy-{plain}{end}.json" for end in ("", *(f"-{n}" for n in range(2, 1000))))
        named[system] = next(file for file in numbered if file.casefold() not in taken)
    return named


def fitted_on(rows: Sequence[Row]) -> str:
    """Where the maps of some rows come from, as the end of a sentence; empty where nothing is mapped."""
    maps = {row.map for row in rows}
    split = "fitted on the calibration questions"
    crossed = "cross-fitted on the questions themselves (each fifth by a map made from the other four)"
    if {"platt", "platt_crossfit"} <= maps:
        return f"{split} where there are enough of them, and else {crossed}"
    return split if "platt" in maps else crossed if "platt_crossfit" in maps else ""


def numbers(evaluation: Evaluation, info: RunInfo) -> dict[str, JsonValue]:
    """The contents of report.json: the run, then all of the evaluation but the curves."""
    values = evaluation.model_dump(mode="json", exclude={"curves"})
    where = info.model_dump(mode="json")
    first = {key: where[key] for key in ("run", "experiment", "seed")}
    main = {key: values.pop(key) for key in ("rows", "verdicts", "routing")}
    last = {key: where[key] for key in ("stages", "versions", "started", "seconds", "code", "judge_protocol")}
    texts = {key: json.loads(where[key]) for key in ("settings", "backend")}
    return first | main | last | values | texts


def data_uri(name: str, content: bytes) -> str:
    """A picture as a URI that contains it.

    >>> data_uri("a.svg", b"<svg/>")
    'data:image/svg+xml;base64,PHN2Zy8+'
    """
    kind = "svg+xml" if name.endswith(".svg") else "png"
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def judged_rows(evaluation: Evaluation) -> list[Row]:
    """The rows that verdicts and pictures are about, and the constant's."""
    target = target_model(evaluation)
    judged = {(curve.system, curve.readout, curve.map) for curve in evaluation.curves}
    rows = [words.shown(row) for row in evaluation.rows if row.model == target]
    return [row for row in rows if row.system == "constant" or (row.system, row.readout, row.map) in judged]


def _on_test(evaluation: Evaluation) -> list[Row]:
    return [row for row in judged_rows(evaluation) if row.split == "test"]


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
        f"\n## Systems\n\n{table(_MAIN_COLUMNS, [_main_cells(row) for row in _on_test(evaluation)])}",
        *(f"\n![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in pictures),
        f"\n## Routing\n\n{_routing_table(evaluation)}" if evaluation.routing else "",
        _policies_part(evaluation) if evaluation.policies else "",
        "\n## How to read this\n",
        *(f"- {_md(note)}" for note in evaluation.notes),
        f"\n## The run\n\n{_md(info.run)}, {when}\n",
        table(("stage", "state", "time"), stages) if stages else "",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _verdict_table(verdicts: Sequence[VerdictReport]) -> str:
    """A line a criterion and a column a level; the original specification's criteria come last."""
    measured: dict[tuple[str, ...], dict[str, str]] = {}
    for verdict in verdicts:
        for line in verdict.lines:
            name = criterion(line.name).name + (", original" if verdict.literal else "")
            need = words.needed(line.name, line.threshold)
            cells = measured.setdefault((name, number(line.value), interval(line.low, line.high)), {})
            cells[verdict.level] = f"{words.MARKS[line.outcome]} {need}".rstrip()
    rows = [(*key, *(cells.get(level, "") for level in LEVELS)) for key, cells in measured.items()]
    for literal, label in ((False, "all of these"), (True, "all of the original criteria")):
        found = {v.level: words.OUTCOMES[v.outcome] for v in verdicts if v.literal == literal}
        if found:
            rows.append((label, "", "", *(found.get(level, "") for level in LEVELS)))
    return table(("criterion", "value", "95 % interval", *LEVELS), rows)


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
    return table(head, rows)


def _policies_part(evaluation: Evaluation) -> str:
    head = ("file", "system", "measured on", "answers", "escalated", "accuracy of kept", "accuracy of both")
    rows = []
    for system, file in name_policies(evaluation).items():
        for where, found in policy_figures(evaluation.policies[system]):
            rates = (found.escalated.value, found.kept_accuracy.value, found.system_accuracy)
            rows.append((file, system, where, str(found.escalated.total), *map(number, rates)))
    chosen = called(evaluation, recommended(evaluation))
    which = f"router_policy.json is that of {chosen}, {why_recommended(evaluation)}."
    return f"\n## Policies\n\n{_md(which)}\n\n{table(head, rows)}"


def policy_figures(policy: RouterPolicy) -> list[tuple[str, Figures]]:
    """What is known of a policy's effects, each with where it was measured."""
    average = "average of the procedure over five folds"
    return [
        ("the answers it was made from", policy.on_fit),
        ("answers it has not seen" if policy.measured_on == "test" else average, policy.expected),
    ]


def policy_remarks(policy: RouterPolicy) -> list[str]:
    """What must be known of a policy beside its figures, a sentence each."""
    remarks = (
        [] if policy.feasibility.is_feasible else [f"Escalates everything: {policy.feasibility.reason}."]
    )
    if (found := policy.certificate) is not None:
        marks = "what the judge calls right" if found.judge is None else "true labels, by people's marks"
        remarks.append(
            f"Certified on {found.n} answers, of which {found.kept} reach a confidence of "
            f"{number(found.threshold)} before the map, {found.right} of them right: with probability "
            f"{number(1 - found.delta, 2)}, at least {number(found.accuracy, 2)} of such answers are right. "
            f"This is about {marks}."
        )
    if policy.infeasible_folds:
        remarks.append(
            f"In {policy.infeasible_folds} of the five folds the other four cannot show what is asked, and "
            "everything counts as escalated."
        )
    return remarks


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in markdown, its cells shown as they are."""
    lines = [head, ["---"] * len(head), *([_md(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _md(text: str) -> str:
    """Text that markdown shows as it is: on one line, its marks escaped."""
    return re.sub(r"[\\`*_\[\]|<&~]", r"\\\g<0>", " ".join(text.split()))


def _pretty(value: JsonValue) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def template(name: str) -> "Template":
    """A page to be filled; whatever is put into it is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    folder = files("calibration.report")
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
    environment.tests["one_bin"] = words.is_one_bin
    environment.globals |= {
        "criterion": criterion,
        "FIGURES": words.FIGURES,
        "interval": interval,
        "MARKS": words.MARKS,
        "needed": words.needed,
        "number": number,
        "OUTCOMES": words.OUTCOMES,
        "policy_figures": policy_figures,
        "policy_remarks": policy_remarks,
        "STYLE": Markup(folder.joinpath("style.css").read_text("utf-8")),  # noqa: S704 - our own
    }
    return environment.from_string(folder.joinpath(name).read_text("utf-8"))
