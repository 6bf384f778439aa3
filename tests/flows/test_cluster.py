"""A Dask cluster of two machines: processes with stores of their own, and a bucket between them."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from calibration.artifacts import Store
from calibration.backends.dask import Dask
from calibration.backends.local import Local
from calibration.config import Experiment
from calibration.errors import ConfigurationError
from calibration.jobs.infer import Infer
from calibration.jobs.obtain import Obtain
from calibration.models.hub import Hub
from calibration.records import Generation, Question
from calibration.runs import Run, runs_root
from calibration.shared import Shared
from calibration.stages.baseline import Baseline
from calibration.worlds.facts import World
from flows.pipeline import baseline
from tasks.journal import listening
from tasks.record import BASELINE

ROOT = Path(__file__).parent.parent.parent
ORCHESTRATOR = """
import asyncio, sys
from calibration.artifacts import Store
from calibration.backends.dask import Dask
from calibration.jobs.infer import Infer
job = Infer.model_validate_json(sys.argv[2])
progress = lambda fraction, note: print(fraction, flush=True)
asyncio.run(Dask(scheduler=sys.argv[1]).run(job, "orphan", Store.from_environment(), progress))
"""


class Machine:
    """One machine of the cluster: a Dask worker in a folder of its own."""

    def __init__(self, root, scheduler, url):
        self.store = Store(root / "store")
        folders = {"HOME": root, "TMPDIR": root / "tmp", "SLM_CALIBRATION_STORE": self.store.root}
        (root / "tmp").mkdir(parents=True)
        with (root / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*DASK, "worker", scheduler, "--nthreads", "1", "--no-dashboard", "--local-directory", root],
                env={**os.environ, **{name: str(path) for name, path in folders.items()}, **shared_at(url)},
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def jobs(self):
        """The processes of jobs that are running here."""
        return [pid for pid in of_group(self.process.pid) if b"calibration.backends.worker" in command(pid)]

    def begun(self):
        """The keys of the jobs that were ever begun here."""
        return {log.stem for log in (self.store.root / "logs").glob("*.log")}

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


DASK = [sys.executable, "-m", "dask"]


def shared_at(url):
    return {"SLM_CALIBRATION_SHARED": url, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def of_group(group):
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(place.name)) == group:
                yield int(place.name)
        except ProcessLookupError:
            continue


def command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def scheduler(tmp_path):
    said = tmp_path / "scheduler.json"
    process = subprocess.Popen(
        [*DASK, "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", said],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until(lambda: said.exists() and '"address"' in said.read_text())
    yield said.read_text().split('"address": "')[1].partition('"')[0]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def machines(s3, scheduler, tmp_path, monkeypatch):
    url = f"s3://bucket/{tmp_path.name}"
    monkeypatch.setenv("SLM_CALIBRATION_SHARED", url)
    both = [Machine(tmp_path / name, scheduler, url) for name in ("a", "b")]
    yield both
    for machine in both:
        if machine.process.poll() is None:
            machine.kill()


@pytest.fixture
def cluster(scheduler, machines):
    on = Dask(scheduler=scheduler)

    async def has_both():
        async with on._client() as client:
            await client.wait_for_workers(2, timeout=120)

    asyncio.run(has_both())
    return on


@pytest.fixture
def experiment(tmp_path, random_model):
    def make(size):
        World(entities_per_topic=24, pool_size=6).write_csv(tmp_path / "facts.csv")
        model = {
            "weights": {"kind": "hub", "repo": str(random_model)},
            # One a batch: the bytes of the answers then do not depend on the cut.
            "engine": {"kind": "hf", "batch_size": 1, "max_tokens": 8},
            "elicitations": ["plain"],
        }
        return Experiment.model_validate(
            {
                "name": "sharded",
                "data": {"kind": "table", "path": tmp_path / "facts.csv", "limit": 30},
                "splits": {"train": 0, "calibration": 0, "validation": 0, "test": 1},
                "shards": {"size": size, "at_once": 2},
                "models": {"tiny": model},
                "judge": {"kind": "exact"},
            }
        )

    return make


@pytest.fixture
def job(random_model):
    """A job that takes a while, its inputs in the store of whoever asks."""

    def make(store, count=200):
        with store.draft() as folder:
            Hub(repo=str(random_model)).obtain((), folder, folder, lambda *told: None)
            model = store.keep("model", folder)
        questions = [Question(id=f"q{n}", text="Which town is it?", answers=("A",)) for n in range(count)]
        engine = {"kind": "hf", "batch_size": 1, "max_tokens": 8}
        return Infer.model_validate(
            {
                "questions": store.save_rows("questions", questions, Question),
                "engine": engine,
                "elicitation": "plain",
                "model": model,
            }
        )

    return make


def run(experiment, on, monkeypatch, folder):
    monkeypatch.setenv("SLM_CALIBRATION_STORE", str(folder / "store"))
    monkeypatch.setenv("SLM_CALIBRATION_RUNS", str(folder / "runs"))
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: folder / "store" / "cache"}):
        state = asyncio.run(baseline(experiment, on=on, return_state=True))
    assert state.is_completed(), state.message
    book = Run.find(runs_root(), "latest")
    measured = Baseline.model_validate_json((book.folder / BASELINE).read_text())
    return measured, {stage.name: stage.state for stage in book.stages()}


class Killer:
    """Kills a machine with -9 as soon as it works on one of the later shards."""

    def __init__(self, machine):
        self.machine, self.before = machine, None

    def started(self, stage):
        pass

    def ended(self, record):
        pass

    def progressed(self, stage, fraction, note):
        is_later = stage in {f"infer tiny plain {n}/5" for n in (3, 4, 5)}
        if is_later and self.before is None and self.machine.jobs():
            self.before = self.machine.begun()
            self.machine.kill()


@pytest.mark.slow
def test_shards_on_a_cluster_give_the_answers_of_one_machine_also_when_a_machine_dies(
    cluster, machines, experiment, monkeypatch, tmp_path
):
    a, b = machines
    asyncio.run(cluster.check(Store.from_environment()))
    killer = Killer(a)
    with listening(killer):
        measured, stages = run(experiment(6), cluster, monkeypatch, tmp_path / "orchestrator")
    assert killer.before is not None, "it was killed in the middle"
    assert [stages[f"infer tiny plain {n}/5"] for n in range(1, 6)] == ["Completed"] * 5
    repeated = a.begun() & b.begun()
    assert len(repeated) == 1, "what the dead machine worked on, and nothing else"
    assert len(a.begun() | b.begun()) == 6, "the model and five shards"

    [model] = measured.models
    whole = Infer(
        questions=measured.questions,
        engine=experiment(6).models["tiny"].engine,
        elicitation="plain",
        model=model.weights,
    )
    alone = Local().run(whole, "alone", Store.from_environment(), lambda *_: None)
    assert asyncio.run(alone) == model.answered[0].generations


@pytest.mark.slow
def test_a_job_that_is_cancelled_stops_on_its_machine(cluster, machines, job):
    store = Store.from_environment()

    async def cancelled():
        told = asyncio.Event()
        work = asyncio.create_task(cluster.run(job(store), "cancelled", store, lambda *_: told.set()))
        await asyncio.wait_for(told.wait(), 120)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(cancelled())
    until(lambda: not any(machine.jobs() for machine in machines))
    assert Shared.from_environment().noted("cancelled") is None


@pytest.mark.slow
def test_a_job_whose_orchestrator_was_killed_goes_on_and_is_found(cluster, machines, job):
    store = Store.from_environment()
    asked = job(store, 600)
    with subprocess.Popen(
        [sys.executable, "-c", ORCHESTRATOR, cluster.scheduler, asked.model_dump_json()],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    ) as orchestrator:
        assert orchestrator.stdout.readline(), "it has told of progress"
        orchestrator.kill()
    [began] = [pid for machine in machines for pid in machine.jobs()]
    seen = set()

    def look(*told):
        seen.update(pid for machine in machines for pid in machine.jobs())

    artifact = asyncio.run(cluster.run(asked, "orphan", store, look))
    assert seen == {began}, "it was joined while it ran"
    assert len(store.load_rows(artifact, Generation)) == 600
    # Whatever is left to do for who comes later is to fetch it.
    later = Store(store.root.parent / "later")
    assert asyncio.run(cluster.run(asked, "orphan", later, look)) == artifact
    assert seen == {began}
    assert later.is_whole(artifact)


def test_a_cluster_that_cannot_be_used_is_refused_with_what_to_do(monkeypatch, tmp_path):
    on = Dask(scheduler="tcp://127.0.0.1:9", patience_seconds=0.5)
    with pytest.raises(ConfigurationError, match="SLM_CALIBRATION_SHARED is not set"):
        asyncio.run(on.check(Store.from_environment()))
    monkeypatch.setenv("SLM_CALIBRATION_SHARED", f"file://{tmp_path}")
    with pytest.raises(ConfigurationError, match="Run: dask scheduler"):
        asyncio.run(on.check(Store.from_environment()))
    asked = Obtain(weights=Hub(repo="somebody/something"))
    with pytest.raises(ConfigurationError, match="nobody answers"):
        asyncio.run(on.run(asked, "key", Store.from_environment(), lambda *_: None))
