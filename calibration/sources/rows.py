"""Data files read strictly: every row knows its file and number, so that an error can name them.

Rows are counted as in a spreadsheet: in a csv file the header is row 1, in a jsonl file the first line
is row 1, in a parquet file the first record is row 1.
"""

import ast
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from calibration.artifacts import file_sha256
from calibration.errors import DataError
from calibration.schema import Schema
from calibration.sources.formats import ending, load, shown


class FileSchema(Schema):
    """A setting that points at a data file; the file's content, not its place, is its identity."""

    path: Path
    """The file: .csv, .csv.gz, .jsonl or .parquet."""

    def identity(self) -> JsonValue:
        """The settings, with the file's sha256 in place of its path."""
        return {**self.model_dump(mode="json", exclude={"path"}), "sha256": self.content_sha256()}

    def content_sha256(self) -> str:
        """The sha256 of the file's bytes, in hexadecimal."""
        _check_exists(self.path)
        return file_sha256(self.path)


@dataclass(frozen=True, slots=True)
class FileRow:
    """One row of a data file."""

    path: Path
    number: int
    cells: Mapping[str, object]

    def raw(self, column: str) -> str:
        """The cell as text, white space kept; "" where the file has nothing.

        Raises:
            DataError: The cell is a list or an object, or holds characters that are no text.
        """
        value = self.cells.get(column)
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, list | dict):
            raise self.error(column, "be text", value, "Write one value in the cell")
        text = "" if value is None else str(value)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise self.error(column, "be valid Unicode", text, "Write the file again as UTF-8")
        return text

    def text(self, column: str) -> str:
        """The cell as text without the white space around it."""
        return self.raw(column).strip()

    def required(self, column: str) -> str:
        """The cell as text, which must not be empty."""
        if text := self.text(column):
            return text
        raise self.error(column, "not be empty", "", "Fill in the cell or delete the row")

    def values(self, column: str) -> list[object]:
        """The cell as a list: a list in jsonl and parquet, a JSON or Python list written out in csv.

        Raises:
            DataError: The cell holds no list.
        """
        value = self.cells.get(column)
        if isinstance(value, str):
            value = _read_list(value)
        if isinstance(value, list):
            return value
        raise self.error(
            column, "be a list such as [0.5, 0.9]", self.cells.get(column), "Write a JSON or Python list"
        )

    def error(self, column: str, must: str, value: object, remedy: str) -> DataError:
        """The error that names this row: what the cell must be, what it is, and what to do."""
        return DataError(
            f"{self.path} row {self.number}: {column!r} must {must}; got {shown(value)}. {remedy}"
        )


def stem(path: Path) -> str:
    """The name of a data file without the ending of its format; any other dot belongs to the name.

    >>> stem(Path("data/gemma-2.5.csv.gz")), stem(Path("gemma-2.5"))
    ('gemma-2.5', 'gemma-2.5')
    """
    return path.name[: len(path.name) - len(ending(path) or "")]


def question_id(text: str) -> str:
    """The id of a question that has none of its own: the first 16 hexadecimal digits of its sha256.

    >>> question_id("What is the capital of France?")
    '115049a298532be2'
    """
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def read_file(path: Path, columns: Sequence[str], limit: int | None = None) -> list[FileRow]:
    """The rows of a csv, jsonl or parquet file; rows without any content are no rows.

    Args:
        path: The file.
        columns: Columns that must be there.
        limit: Read no more rows than this.

    Raises:
        DataError: The file is missing, empty, unreadable, or lacks a column.
    """
    _check_exists(path)
    present, cells = load(path)
    if absent := [column for column in columns if column not in present]:
        raise DataError(
            f"{path} must have a column {absent[0]!r}; it has {', '.join(map(repr, present))}. "
            "Name the column that is meant"
        )
    rows = [
        FileRow(path, number, row) for number, row in cells if any(v not in ("", None) for v in row.values())
    ]
    if not rows:
        raise DataError(f"{path} must hold rows under its header; got none. Give a file with rows")
    return rows[:limit]


def key_rows(rows: Sequence[FileRow], *, question: str, id_column: str | None) -> dict[str, FileRow]:
    """Rows by question id: the id column's value, or the hash of the question text.

    Raises:
        DataError: Two rows have the same id, or a cell that makes the id is empty.
    """
    keyed: dict[str, FileRow] = {}
    for row in rows:
        key = row.required(id_column) if id_column else question_id(row.required(question))
        if earlier := keyed.get(key):
            column = id_column or question
            must = f"be unique (row {earlier.number} has the same)"
            raise row.error(column, must, row.text(column), "Delete one of the two rows")
        keyed[key] = row
    return keyed


def check_covered(path: Path, what: str, keyed: Collection[str], asked: Iterable[tuple[str, str]]) -> None:
    """Refuse a file that has no row for some question.

    Args:
        path: The file.
        what: What a row holds, such as "a label".
        keyed: Ids that have a row.
        asked: Id and text of each question.

    Raises:
        DataError: Names the first question without a row.
    """
    if absent := [(key, text) for key, text in asked if key not in keyed]:
        key, text = absent[0]
        raise DataError(
            f"{path} must hold {what} for every question; got none for {key!r} ({shown(text)}) and "
            f"{len(absent) - 1} more. Add them or leave the questions out"
        )


def _check_exists(path: Path) -> None:
    try:
        if path.is_file():
            return
        found = "it is a folder" if path.is_dir() else "there is no such file"
    except OSError as error:  # a name too long, or a folder that must not be looked into
        found = str(error.strerror)
    raise DataError(f"{path} must be a data file; {found}. Check its name")


def _read_list(text: str) -> object:
    """A list written as JSON or Python; None when the text is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None
