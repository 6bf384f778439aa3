"""Answers that anybody has, as a judge takes them; the table of its verdicts; how far two markings agree."""

import csv
import json
import math
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from calibration.errors import ConfigurationError, DataError
from calibration.judges.protocol import Item
from calibration.judges.recorded import LABELS
from calibration.metrics.inference import Estimate, exact_interval
from calibration.records import Question, Verdict
from calibration.schema import Schema
from calibration.sources.rows import FileRow, question_id, read_file

VERDICT_COLUMNS = ("verdict", "reason", "judge", "model_version", "extracted")
"""What a judge adds to an answer."""
_VALUES = {"correct": 1.0, "incorrect": 0.0, "not_attempted": 0.0, "unjudged": math.nan}
_MARKS = {word: _VALUES[label] for word, label in LABELS.items()} | {"right": 1.0, "wrong": 0.0}
"""The words of recorded labels, and two that a person may prefer."""


class AnswerColumns(Schema):
    """Which column of a table of answers says what."""

    id: str | None = None
    """What identifies the answer. Unset: `id` where the file has it, else a hash of the question."""
    question: str = "question"
    """The question."""
    gold: str = "gold"
    """The accepted answers: one text, or a list (in csv written as JSON). An answer to an empty cell stays
    unjudged."""
    answer: str = "answer"
    """The answer to be judged; an empty cell is no answer."""
    answer_type: str | None = None
    """What is asked for: Date, Number, Person, Place or another word. Unset: `answer_type` where the file has
    it."""
    gold_separator: str | None = None
    """What stands between several accepted answers in one text, such as "|". With it, no text is read as a
    list."""
    missing: tuple[str, ...] = ()
    """What stands in the answer where none could be read, beside an empty cell."""


@dataclass(frozen=True)
class Answers:
    """One table of answers, read."""

    path: Path
    rows: tuple[FileRow, ...]
    items: tuple[Item, ...]
    """One for each row."""
    used: frozenset[str]
    """Columns that went into the items."""

    @property
    def questions(self) -> list[Question]:
        """The questions, as judges check them before they begin."""
        return [Question(id=item.question_id, text=item.question, answers=item.golds) for item in self.items]

    def with_verdicts(self, verdicts: Sequence[Verdict]) -> list[dict[str, object]]:
        """One row for each answer: what was judged, the verdict, and the other columns as they were."""
        return [
            {
                "id": item.question_id,
                "question": item.question,
                "gold": list(item.golds),
                "answer": item.answer,
                "answer_type": item.answer_type,
                "verdict": verdict.label,
                **{name: getattr(verdict, name) for name in VERDICT_COLUMNS[1:]},
                **{name: cell for name, cell in row.cells.items() if name not in self.used},
            }
            for row, item, verdict in zip(self.rows, self.items, verdicts, strict=True)
        ]


def read_answers(path: Path, columns: AnswerColumns, others: Sequence[str] = ()) -> Answers:
    """Read answers from a csv, jsonl or parquet file.

    Args:
        path: The file.
        columns: Which column says what.
        others: Further columns that must be there.

    Raises:
        DataError: The file or a row cannot be used; the message names file, row, column and value. Rows of
            one id must be of one answer.
    """
    named = (columns.question, columns.gold, columns.answer, columns.id, columns.answer_type, *others)
    rows = read_file(path, [name for name in named if name is not None])
    present = {name for row in rows for name in row.cells}
    unnamed = {name for name in ("id", "answer_type") if getattr(columns, name) is None}
    columns = columns.model_copy(update={name: name for name in unnamed & present})
    used = (columns.question, columns.gold, columns.answer, columns.id, columns.answer_type)
    items: dict[str, tuple[Item, FileRow]] = {}
    ordered = []
    for row in rows:
        item = _item(row, columns)
        earlier, first = items.setdefault(item.question_id, (item, row))
        if earlier != item:
            column = columns.id or columns.question
            must = f"stand for one answer (row {first.number} has it with {earlier.answer[:60]!r})"
            remedy = "Give every answer an id of its own, and name that column"
            raise row.error(column, must, f"{row.text(column)} with {item.answer[:60]}", remedy)
        ordered.append(item)
    return Answers(path, tuple(rows), tuple(ordered), frozenset(filter(None, used)))


