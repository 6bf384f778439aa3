"""The audit of a judge: answers drawn for a person to mark, and what the marks say of the judge.

Half of the answers are drawn among those that the judge called right and half among those it called wrong,
at random within each, because errors on the rarer side would else hardly be seen. From these alone its
sensitivity and specificity follow. Answers on which it and the rules of `exact` disagree hold more of its
errors than others; they are drawn apart, reported apart, and never counted in those rates.

The person sees neither the judge's verdict nor which half an answer is from, in an order that tells nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from calibration.artifacts import Store
from calibration.confidence import READOUTS, read_confidence
from calibration.errors import DataError
from calibration.judges.exact import mark as mark_by_rule
from calibration.judges.protocol import Item
from calibration.marking import (
    VERDICT_COLUMNS,
    Agreement,
    AnswerColumns,
    agreement,
    read_answers,
    read_mark,
)
from calibration.metrics.noise import JudgeAudit, audit_judge
from calibration.metrics.outcomes import FloatArray
from calibration.records import Label
from calibration.sources.rows import FileRow, FileSchema, key_rows, read_file
from calibration.stages.baseline import Baseline

Stratum = Literal["mark", "disagreement"]
"""Drawn within a mark, or picked because two judges disagree."""
SAMPLE_COLUMNS = ("id", "question", "gold", "answer", "stratum", "truth")


class AuditFile(FileSchema):
    """What `slm-calibration judge-audit read` wrote: verdicts, some of which a person has marked as well."""

    def read(self, judge: str) -> JudgeAudit:
        """What it says of a judge.

        Args:
            judge: Name and version of the judge that it must be about.

        Raises:
            DataError: It is of another judge, a row cannot be used, or too few answers were audited.
        """
        verdicts = read_verdicts(self.path, ("judge", "truth"))
        truth = np.array([read_mark(row, "truth") for row in verdicts.rows])
        for row in verdicts.rows:
            if (by := row.text("judge")) != judge:
                must = f"be {judge!r}, the judge whose errors it is to tell"
                raise row.error("judge", must, by, "Audit that judge, or leave judge_audit out")
        judged = np.isfinite(verdicts.marks)
        audit = audit_judge(verdicts.marks[judged], truth[judged])
        if audit.youden <= 0:
            raise DataError(
                f"{self.path} must tell of a judge that is better than chance (sensitivity + specificity > 1)"
                f"; got {audit.sensitivity.value:.3f} + {audit.specificity.value:.3f}. Take another judge"
            )
        return audit


def error_rate(audit: JudgeAudit) -> float:
    """Share of a judge's marks that are wrong, among answers like those from which the audit was drawn.

    >>> error_rate(JudgeAudit(right_marked_right=8, right=10, wrong_marked_wrong=27, wrong=30))
    0.125
    """
    lost, passed = audit.right - audit.right_marked_right, audit.wrong - audit.wrong_marked_wrong
    if audit.marked_right_share is None:
        return (lost + passed) / (audit.right + audit.wrong)
    marked_right, marked_wrong = audit.counts(by_mark=True)
    share = audit.marked_right_share
    return share * passed / sum(marked_right) + (1 - share) * lost / sum(marked_wrong)


@dataclass(frozen=True)
class Verdicts:
    """A judge's verdicts on different answers."""

    path: Path
    rows: tuple[FileRow, ...]
    items: tuple[Item, ...]
    marks: FloatArray
    """Shape [n], 1 marked right, 0 marked wrong, nan unjudged."""

    @cached_property
    def disagreements(self) -> list[int]:
        """Where the rules of `exact` say something else, by position."""
        rules = [_mark(mark_by_rule(item)[0]) for item in self.items]
        return [i for i, rule in enumerate(rules) if abs(rule - self.marks[i]) == 1]


