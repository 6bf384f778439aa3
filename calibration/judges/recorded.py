"""Labels that somebody already has, looked up by question."""

from collections.abc import Callable, Sequence
from typing import Literal

from calibration.judges.protocol import Item
from calibration.records import Label, Question, Verdict
from calibration.sources.rows import FileRow, FileSchema, check_covered, key_rows, read_file

LABELS: dict[str, Label] = {
    **dict.fromkeys(("1", "1.0", "true", "correct"), "correct"),
    **dict.fromkeys(("0", "0.0", "false", "incorrect"), "incorrect"),
    "not_attempted": "not_attempted",
    "unjudged": "unjudged",
    "": "unjudged",
}
"""What a file may say of an answer, in any case."""


class RecordedLabels(FileSchema):
    """Labels recorded in a csv, jsonl or parquet file, one row a question."""

    kind: Literal["recorded"] = "recorded"
    id: str | None = None
    """Column of the question ids; without one, an id is a hash of the question text."""
    question: str = "question"
    """Column of the question text."""
    label: str = "label"
    """Column of the label: 1, 1.0, true or correct; 0, 0.0, false or incorrect; not_attempted. An empty cell
    or unjudged leaves the answer unjudged."""
    answer: str | None = None
    """Column of the answer that was labelled. With it, a label is used for that answer only and any other
    answer is unjudged; without it, every answer to the question gets the label."""
    missing: tuple[str, ...] = ()
    """What stands in `answer` where no answer could be read, beside an empty cell."""

    @property
    def version(self) -> str:
        """Names the file by its content."""
        return f"recorded@1:{self.content_sha256()[:12]}"

    def check(self, questions: Sequence[Question]) -> None:
        """Raise what `judge` would raise."""
        check_covered(self.path, "a label", self._labels(), [(q.id, q.text) for q in questions])

    async def judge(self, items: Sequence[Item], *, progress: Callable[[float, str], None]) -> list[Verdict]:
        """The recorded label of each item, in their order; progress is told once, at the end.

        Raises:
            DataError: The file or a row cannot be used, or a question has no row.
        """
        labels, version = self._labels(), self.version
        check_covered(self.path, "a label", labels, [(item.question_id, item.question) for item in items])
        progress(1.0, f"{len(items)} recorded labels")
        return [self._verdict(item, *labels[item.question_id], version) for item in items]

    def _labels(self) -> dict[str, tuple[FileRow, Label]]:
        columns = [self.id or self.question, self.label, *([self.answer] if self.answer else [])]
        keyed = key_rows(read_file(self.path, columns), question=self.question, id_column=self.id)
        return {key: (row, self._label(row)) for key, row in keyed.items()}

    def _label(self, row: FileRow) -> Label:
        text = row.text(self.label).casefold()
        if text in LABELS:
            return LABELS[text]
        must = "be 1, 0, true, false, correct, incorrect, not_attempted, unjudged or empty"
        raise row.error(self.label, must, row.text(self.label), "Correct the label")

    def _labelled(self, row: FileRow, column: str) -> str:
        text = row.text(column)
        return "" if text in self.missing else text

    def _verdict(self, item: Item, row: FileRow, label: Label, version: str) -> Verdict:
        reason = f"row {row.number}"
        if self.answer and self._labelled(row, self.answer) != item.answer.strip():
            label, reason = "unjudged", f"row {row.number} labels another answer"
        elif label == "unjudged":
            reason = f"row {row.number} has no label"
        return Verdict(question_id=item.question_id, label=label, judge=version, reason=reason)