def check_carried(answers: Answers) -> None:
    """Refuse, before anything is paid for, what could not be written beside a verdict.

    Raises:
        DataError: A column has a name that a table of verdicts needs, or holds what is no text.
    """
    for row in answers.rows:
        for name, cell in row.cells.items():
            if name in answers.used:
                continue
            if name in VERDICT_COLUMNS:
                raise row.error(name, "have another name; this is the judge's", cell, "Rename the column")
            if name in AnswerColumns.model_fields:
                remedy = f"Rename the column, or name it with --{name.replace('_', '-')}"
                raise row.error(name, "have another name, or be what is judged", cell, remedy)
            if isinstance(cell, str):
                row.raw(name)


def read_mark(row: FileRow, column: str) -> float:
    """A mark that stands in a cell: 1 for right, 0 for wrong, nan for none.

    Raises:
        DataError: It is something else.
    """
    text = row.text(column).casefold()
    if text in _MARKS:
        return _MARKS[text]
    must = "be 1, 0, true, false, right, wrong, correct, incorrect, not_attempted or empty"
    raise row.error(column, must, row.text(column), "Correct the mark")


def _item(row: FileRow, columns: AnswerColumns) -> Item:
    question, answer = row.required(columns.question), row.text(columns.answer)
    return Item(
        question_id=row.required(columns.id) if columns.id else question_id(question),
        question=question,
        golds=_golds(row, columns),
        answer="" if answer in columns.missing else answer,
        answer_type=(row.text(columns.answer_type) or None) if columns.answer_type else None,
    )


def _golds(row: FileRow, columns: AnswerColumns) -> tuple[str, ...]:
    cell = row.cells.get(columns.gold)
    if isinstance(cell, str):
        text = row.text(columns.gold)
        parts = text.split(columns.gold_separator) if columns.gold_separator else _listed(text)
    else:
        parts = cell if isinstance(cell, list) else [row.text(columns.gold)]
    if odd := [part for part in parts if not isinstance(part, str)]:
        remedy = "Write every accepted answer as text, in quotes"
        raise row.error(columns.gold, "hold texts only", odd[0], remedy)
    return tuple(dict.fromkeys(gold for part in parts if (gold := str(part).strip())))


def _listed(text: str) -> list[object]:
    """The list that a text is when it is read as JSON; else the text as the only entry."""
    if text.startswith("["):
        try:
            return list(json.loads(text))
        except ValueError:
            pass
    return [text]


@dataclass(frozen=True)
class Agreement:
    """One marking beside another that is taken for the truth; answers without either mark are left out."""

    right_marked_right: int
    right: int
    """Answers that are right by the other marking."""
    wrong_marked_wrong: int
    wrong: int
    left_out: int = 0
    """Answers of which one of the two says nothing."""

    @property
    def n(self) -> int:
        """Answers that both have marked."""
        return self.right + self.wrong

    @property
    def agreement(self) -> Estimate:
        """Share of equal marks: 1 when all are, with its exact interval."""
        return _share(self.right_marked_right + self.wrong_marked_wrong, self.n)

    @property
    def sensitivity(self) -> Estimate:
        """Share marked right of what is right, with its exact interval; nan where nothing is."""
        return _share(self.right_marked_right, self.right)

    @property
    def specificity(self) -> Estimate:
        """Share marked wrong of what is wrong, with its exact interval; nan where nothing is."""
        return _share(self.wrong_marked_wrong, self.wrong)

    @property
    def kappa(self) -> float:
        """Agreement beyond chance: 1 when all marks are equal, 0 for marks that know nothing of each other.

        nan where both markings give one and the same mark only. Source: Cohen 1960, "A Coefficient of
        Agreement for Nominal Scales".

        >>> round(Agreement(20, 25, 15, 25).kappa, 3)  # .7 agree, .5 by chance
        0.4
        """
        if not self.n:
            return math.nan
        marked_right = self.right_marked_right + self.wrong - self.wrong_marked_wrong
        chance = (marked_right * self.right + (self.n - marked_right) * self.wrong) / self.n**2
        return math.nan if chance == 1 else (self.agreement.value - chance) / (1 - chance)


