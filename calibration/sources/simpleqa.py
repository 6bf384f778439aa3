"""The SimpleQA test set, in the csv file its authors publish."""

import ast
from typing import Literal

from pydantic import Field

from calibration.records import Question
from calibration.sources.rows import FileRow, FileSchema, key_rows, read_file


class SimpleQA(FileSchema):
    """SimpleQA: 4326 short factual questions of 10 topics and 5 answer types.

    The file is `simple_qa_test_set.csv` of openai/simple-evals (MIT), with the columns `metadata`,
    `problem` and `answer`. It is one split; `Splits` makes the held-out one.
    """

    kind: Literal["simpleqa"] = "simpleqa"
    limit: int | None = Field(default=None, ge=1)
    """Read only so many rows from the top."""

    def questions(self) -> list[Question]:
        """The questions in the order of the file; an id is a hash of the question text.

        Raises:
            DataError: The file or a row cannot be used; the message names file, row, column and value.
        """
        rows = read_file(self.path, ["metadata", "problem", "answer"], self.limit)
        keyed = key_rows(rows, question="problem", id_column=None)
        return [_question(key, row) for key, row in keyed.items()]


def _question(key: str, row: FileRow) -> Question:
    topic, answer_type = _metadata(row)
    return Question(
        id=key,
        text=row.required("problem"),
        answers=(row.required("answer"),),
        topic=topic,
        answer_type=answer_type,
    )


def _metadata(row: FileRow) -> tuple[str, str]:
    """Topic and answer type; the cell is a Python dictionary, not JSON."""
    try:
        metadata = ast.literal_eval(row.required("metadata"))
        return str(metadata["topic"]), str(metadata["answer_type"])
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        must = "be a dictionary with 'topic' and 'answer_type'"
        raise row.error(
            "metadata", must, row.text("metadata"), "Download the file again; Table reads any other layout"
        ) from error
