"""Question sets on the Hugging Face hub, through `datasets`: TriviaQA and Natural Questions (open)."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue

from calibration.endpoints import Endpoint, hub_endpoints
from calibration.errors import DataError
from calibration.records import Question
from calibration.schema import Schema
from calibration.sources.formats import shown
from calibration.sources.rows import question_id


class HubSchema(Schema):
    """A question set on the hub; what it holds, not where it lies, is its identity.

    A question that stands there several times is one question with all its answers.
    """

    config: ClassVar[str | None]
    """Which of several tables of the repository."""

    repo: str
    """Name on the hub, or a folder laid out like it."""
    revision: str | None = None
    """Commit, tag or branch; name a commit, or a later upload changes the questions (and repeats the run)."""
    split: Literal["train", "validation"] = "train"
    """Which of its splits is read; our own splits are made from it."""
    limit: int | None = Field(default=None, ge=1)
    """Read only so many rows from the top."""

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The hub, which is asked for the table; of a folder, none."""
        return () if Path(self.repo).is_dir() else hub_endpoints()

    def identity(self) -> JsonValue:
        """The sha256 over its questions."""
        digest = hashlib.sha256()
        for question in self.questions():
            digest.update(question.model_dump_json().encode())
        return {"kind": type(self).__name__, "sha256": digest.hexdigest()}

    def questions(self) -> list[Question]:
        """The questions in the order of the table; an id is a hash of the question text.

        Raises:
            DataError: The hub does not give the table, or a row has no question or no answer.
        """
        answers: dict[str, dict[str, None]] = {}
        for number, row in enumerate(self._rows()):
            text = str(row.get("question") or "").strip()
            found = [answer for answer in map(str.strip, self.answers(row)) if answer]
            if not text or not found:
                raise DataError(
                    f"{self.repo} {self.split} row {number} must have a question and an answer; "
                    f"got {shown(text)} and {shown(found)}. Name another revision"
                )
            answers.setdefault(text, {}).update(dict.fromkeys(found))
        return [
            Question(id=question_id(text), text=text, answers=tuple(own)) for text, own in answers.items()
        ]

    @abstractmethod
    def answers(self, row: Mapping[str, Any]) -> Iterable[str]:
        """The accepted answers of one row, the canonical one first."""

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        from datasets import load_dataset

        try:
            table = load_dataset(self.repo, self.config, split=self.split, revision=self.revision)
        except (OSError, ValueError, RuntimeError) as error:
            problem = " ".join(str(error).split())
            raise DataError(
                f"{self.repo} {self.split} must be a data set on the hub; {problem}. Check its name and the "
                "connection, or name a folder that holds a copy as its repo"
            ) from error
        rows: Iterator[Mapping[str, Any]] = iter(table if self.limit is None else table.take(self.limit))
        return rows


class TriviaQA(HubSchema):
    """TriviaQA (Joshi et al. 2017, arXiv:1705.03551): 87,622 questions to train on, 11,313 to validate.

    Read without its documents and unfiltered, which has every question once.
    """

    config: ClassVar[str | None] = "unfiltered.nocontext"

    kind: Literal["triviaqa"] = "triviaqa"
    repo: str = "mandarjoshi/trivia_qa"
    """Name on the hub, or a folder laid out like it."""

    def answers(self, row: Mapping[str, Any]) -> Iterable[str]:
        """The answer and its aliases."""
        return [row["answer"]["value"], *row["answer"]["aliases"]]


class NqOpen(HubSchema):
    """Natural Questions, open (Lee et al. 2019, arXiv:1906.00300): 87,925 to train on, 3,610 to validate."""

    config: ClassVar[str | None] = None

    kind: Literal["nq_open"] = "nq_open"
    repo: str = "google-research-datasets/nq_open"
    """Name on the hub, or a folder laid out like it."""

    def answers(self, row: Mapping[str, Any]) -> Iterable[str]:
        """The short answers of all annotators."""
        answers: list[str] = row["answer"]
        return answers
