"""Questions from a table of one's own."""

from typing import Literal

from pydantic import Field

from calibration.errors import DataError
from calibration.records import Question
from calibration.sources.rows import FileRow, FileSchema, key_rows, read_file


class Table(FileSchema):
    """Questions and answers in a csv, jsonl or parquet file."""

    kind: Literal["table"] = "table"
    id: str | None = None
    """Column of the ids; without one, an id is a hash of the question text."""
    question: str = "question"
    """Column of the question text."""
    answer: str = "answer"
    """Column of the canonical answer. Everything written there is an answer, "none" and "NA" too."""
    aliases: str | None = None
    """Column of further accepted answers: separated by "|" in csv, a list in jsonl and parquet."""
    topic: str | None = None
    """Column of the topic; an empty cell is topic "Other"."""
    answer_type: str | None = None
    """Column of the answer type; an empty cell is type "Other"."""
    limit: int | None = Field(default=None, ge=1)
    """Read only so many rows from the top."""
    unanswered: int = Field(default=0, ge=0)
    """How many rows are known to have no answer. They stay, and only a judge that needs none can mark them;
    any other number of them is an error, so that none goes unseen."""

    def questions(self) -> list[Question]:
        """The questions in the order of the file.

        Raises:
            DataError: The file or a row cannot be used; the message names file, row, column and value.
        """
        optional = (self.id, self.aliases, self.topic, self.answer_type)
        columns = [self.question, self.answer, *(column for column in optional if column)]
        rows = read_file(self.path, columns, self.limit)
        self._check_answered(rows)
        keyed = key_rows(rows, question=self.question, id_column=self.id)
        return [self._question(key, row) for key, row in keyed.items()]

    def _check_answered(self, rows: list[FileRow]) -> None:
        without = [row for row in rows if not row.text(self.answer)]
        if len(without) != self.unanswered:
            where = f" (the first is row {without[0].number})" if without else ""
            raise DataError(
                f"{self.path} must have {self.unanswered} rows whose {self.answer!r} is empty; got "
                f"{len(without)}{where}. Fill in the answer or delete the row; to keep such rows, set "
                f"unanswered = {len(without)}"
            )

    def _question(self, key: str, row: FileRow) -> Question:
        return Question(
            id=key,
            text=row.required(self.question),
            answers=tuple(dict.fromkeys(filter(None, [row.text(self.answer), *self._aliases(row)]))),
            topic=(self.topic and row.text(self.topic)) or "Other",
            answer_type=(self.answer_type and row.text(self.answer_type)) or "Other",
        )

    def _aliases(self, row: FileRow) -> list[str]:
        if self.aliases is None or row.cells.get(self.aliases) in ("", None):
            return []
        if isinstance(row.cells[self.aliases], str):
            parts: list[object] = list(row.text(self.aliases).split("|"))
        else:
            parts = row.values(self.aliases)
        if odd := [part for part in parts if not isinstance(part, str)]:
            raise row.error(self.aliases, "hold texts only", odd[0], "Write every alias as text")
        return [alias for part in parts if (alias := str(part).strip())]
