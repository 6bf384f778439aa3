"""Several question sets as one: some to learn from, others to see whether what was learnt carries over."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from calibration.errors import DataError
from calibration.records import Question
from calibration.schema import Schema
from calibration.sources.hub import NqOpen, TriviaQA
from calibration.sources.simpleqa import SimpleQA
from calibration.sources.table import Table

SetName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class Mixture(Schema):
    """Question sets by name. An id is that of the set with the set's name before it."""

    kind: Literal["mixture"] = "mixture"
    sets: dict[SetName, Annotated[Table | SimpleQA | TriviaQA | NqOpen, Field(discriminator="kind")]] = Field(
        min_length=1
    )
    """The question sets. Where a question has no topic, the name of its set is its topic."""
    shift: tuple[str, ...] = ()
    """Sets kept out of every other split; all their questions, and those of other sets that ask the same in
    almost the same words, become the split `shift`."""

    @model_validator(mode="after")
    def _shift_leaves_something(self) -> Self:
        if unknown := [name for name in self.shift if name not in self.sets]:
            raise ValueError(f"data.shift must be among {', '.join(self.sets)}; got {unknown[0]!r}")
        if set(self.shift) == set(self.sets):
            raise ValueError("data.shift must leave a set to learn from; got all of them")
        return self

    def questions(self) -> list[Question]:
        """The questions of one set after the other.

        Raises:
            DataError: A set cannot be used; the message names it.
        """
        return [question for name in self.sets for question in self._of(name)]

    def _of(self, name: str) -> Iterator[Question]:
        try:
            questions = self.sets[name].questions()
        except DataError as error:
            raise DataError(f"data.sets.{name}: {error}") from error
        for question in questions:
            yield question.model_copy(
                update={
                    "id": f"{name}:{question.id}",
                    "topic": name if question.topic == "Other" else question.topic,
                    "split": "shift" if name in self.shift else question.split,
                }
            )
