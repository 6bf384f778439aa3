"""Many questions as several jobs: where they are cut, and how the answers come together again.

A shard is an artifact of its own, so each is asked, cached, tried again and found again by itself, and one
whose questions did not change is not asked again when others are added behind it.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
from pydantic import Field

from calibration.artifacts import ROWS, Artifact, Store
from calibration.errors import ArtifactError
from calibration.records import (
    Generation,
    Question,
    arrow_schema,
    in_tables_of,
    read_tables,
    write_tables,
)
from calibration.schema import Schema

ASKED = ("id", "text")
"""What a model is asked. Accepted answers and splits can change without another inference."""


class Shards(Schema):
    """How many questions become several jobs: no answer hangs on it, only what a failure costs."""

    size: int = Field(default=8000, ge=1)
    """Questions of one job. Every job loads the model anew, so small ones cost more; what is lost with a job
    that dies is at most this many answers."""
    at_once: int = Field(default=4, ge=1)
    """Jobs of one model and way of asking that are under way together."""


def cut(questions: Artifact, size: int, store: Store) -> tuple[Artifact, ...]:
    """Store what is asked, so many questions an artifact, in their order."""
    tables = read_tables(store.folder(questions) / ROWS, Question)
    return tuple(
        _store([_asked(table)], "questions", Question, store) for table in in_tables_of(size, tables)
    )


def merge(shards: Sequence[Artifact], answers: Sequence[Artifact], store: Store) -> Artifact:
    """Put the answers to all shards into one artifact: the one that a single job would have made of them.

    Raises:
        ArtifactError: The answers to a shard are not those to its questions, one each and in order.
    """
    return _store(_checked(shards, answers, store), "generations", Generation, store)


def _store(
    tables: Iterator[pa.Table] | list[pa.Table], kind: str, row: type[Schema], store: Store
) -> Artifact:
    with store.draft() as draft:
        write_tables(tables, draft / ROWS, row)
        return store.keep(kind, draft)


def _asked(table: pa.Table) -> pa.Table:
    """Ids and texts alone; the rest as in a question of which nothing else is known."""
    blank, schema = Question(id="", text="", answers=()).model_dump(), arrow_schema(Question)
    columns = [
        table[field.name] if field.name in ASKED else pa.array([blank[field.name]] * len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _checked(shards: Sequence[Artifact], answers: Sequence[Artifact], store: Store) -> Iterator[pa.Table]:
    for number, (shard, answer) in enumerate(zip(shards, answers, strict=True), start=1):
        asked = _column("id", shard, Question, store)
        answered = _column("question_id", answer, Generation, store)
        if answered != asked:
            odd = next((a for a, b in zip(asked, answered, strict=False) if a != b), None)
            raise ArtifactError(
                f"shard {number} of {len(shards)} must hold one answer for each of its {len(asked)} "
                f"questions, in order; got {len(answered)}"
                + (f", and another one at question {odd!r}" if odd else "")
                + f". Repeat it: --refresh with the name of its stage, which ends in {number}/{len(shards)}"
            )
        yield from read_tables(store.folder(answer) / ROWS, Generation)


def _column(name: str, artifact: Artifact, kind: type[Schema], store: Store) -> list[str]:
    tables = read_tables(store.folder(artifact) / ROWS, kind)
    return [value for table in tables for value in table[name].to_pylist()]
