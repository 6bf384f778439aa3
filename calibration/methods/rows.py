"""What the methods learn from: training rows, and the count of every row that was left out."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from calibration.errors import ArtifactError
from calibration.records import Elicitation, Judged, write_rows
from calibration.schema import Schema


class Preference(Schema):
    """Two replies to one prompt that differ in the confidence they state."""

    question_id: str
    prompt: str
    """The user turn, before the chat template."""
    chosen: str
    rejected: str
    target: float = Field(ge=0, le=1)
    """The confidence in the chosen reply."""
    original: float | None = Field(ge=0, le=1)
    """The model's confidence before training; None when it had no readable one."""


class Outcome(Schema):
    """One reply of the model, and whether it was right."""

    question_id: str
    prompt: str
    """The user turn, before the chat template."""
    answer: str
    """The answer as it was judged."""
    reply: str
    """All that was generated, without the end token."""
    token_ids: tuple[int, ...]
    """The sampled tokens, the end token included; empty when they were not recorded."""
    span: tuple[int, ...]
    """Positions of the answer among `token_ids`: the tokens by which the confidence is read."""
    is_correct: int = Field(ge=0, le=1)


@dataclass(frozen=True)
class TrainingSet:
    """Rows of one kind, and how many judged rows gave none, by reason."""

    kind: type[Preference] | type[Outcome]
    rows: tuple[Preference | Outcome, ...]
    left_out: Mapping[str, int]

    def write(self, path: Path) -> None:
        """Write the rows to a parquet file, which `datasets` reads as well."""
        write_rows(self.rows, path, self.kind)


def judged_for(judged: Mapping[Elicitation, Sequence[Judged]], elicitation: Elicitation) -> Sequence[Judged]:
    """The judged replies to one way of asking.

    Raises:
        ArtifactError: The model was not asked this way.
    """
    if elicitation not in judged:
        raise ArtifactError(
            f"judged replies must hold the {elicitation!r} ones; got {sorted(judged)}. "
            f"Ask and judge the model this way first"
        )
    return judged[elicitation]


def learnable(judged: Sequence[Judged], left_out: Counter[str]) -> Iterator[tuple[Judged, bool]]:
    """Judged replies a method may learn from, each with its mark; the others are counted.

    Only the train split is ever used: no label of another split decides anything in training.
    """
    for row in judged:
        correct = row.verdict.is_correct
        if row.question.split != "train":
            left_out["not in the train split"] += 1
        elif correct is None:
            left_out["unjudged"] += 1
        elif not row.generation.answer:
            left_out["no answer"] += 1
        else:
            yield row, correct
