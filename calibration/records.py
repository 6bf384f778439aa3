"""The rows that travel between stages, and how they are stored.

Each record is a frozen model; `write_rows` and `read_rows` carry a list of them through one parquet
file whose columns are the record's fields.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from calibration.errors import ArtifactError
from calibration.schema import Schema

Split = Literal["train", "calibration", "validation", "test", "shift"]
"""Where a question may be used. Methods learn on `train`, post-hoc maps on `calibration`, choices on
`validation`; `test` and `shift` (topics kept out of every other split) are opened by evaluation only."""

Elicitation = Literal["plain", "stated"]
"""How the model is asked: for the answer alone, or for the answer and a number."""

Label = Literal["correct", "incorrect", "not_attempted", "unjudged"]


class Question(Schema):
    """One question and every answer that counts as right."""

    id: str
    """Unique in its data set; decides the split."""
    text: str
    answers: tuple[str, ...]
    """Accepted answers, the canonical one first; empty where the data has none."""
    topic: str = "Other"
    answer_type: str = "Other"
    split: Split = "test"


class Generation(Schema):
    """One answer as the model gave it, token by token, so that any confidence can be computed later."""

    question_id: str
    elicitation: Elicitation
    text: str
    """All that was generated, without the token that ended it."""
    answer: str
    """The answer alone, as it is judged; empty when none could be read."""
    token_ids: tuple[int, ...]
    """Empty when the answers were recorded elsewhere without ids."""
    tokens: tuple[str, ...]
    """The text of each sampled token, the end token included."""
    logprobs: tuple[float, ...]
    """Natural logarithm of each sampled token's probability at temperature 1; each <= 0."""
    span: tuple[int, ...]
    """Positions of the answer's own tokens: no formatting, no white space, no end token."""
    span_rule: str
    """Name and version of the rule that chose `span`."""
    finish: Literal["stop", "length"]
    """Whether the model ended by itself or ran into the limit."""
    stated: float | None = Field(default=None, ge=0, le=1)
    """The confidence the model wrote, if it wrote a readable one."""
    stated_grid: tuple[float, ...] = ()
    """Probability of writing 0.00, 0.01, ..., 1.00 where the number stands (101 values, sum <= 1); empty
    when it was not measured."""

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if len(self.tokens) != len(self.logprobs):
            counts = f"{len(self.tokens)} tokens but {len(self.logprobs)} logprobs"
            raise ValueError(f"question {self.question_id!r} has {counts}")
        if self.token_ids and len(self.token_ids) != len(self.tokens):
            counts = f"{len(self.token_ids)} token ids but {len(self.tokens)} tokens"
            raise ValueError(f"question {self.question_id!r} has {counts}")
        if bad := [value for value in self.logprobs if value > 0]:
            raise ValueError(f"logprobs must be <= 0; got {bad[0]} for question {self.question_id!r}")
        if self.stated_grid and len(self.stated_grid) != 101:
            raise ValueError(f"stated_grid must hold 101 probabilities; got {len(self.stated_grid)}")
        if self.span and not 0 <= min(self.span) <= max(self.span) < len(self.tokens):
            raise ValueError(f"answer span {self.span} outside the tokens of question {self.question_id!r}")
        return self


class Verdict(Schema):
    """What a judge said of one answer."""

    question_id: str
    label: Label
    judge: str
    """Who judged, with its version."""
    reason: str = ""
    """Why, in a few words: the rule that decided, or why it could not be judged."""
    model_version: str | None = None
    """The model that answered for the judge, as it named itself; None where no model was asked."""
    extracted: str | None = None
    """The final answer that the judge read in the text; None where it read none or was not asked to."""

    @property
    def is_correct(self) -> bool | None:
        """True or False; None when the answer could not be judged. Not attempting is not correct."""
        return None if self.label == "unjudged" else self.label == "correct"


class Judged(Schema):
    """A question, what the model answered, and whether that was right."""

    question: Question
    generation: Generation
    verdict: Verdict