def read_verdicts(path: Path, others: Sequence[str] = ()) -> Verdicts:
    """Read a table of verdicts as the command `judge` writes it; equal rows count once.

    Args:
        path: The file.
        others: Columns that must be there beside those of a verdict.

    Raises:
        DataError: The file or a row cannot be used; the message names file, row, column and value.
    """
    answers = read_answers(path, AnswerColumns(), ("verdict", *others))
    first: dict[str, tuple[FileRow, Item, str]] = {}
    for row, item in zip(answers.rows, answers.items, strict=True):
        label = row.text("verdict")
        if label not in get_args(Label):
            raise row.error("verdict", f"be one of {', '.join(get_args(Label))}", label, "Judge it again")
        earlier, _, known = first.setdefault(item.question_id, (row, item, label))
        if known != label:
            must = f"be {known!r} as in row {earlier.number}, which is of the same answer"
            raise row.error("verdict", must, label, "Delete one of the two rows")
    rows, items, labels = zip(*first.values(), strict=True)
    return Verdicts(path, rows, items, np.array([_mark(label) for label in labels]))


def verdict_rows(baseline: Baseline, store: Store) -> list[dict[str, object]]:
    """The verdicts on all measured models' answers, as the command `judge` writes them.

    An answer's id is made of the model, the way of asking and the question's id; `confidence` is read in
    the first way that the way of asking allows.
    """
    return [
        {
            "id": f"{measured.model} {answered.elicitation} {row.question.id}",
            "question": row.question.text,
            "gold": list(row.question.answers),
            "answer": row.generation.answer,
            "answer_type": row.question.answer_type,
            "verdict": row.verdict.label,
            **{name: getattr(row.verdict, name) for name in VERDICT_COLUMNS[1:]},
            "split": row.question.split,
            "confidence": read_confidence(row.generation, READOUTS[answered.elicitation][0]),
        }
        for measured in baseline.models
        for answered in measured.answered
        for row in answered.judged(baseline.questions, store)
    ]


