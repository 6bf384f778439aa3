"""Which question is used for what, decided by a hash of its id alone."""

import hashlib
import math
import re
from collections.abc import Sequence
from typing import Self, get_args

from pydantic import Field, model_validator

from calibration.errors import ConfigurationError
from calibration.records import Question, Split
from calibration.schema import Schema

_STOP_WORDS = frozenset(
    "a an and are as at be by did do does for from had has have in is it its of on or that the "  # noqa: SIM905 - easy to read
    "their this to was were what when where which who whom whose with".split()
)


class Splits(Schema):
    """Shares of the questions by use.

    A question keeps its split when others are added, removed or reordered, because only its own id
    decides. The one exception guards the test split: questions that ask the same thing in almost the same
    words go together, with whichever of them has the smallest hash.
    """

    train: float = Field(default=0.5, ge=0, le=1)
    """What methods learn from."""
    calibration: float = Field(default=0.15, ge=0, le=1)
    """What post-hoc maps are fitted on."""
    validation: float = Field(default=0.1, ge=0, le=1)
    """What choices are made on."""
    test: float = Field(default=0.25, ge=0, le=1)
    """What is opened by the evaluation only."""
    shift_topics: tuple[str, ...] = ()
    """Topics kept out of every other split; all their questions become the split `shift`, as do those that
    their source keeps out itself."""

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        shares = self._shares()
        if not math.isclose(total := math.fsum(shares.values()), 1.0, abs_tol=1e-9):
            given = ", ".join(f"{name} {share:g}" for name, share in shares.items())
            raise ValueError(f"split fractions must sum to 1; got {total:g} ({given}). Change one of them")
        return self

    def assign(self, questions: Sequence[Question]) -> list[Question]:
        """The same questions in the same order, each with its split; `shift` stays `shift`.

        Raises:
            ConfigurationError: A shift topic is not in the data, or a split that should hold questions
                would be empty.
        """
        self._check_topics(questions)
        groups: dict[str, list[Question]] = {}
        for question in questions:
            groups.setdefault(normal_form(question.text), []).append(question)
        split_of = {form: self._split(group) for form, group in groups.items()}
        assigned = [q.model_copy(update={"split": split_of[normal_form(q.text)]}) for q in questions]
        self._check_filled(assigned)
        return assigned

    def _shares(self) -> dict[Split, float]:
        return {
            "train": self.train,
            "calibration": self.calibration,
            "validation": self.validation,
            "test": self.test,
        }

    def _split(self, group: Sequence[Question]) -> Split:
        if any(question.split == "shift" or question.topic in self.shift_topics for question in group):
            return "shift"
        point = min(_unit_hash(question.id) for question in group)
        shares = [(name, share) for name, share in self._shares().items() if share > 0]
        edge = 0.0
        for name, share in shares:
            edge += share
            if point < edge:
                return name
        return shares[-1][0]  # rounding can leave the last edge a hair below 1

    def _check_topics(self, questions: Sequence[Question]) -> None:
        topics = {question.topic for question in questions}
        if unknown := [topic for topic in self.shift_topics if topic not in topics]:
            raise ConfigurationError(
                f"shift_topics must name topics of the data; got {unknown[0]!r}. "
                f"Choose from: {', '.join(sorted(topics)) or 'none, there are no questions'}"
            )

    def _check_filled(self, questions: Sequence[Question]) -> None:
        counts = {name: sum(q.split == name for q in questions) for name in get_args(Split)}
        for name, share in self._shares().items():
            if share > 0 and not counts[name]:
                shifted = f", {counts['shift']} of them shifted," if counts["shift"] else ""
                raise ConfigurationError(
                    f"the {name} split must hold a question; it is empty: {len(questions)} questions"
                    f"{shifted} and a fraction of {share:g}. Raise `{name}`, set it to 0, "
                    "or give more questions"
                )


def normal_form(text: str) -> str:
    """What two near-duplicate questions have in common: their content words, sorted.

    >>> normal_form("In what year was the Eiffel Tower built?")
    'built eiffel tower year'
    """
    words = set(re.findall(r"\w+", text.casefold()))
    return " ".join(sorted(words - _STOP_WORDS or words)) or text


def _unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48