Row = TypeVar("Row", bound=Schema)

ROW_GROUP = 8192
"""Rows that are held in memory, and stored, together."""


def write_rows(rows: Iterable[Schema], path: Path, kind: type[Schema]) -> None:
    """Write records to one parquet file; no rows keep the columns."""
    waiting, schema = iter(rows), arrow_schema(kind)
    chunks = iter(lambda: list(islice(waiting, ROW_GROUP)), [])
    write_tables(
        (pa.Table.from_pylist([row.model_dump() for row in chunk], schema=schema) for chunk in chunks),
        path,
        kind,
    )


def write_tables(tables: Iterable[pa.Table], path: Path, kind: type[Schema]) -> None:
    """Write tables of records, one below the other, to one parquet file, holding few of them in memory.

    The same rows make the same bytes, whatever tables they come in.
    """
    schema = arrow_schema(kind)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in in_tables_of(ROW_GROUP, tables):
            writer.write_table(group.cast(schema), row_group_size=ROW_GROUP)


def in_tables_of(rows: int, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows of some tables in tables of equal length; the last one may be shorter."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        while sum(map(len, held)) >= rows:
            whole = pa.concat_tables(held)
            yield whole.slice(0, rows).combine_chunks()
            held = [whole.slice(rows)]
    if any(map(len, held)):
        yield pa.concat_tables(held).combine_chunks()


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Read records back, validating every one.

    Raises:
        ArtifactError: The file is not there or is no parquet file.
    """
    return [kind.model_validate(row) for table in read_tables(path, kind) for row in table.to_pylist()]


def read_tables(path: Path, kind: type[Schema]) -> Iterator[pa.Table]:
    """Read records back as tables of some rows each, as they are.

    Raises:
        ArtifactError: The file is not there or is no parquet file.
    """
    try:
        # Buffering ahead would hold the whole file.
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(ROW_GROUP):
                yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtifactError(f"{path} must be a parquet file of {kind.__name__} rows; {error}") from error


def join_judged(
    questions: Sequence[Question], generations: Sequence[Generation], verdicts: Sequence[Verdict]
) -> list[Judged]:
    """Bring the three tables of one system together, in the order of the questions.

    Raises:
        ArtifactError: A question has no generation or no verdict, or has several.
    """
    by_id = {question.id: question for question in questions}
    for name, rows in (("generation", generations), ("verdict", verdicts)):
        ids = [row.question_id for row in rows]
        if len(set(ids)) != len(ids) or set(ids) != set(by_id):
            odd = sorted(set(ids) ^ set(by_id)) or sorted({i for i in ids if ids.count(i) > 1})
            raise ArtifactError(f"every question needs exactly one {name}; look at question {odd[0]!r}")
    answered = {row.question_id: row for row in generations}
    graded = {row.question_id: row for row in verdicts}
    return [Judged(question=q, generation=answered[i], verdict=graded[i]) for i, q in by_id.items()]


def arrow_schema(kind: type[Schema]) -> pa.Schema:
    """The parquet columns of a record."""
    return pa.schema([_arrow_field(name, field.annotation) for name, field in kind.model_fields.items()])


_SCALARS: dict[object, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
}


def _arrow_field(name: str, annotation: Any) -> pa.Field:  # noqa: ANN401 - a type annotation is any object
    if get_origin(annotation) in (Union, UnionType):
        inner = [choice for choice in get_args(annotation) if choice is not type(None)]
        return pa.field(name, _arrow_type(inner[0]), nullable=True)
    return pa.field(name, _arrow_type(annotation), nullable=False)


def _arrow_type(annotation: Any) -> pa.DataType:  # noqa: ANN401 - a type annotation is any object
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if get_origin(annotation) is Literal:
        return pa.string()
    if get_origin(annotation) is tuple:
        return pa.list_(_arrow_type(get_args(annotation)[0]))
    return pa.struct(
        [_arrow_field(name, field.annotation) for name, field in annotation.model_fields.items()]
    )
