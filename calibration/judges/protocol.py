"""What a judge is given, and what it must be able to do."""

from collections.abc import Callable, Sequence
from typing import Protocol

from calibration.records import Question, Verdict
from calibration.schema import Schema


class Item(Schema):
    """One answer to be judged."""

    question_id: str
    question: str
    golds: tuple[str, ...]
    """Accepted answers, the canonical one first; empty where the data has none."""
    answer: str
    answer_type: str | None = None


class Judge(Protocol):
    """Marks answers."""

    @property
    def version(self) -> str:
        """Who judges, with its version; stands in every verdict."""

    def check(self, questions: Sequence[Question]) -> None:
        """Raise what can be known to be wrong before anything is run."""

    async def judge(self, items: Sequence[Item], *, progress: Callable[[float, str], None]) -> list[Verdict]:
        """One verdict for each item, in their order. What cannot be judged is `unjudged`, never wrong."""
