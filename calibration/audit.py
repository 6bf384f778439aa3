"""The audit of a table: confidences and marks that anybody has, with or without a second system."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import Field

from calibration.artifacts import file_sha256
from calibration.errors import DataError
from calibration.evaluation import Study, assess
from calibration.judges.recorded import LABELS
from calibration.measures import judge_error, judge_row
from calibration.metrics.errors import BIN_SIZE
from calibration.metrics.outcomes import FloatArray
from calibration.results import Evaluation
from calibration.routing.goals import CostOptimal, Goal
from calibration.routing.policy import Digests
from calibration.routing.rules import Prices
from calibration.schema import Schema
from calibration.sources.rows import FileRow, key_rows, read_file
from calibration.systems import Scores, System


class Columns(Schema):
    """Which column of a table says what."""

    confidence: str = "confidence"
    """Confidence of each answer, in [0, 1]; an empty cell is a confidence that could not be read."""
    correct: str = "correct"
    """1, 0, true, false, correct, incorrect or not_attempted; an empty cell is an answer nobody judged."""
    id: str | None = None
    """What identifies the question; two systems are paired by it. Unset, the number of the row."""
    group: str | None = None
    """What kind of question it is, such as its topic."""
    truth: str | None = None
    """A person's mark of the answers that were audited, written as `correct`; empty elsewhere."""
    missing: tuple[str, ...] = ()
    """What stands in `confidence` where none could be read, beside an empty cell."""


@dataclass(frozen=True)
class Answers:
    """One table, read."""

    path: Path
    rows: tuple[FileRow, ...]
    scores: Scores
    truth: FloatArray
    """Shape [n], a person's marks; nan where nobody audited."""


def read_answers(path: Path, columns: Columns, unnamed: str = "row") -> Answers:
    """Read a csv, jsonl or parquet file.

    Args:
        path: The file.
        columns: Which column says what.
        unnamed: What an id begins with where no column holds ids; the row's number follows.

    Raises:
        DataError: The file or a row cannot be used; the message names file, row, column and value.
    """
    optional = filter(None, (columns.id, columns.group, columns.truth))
    rows = read_file(path, [columns.confidence, columns.correct, *optional])
    if columns.id is None:
        keyed = {f"{unnamed} {row.number}": row for row in rows}
    else:
        keyed = key_rows(rows, question=columns.id, id_column=columns.id)
    kinds = tuple(row.text(columns.group) or "Other" if columns.group else "Other" for row in rows)
    scores = Scores(
        ids=tuple(keyed),
        confidence=np.array([_confidence(row, columns) for row in rows]),
        correct=np.array([_mark(row, columns.correct) for row in rows]),
        topic=("Other",) * len(rows),
        answer_type=kinds,
    )
    truth = np.array([_mark(row, columns.truth) if columns.truth else math.nan for row in rows])
    answers = Answers(path, tuple(rows), scores, truth)
    _check_enough(answers, columns)
    return answers


def _confidence(row: FileRow, columns: Columns) -> float:
    text = row.text(columns.confidence)
    if not text or text in columns.missing:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if 0 <= value <= 1:
        return value
    remedy = (
        "Divide percentages by 100; where no confidence could be read, leave the cell empty or list its "
        "text in `missing`"
    )
    raise row.error(columns.confidence, "be a number in [0, 1]", text, remedy)


def _mark(row: FileRow, column: str) -> float:
    text = row.text(column).casefold()
    if text not in LABELS:
        must = "be 1, 0, true, false, correct, incorrect, not_attempted or empty"
        raise row.error(column, must, row.text(column), "Correct the mark")
    label = LABELS[text]
    return math.nan if label == "unjudged" else float(label == "correct")


def _check_enough(answers: Answers, columns: Columns) -> None:
    """Refuse a table of which nothing can be said."""
    usable = answers.scores.usable
    n, right = int(usable.sum()), int(answers.scores.correct[usable].sum())
    what = f"{columns.confidence!r} and {columns.correct!r}"
    if n < BIN_SIZE:
        raise DataError(
            f"{answers.path} must hold at least {BIN_SIZE} rows with both {what}, one bin; got {n} of "
            f"{len(usable)} rows, the last is row {answers.rows[-1].number}. Add rows"
        )
    if right in (0, n):
        first = answers.rows[int(usable.argmax())]
        raise DataError(
            f"{answers.path} must hold right and wrong answers; all {n} are alike: row {first.number} has "
            f"{columns.correct!r} {first.text(columns.correct)!r}, and so has every other. Check the column"
        )


def check_paired(one: Answers, other: Answers) -> None:
    """Refuse two tables that are not about the same questions."""
    for answers, against in ((one, other), (other, one)):
        known = set(against.scores.ids)
        for key, row in zip(answers.scores.ids, answers.rows, strict=True):
            if key not in known:
                raise DataError(
                    f"{answers.path} row {row.number}: question {key!r} must stand in {against.path} as "
                    "well, to be compared. Name the column of the ids, or leave the question out of both"
                )


class Source(Schema):
    """One system's table."""

    path: Path
    """A csv, jsonl or parquet file, one row an answer."""
    columns: Columns = Columns()
    """Which column says what."""


class Audit(Schema):
    """What to audit."""

    name: str
    """What the audited system is called."""
    table: Source
    """Its answers."""
    base: Source | None = None
    """The system that it is compared with, on the same questions."""
    base_name: str = "base"
    """What that one is called."""
    calibration: Path | None = None
    """Further answers of the audited system, in the same columns, that maps and thresholds are fitted on.
    Unset, maps are cross-fitted on the answers themselves."""
    prices: Prices = Prices()
    """What answers cost and are worth."""
    router: Goal = CostOptimal()
    """What the router's policy aims at."""
    seed: int = Field(default=0, ge=0)
    """Seeds the intervals."""

    def run(self) -> Evaluation:
        """Compute every number that the tables allow.

        Raises:
            DataError: A table or a row cannot be used, or the two tables are about different questions.
        """
        test = read_answers(self.table.path, self.table.columns)
        study = self._study(test)
        audited = study.trained[0] if study.trained else study.base
        row = judge_row(audited, test.truth, self.seed) if self.table.columns.truth else None
        evaluation = assess(
            study,
            prices=self.prices,
            router=self.router,
            measured=datetime.now(UTC),
            seed=self.seed,
            judge=judge_error(row) if row else None,
        )
        policies = {
            name: policy.model_copy(update={"digests": Digests(data=self._digest(name))})
            for name, policy in evaluation.policies.items()
        }
        return evaluation.model_copy(update={"judge": (row,) if row else (), "policies": policies})

    def _digest(self, system: str) -> str:
        """Digest of the table that a system's policy was made from."""
        if self.base is not None and system == "base":
            return file_sha256(self.base.path)
        return file_sha256(self.calibration or self.table.path)

    def _study(self, test: Answers) -> Study:
        splits = {"test": test.scores}
        if self.calibration is not None:
            known = read_answers(self.calibration, self.table.columns, "calibration row")
            splits["calibration"] = known.scores
        readout = self.table.columns.confidence
        if self.base is None:
            return Study(model=self.name, base=System("base", readout, splits))
        other = read_answers(self.base.path, self.base.columns)
        check_paired(test, other)
        base = System("base", self.base.columns.confidence, {"test": other.scores})
        return Study(model=self.base_name, base=base, trained=(System(self.name, readout, splits),))