def draw(verdicts: Verdicts, n: int, *, seed: int, disagreements: int) -> list[dict[str, object]]:
    """Draw answers for a person to mark.

    Args:
        verdicts: What the judge said.
        n: Answers to draw, half of either mark; where one mark has too few, more of the other.
        seed: Seeds the draw.
        disagreements: The most further answers to draw among those on which the rules of `exact` disagree.

    Returns:
        Rows of `SAMPLE_COLUMNS` in random order, `truth` empty.

    Raises:
        DataError: All answers have the same mark.
    """
    rng = np.random.default_rng(seed)
    right, wrong = (rng.permutation(np.flatnonzero(verdicts.marks == mark)) for mark in (1, 0))
    if not right.size or not wrong.size:
        raise DataError(
            f"{verdicts.path} must hold answers judged right and judged wrong; got {right.size} and "
            f"{wrong.size}. An audit of one mark alone tells nothing; judge more answers"
        )
    of_right = min(right.size, max(n // 2, n - wrong.size))
    drawn = {*right[:of_right].tolist(), *wrong[: n - of_right].tolist()}
    picked: list[tuple[int, Stratum]] = [(i, "mark") for i in sorted(drawn)]
    if disagreements:
        others = np.array([i for i in verdicts.disagreements if i not in drawn], dtype=int)
        picked += [(i, "disagreement") for i in rng.permutation(others)[:disagreements].tolist()]
    shuffled = [picked[i] for i in rng.permutation(len(picked))]
    return [_sample_row(verdicts.items[i], stratum) for i, stratum in shuffled]


def _sample_row(item: Item, stratum: Stratum) -> dict[str, object]:
    cells = (item.question_id, item.question, list(item.golds), item.answer, stratum, None)
    return dict(zip(SAMPLE_COLUMNS, cells, strict=True))


def _mark(label: str) -> float:
    return math.nan if label == "unjudged" else float(label == "correct")


@dataclass(frozen=True)
class Sample:
    """What a person said of the answers that were drawn."""

    truth: FloatArray
    """Shape [n] of all verdicts, for those drawn within a mark; nan elsewhere and where not filled in."""
    of_disagreement: FloatArray
    """Likewise, of the answers picked because two judges disagree."""
    unfilled: int
    """Rows that the person left open."""

    def table(self, verdicts: Verdicts) -> list[dict[str, object]]:
        """The verdicts with `truth` and, apart from it, `truth_of_disagreement`; empty elsewhere."""
        return [
            {**row.cells, "truth": _filled(truth), "truth_of_disagreement": _filled(other)}
            for row, truth, other in zip(verdicts.rows, self.truth, self.of_disagreement, strict=True)
        ]


def read_sample(path: Path, verdicts: Verdicts) -> Sample:
    """Read a sample that a person has filled in.

    Raises:
        DataError: The file or a row cannot be used, or was not drawn from these verdicts; the message names
            file, row, column and value.
    """
    place = {item.question_id: i for i, item in enumerate(verdicts.items)}
    by_stratum = {stratum: np.full(len(place), math.nan) for stratum in get_args(Stratum)}
    rows = key_rows(read_file(path, SAMPLE_COLUMNS), question="question", id_column="id")
    for key, row in rows.items():
        stratum = row.text("stratum")
        if key not in place:
            must = f"be of an answer in {verdicts.path}"
            raise row.error("id", must, key, "Give the table that the sample was drawn from")
        if stratum not in by_stratum:
            must = f"be one of {', '.join(by_stratum)}"
            raise row.error("stratum", must, stratum, "Write what stood there")
        _check_same(row, verdicts.items[place[key]], verdicts.path)
        by_stratum[stratum][place[key]] = read_mark(row, "truth")
    filled = sum(int(np.isfinite(truth).sum()) for truth in by_stratum.values())
    return Sample(by_stratum["mark"], by_stratum["disagreement"], len(rows) - filled)


def _check_same(row: FileRow, item: Item, path: Path) -> None:
    """Refuse a mark of another answer. Spreadsheets change white space and dates; letters tell enough."""
    for column, known in (("question", item.question), ("answer", item.answer)):
        here, there = ([c for c in text.casefold() if c.isalpha()] for text in (row.text(column), known))
        if here != there:
            must = f"be what {path} has for {item.question_id!r}, {known[:60]!r}"
            raise row.error(column, must, row.text(column), "Draw a new sample from it")


def _filled(truth: float) -> str:
    return "" if math.isnan(truth) else str(int(truth))


@dataclass(frozen=True)
class Tercile:
    """The judge on a third of the answers, by confidence."""

    low: float
    high: float
    """The least and the largest confidence in it."""
    audit: JudgeAudit | None
    """None where too little of it was audited."""
    why: str = ""
    """Why there is none."""


@dataclass(frozen=True)
class JudgeReport:
    """What an audit says of a judge."""

    audit: JudgeAudit
    """From the answers drawn within a mark alone."""
    disagreement: Agreement
    """The judge against the person where the rules disagree with it. These were picked; no rate of all."""
    terciles: tuple[Tercile, ...] = ()
    """Empty without confidences."""
    without_confidence: int = 0
    """Judged answers whose confidence is missing; they are in no tercile."""


def report(verdicts: Verdicts, sample: Sample, confidence: str | None = None) -> JudgeReport:
    """Estimate how often the judge is right about right and about wrong answers.

    Args:
        verdicts: What it said.
        sample: What a person said.
        confidence: Column of the answers' confidences, to look at a third of the answers at a time: a judge
            that is lenient with confident answers is not described by one pair of rates.

    Raises:
        DataError: Too few answers were audited, or a confidence is no number.
    """
    judged = np.isfinite(verdicts.marks)
    audit = audit_judge(verdicts.marks[judged], sample.truth[judged])
    disagreement = agreement(verdicts.marks, sample.of_disagreement)
    if confidence is None:
        return JudgeReport(audit, disagreement)
    values = np.array([_number(row, confidence) for row in verdicts.rows])
    usable = judged & np.isfinite(values)
    missing = int((judged & ~usable).sum())
    marks, truth, values = verdicts.marks[usable], sample.truth[usable], values[usable]
    place = np.searchsorted(np.quantile(values, (1 / 3, 2 / 3)), values) if values.size else values
    thirds = [(values[place == k], marks[place == k], truth[place == k]) for k in range(3)]
    return JudgeReport(
        audit, disagreement, tuple(_tercile(*third) for third in thirds if third[0].size), missing
    )


def _tercile(values: FloatArray, marks: FloatArray, truth: FloatArray) -> Tercile:
    low, high = float(values.min()), float(values.max())
    try:
        return Tercile(low, high, audit_judge(marks, truth))
    except DataError as error:
        return Tercile(low, high, None, str(error))


def _number(row: FileRow, column: str) -> float:
    text = row.text(column)
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isfinite(value):
        return value
    raise row.error(column, "be a number or empty", text, "Correct it, or empty the cell")
