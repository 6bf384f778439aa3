"""The time, cost and memory of sharded inference against the model of them in `deployments.plan`.

    python -m benchmarks.scaling                  # all parts: about 15 minutes on two cores
    python -m benchmarks.scaling real memory      # some

No GPU and no account: `real` runs a small model in the local backend's worker processes, `simulated` puts a
stand-in with the timing of containers behind the real flow, and `memory` cuts and merges tables of up to a
million rows. All of it goes through the code of a run, with a temporary Prefect server.
"""

import asyncio
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from prefect import flow
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from pydantic import TypeAdapter

from calibration.artifacts import ROWS, Artifact, Store
from calibration.backends.local import Local
from calibration.engines.hf import Hf
from calibration.jobs.infer import Infer
from calibration.jobs.obtain import Obtain
from calibration.models.pocket import Pocket
from calibration.records import Generation, Question, arrow_schema, read_tables, write_tables
from calibration.shards import Shards, cut, merge
from calibration.worlds.facts import Document, World
from deployments.plan import Speed
from flows.pipeline import ask
from tests.serving import harness

START, QUESTION = 2.0, 0.02
"""Of the simulated containers, in seconds: as 100 s and 1 s are to each other."""


def main() -> None:
    """Run the parts, each in a store of its own."""
    if sys.argv[1:2] == ["--peak"]:
        peak(sys.argv[2])
        return
    parts = {"real": real, "simulated": simulated, "overhead": overhead, "memory": memory}
    with tempfile.TemporaryDirectory() as folder, harness(Path(folder)):
        for name in sys.argv[1:] or parts:
            with fresh_store():
                parts[name]()