def agreement(marks: ArrayLike, truth: ArrayLike) -> Agreement:
    """Count how two markings of the same answers agree.

    Args:
        marks: Shape [n], 1 right, 0 wrong, nan for none.
        truth: Shape [n], likewise; what the marks are measured by.

    >>> found = agreement([1, 0, 1, float("nan")], [1, 0, 0, 1])
    >>> found.right_marked_right, found.right, found.wrong_marked_wrong, found.wrong, found.left_out
    (1, 1, 1, 2, 1)
    """
    said, known = (np.asarray(values, dtype=np.float64) for values in (marks, truth))
    if said.ndim != 1 or said.shape != known.shape:
        raise DataError(f"marks and truth must be two equally long lists; got {said.shape}, {known.shape}")
    both = ~(np.isnan(said) | np.isnan(known))
    return Agreement(
        right_marked_right=int((both & (said == 1) & (known == 1)).sum()),
        right=int((both & (known == 1)).sum()),
        wrong_marked_wrong=int((both & (said == 0) & (known == 0)).sum()),
        wrong=int((both & (known == 0)).sum()),
        left_out=int((~both).sum()),
    )


def _share(count: int, total: int) -> Estimate:
    if not total:
        return Estimate(math.nan, math.nan, math.nan)
    return Estimate(count / total, *exact_interval(count, total))


def check_table_path(path: Path, option: str = "--out") -> None:
    """Refuse, before work is done, a place where no table can be written.

    Raises:
        ConfigurationError: Its ending is not .csv, .jsonl or .parquet, or its folder cannot be written to.
    """
    if path.suffix not in _WRITERS:
        raise ConfigurationError(f"{option} must end in {', '.join(_WRITERS)}; got {path}")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigurationError(f"{option} must be a file in a folder that can be written to; got {path}")


def write_table(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write rows to a csv, jsonl or parquet file, all of them or none; whatever was there is replaced.

    Raises:
        ConfigurationError: It cannot be written.
    """
    check_table_path(path)
    names = list(dict.fromkeys(name for row in rows for name in row))
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        _WRITERS[path.suffix](draft, names, rows)
        draft.replace(path)
    except OSError as error:
        raise ConfigurationError(f"{path} must be written; {error.strerror}. Name another place") from error
    finally:
        draft.unlink(missing_ok=True)


def _write_csv(path: Path, names: Sequence[str], rows: Sequence[dict[str, object]]) -> None:
    # With a mark at the start spreadsheets read it as UTF-8; so does every reader of this project.
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([_text(row.get(name)) for name in names] for row in rows)


def _write_jsonl(path: Path, names: Sequence[str], rows: Sequence[dict[str, object]]) -> None:
    del names
    lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def _write_parquet(path: Path, names: Sequence[str], rows: Sequence[dict[str, object]]) -> None:
    columns = {name: [row.get(name) for row in rows] for name in names}
    arrays = {name: _array(name, cells) for name, cells in columns.items()}
    pq.write_table(pa.table(arrays), path, compression="zstd")


def _array(name: str, cells: list[object]) -> pa.Array:
    """A column of the cells' own type; of text where they are of several."""
    if name == "gold":
        return pa.array(cells, pa.list_(pa.string()))
    kinds = {type(cell) for cell in cells if cell is not None}
    if len(kinds) == 1 and kinds <= {bool, int, float}:
        return pa.array(cells)
    return pa.array([None if cell is None else _text(cell) for cell in cells], pa.string())


def _text(cell: object) -> str:
    """A cell as csv has it: lists and objects as JSON."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return json.dumps(cell, ensure_ascii=False, default=str) if isinstance(cell, list | dict) else str(cell)


_WRITERS: dict[str, Callable[[Path, Sequence[str], Sequence[dict[str, object]]], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