def real() -> None:
    """Fit the model's two constants on two jobs, and predict runs in shards."""
    world = World(entities_per_topic=24, pool_size=6)
    store = Store.from_environment()
    corpus = store.save_rows("corpus", world.documents(), Document)
    tiny = Pocket(
        width=64, layers=2, heads=2, key_value_heads=1, feed_forward=128, tokens_per_step=512, epochs=2
    )
    model = run_job(Obtain(weights=tiny, corpus=corpus))
    # Far more than it has learnt from: how long it takes to answer does not hang on what it knows.
    every = World(entities_per_topic=200).questions()[:2400]

    def seconds(count: int, size: int, at_once: int, max_tokens: int) -> float:
        # Another length of reply is another job, so that nothing is taken from the cache.
        job = Infer(
            questions=store.save_rows("questions", every[:count], Question),
            engine=Hf(batch_size=1, max_tokens=max_tokens),
            elicitation="plain",
            model=model,
        )
        return timed(lambda: infer(job, Shards(size=size, at_once=at_once), Local()))

    few, many = 200, len(every)
    short, long = (min(seconds(count, many, 1, 40 + again) for again in range(2)) for count in (few, many))
    question = (long - short) / (many - few)
    speed = Speed(start=short - few * question, question=question)
    print(f"real: start {speed.start:.1f} s, {1000 * speed.question:.1f} ms a question (fitted on two jobs)")
    for number, (size, at_once) in enumerate([(many // 2, 1), (many // 4, 1), (many // 4, 2), (300, 2)]):
        measured = seconds(many, size, at_once, 50 + number)
        report(
            f"{many} questions, {size} a shard, {at_once} at once", measured, speed.wall(many, size, at_once)
        )


def simulated() -> None:
    """Containers that take their time, and are lost now and then, behind the real flow."""
    speed = Speed(START, QUESTION)
    for count, size, at_once in [(1000, 1000, 4), (1000, 100, 4), (4000, 100, 16), (4000, 400, 4)]:
        with fresh_store():
            cloud = Cloud(loss=0.0)
            measured = timed(
                lambda c=cloud, n=count, s=size, a=at_once: infer(fake(n), Shards(size=s, at_once=a), c)
            )
        name = f"{count} questions, {size} a shard, {at_once} at once"
        report(f"simulated: {name}", measured, speed.wall(count, size, at_once))
        report("  machine seconds", cloud.seconds, speed.machine(count, size))
    loss, count, size = 0.2, 4000, 50
    with fresh_store():
        cloud = Cloud(loss)
        infer(fake(count), Shards(size=size, at_once=16), cloud)
    # Half a job is lost each time, and each job is lost loss / (1 - loss) times.
    expected = speed.machine(count, size) * (1 + loss / (1 - loss) / 2)
    report(f"simulated: {loss:.0%} of attempts lost, machine seconds", cloud.seconds, expected)


def overhead() -> None:
    """What the orchestrator itself takes for a shard."""
    for shards in (50, 200, 800):
        with fresh_store():
            measured = timed(
                lambda n=shards: infer(fake(n), Shards(size=1, at_once=16), Cloud(0.0, scale=0.0))
            )
        print(f"overhead: {shards} jobs that take no time: {measured / shards:.3f} s each")


def memory() -> None:
    """Peak memory of a process that cuts or merges so many rows, 8000 a shard, and does nothing else."""
    size, pattern = 8000, answer_table(8000)
    for rows in (0, 80_000, 320_000, 960_000):
        with fresh_store() as store:
            ids = [[f"q{number}" for number in range(begin, begin + size)] for begin in range(0, rows, size)]
            questions = keep(store, "questions", Question, (asked(own) for own in ids))
            shards = [keep(store, "questions", Question, [asked(own)]) for own in ids]
            parts = [keep(store, "generations", Generation, [named(pattern, own)]) for own in ids]
            for what, given in (("cut", [questions]), ("merge", [*shards, *parts])):
                references = json.dumps([artifact.model_dump() for artifact in given])
                command = [sys.executable, "-m", "benchmarks.scaling", "--peak", what]
                subprocess.run(command, input=references, text=True, check=True)


def peak(what: str) -> None:
    """Cut or merge, and print the peak of this process's memory."""
    store, given = Store.from_environment(), TypeAdapter(list[Artifact]).validate_json(sys.stdin.read())
    half = len(given) // 2
    began = time.perf_counter()
    _ = merge(given[:half], given[half:], store) if what == "merge" else cut(given[0], 8000, store)
    seconds = time.perf_counter() - began
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    count = (
        8 * half
        if what == "merge"
        else sum(map(len, read_tables(store.folder(given[0]) / ROWS, Question))) // 1000
    )
    print(
        f"memory: {what:5} {count:4},000 rows: {seconds:5.1f} s, peak of the process {mib:4.0f} MiB",
        flush=True,
    )


class Cloud:
    """A backend whose containers take the time that they are said to, and answer everything alike."""

    def __init__(self, loss: float, scale: float = 1.0) -> None:
        """Lose an attempt with this probability, at any moment of it."""
        self.loss, self.scale, self.seconds, self.chance = loss, scale, 0.0, random.Random(0)  # noqa: S311

    async def run(
        self, job: Infer, key: str, store: Store, progress: Callable[[float, str], None]
    ) -> Artifact:
        """Start, answer, and begin again when the container is lost, as Modal does."""
        del key, progress
        ids = [row.id for row in store.load_rows(job.questions, Question)]
        whole = self.scale * (START + QUESTION * len(ids))
        while self.chance.random() < self.loss:
            await self._work(whole * self.chance.random())
        await self._work(whole)
        return keep(store, "generations", Generation, [named(answer_table(len(ids)), ids)])

    async def _work(self, seconds: float) -> None:
        self.seconds += seconds
        await asyncio.sleep(seconds)


def fake(count: int) -> Infer:
    """A job that only `Cloud` can do."""
    store = Store.from_environment()
    questions = keep(store, "questions", Question, [asked([f"q{number}" for number in range(count)])])
    return Infer(questions=questions, engine=Hf(), elicitation="plain", model=questions)


def infer(job: Infer, shards: Shards, on: Any) -> Artifact:  # noqa: ANN401 - a backend, or the stand-in of one
    """What a run does to have all questions answered."""

    @flow(log_prints=False)
    async def around() -> Artifact:
        return await ask(job, "model plain", shards, on)

    store = Store.from_environment()
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: store.root / "cache"}):
        return asyncio.run(around())


def run_job(job: Obtain) -> Artifact:
    """A job on this machine."""
    return asyncio.run(Local().run(job, "model", Store.from_environment(), lambda _, __: None))


def asked(ids: list[str]) -> pa.Table:
    """A question for each id."""
    rows = [{"id": i, "text": f"What is {i}?", "answers": [], "topic": "Other"} for i in ids]
    return pa.Table.from_pylist([row | {"answer_type": "Other", "split": "test"} for row in rows])


def answer_table(count: int) -> pa.Table:
    """Answers as a model gives them: 16 tokens with their log-probabilities, and 101 probabilities."""
    rng = random.Random(0)  # noqa: S311
    rows = [
        Generation(
            question_id="",
            elicitation="stated",
            text="Answer: something\nConfidence: 0.80",
            answer="something",
            token_ids=tuple(rng.randrange(250_000) for _ in range(16)),
            tokens=("token",) * 16,
            logprobs=tuple(-rng.random() for _ in range(16)),
            span=(2, 3),
            span_rule="rule@1",
            finish="stop",
            stated=0.8,
            stated_grid=tuple(rng.random() / 200 for _ in range(101)),
        )
        for _ in range(count)
    ]
    return pa.Table.from_pylist([row.model_dump() for row in rows], schema=arrow_schema(Generation))


def named(answers: pa.Table, ids: list[str]) -> pa.Table:
    """The same answers to other questions."""
    return answers.set_column(answers.schema.get_field_index("question_id"), "question_id", pa.array(ids))


def keep(store: Store, kind: str, row: Any, tables: Any) -> Artifact:  # noqa: ANN401
    """Store tables as an artifact."""
    with store.draft() as draft:
        write_tables(tables, draft / ROWS, row)
        return store.keep(kind, draft)


@contextmanager
def fresh_store() -> Iterator[Store]:
    """An empty store for the time being."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SLM_CALIBRATION_STORE"] = folder
        yield Store.from_environment()


def timed(work: Callable[[], object]) -> float:
    """Seconds it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def report(what: str, measured: float, predicted: float) -> None:
    """One line: measured, predicted, and their ratio."""
    print(
        f"{what:62} {measured:7.1f} s, model {predicted:7.1f} s, ratio {measured / predicted:.2f}", flush=True
    )


if __name__ == "__main__":
    main()
