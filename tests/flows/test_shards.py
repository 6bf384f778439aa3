"""Shards in a run: each is a job of its own, done once, and done again alone."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from calibration.artifacts import Store
from calibration.config import Experiment
from calibration.records import Generation
from calibration.runs import Run, runs_root
from calibration.stages.baseline import Baseline
from calibration.worlds.facts import World
from flows.pipeline import baseline, each
from tasks.journal import listening
from tasks.record import BASELINE


@pytest.fixture(autouse=True)
def own_cache(tmp_path):
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "store" / "cache"}):
        yield


@pytest.fixture
def experiment(tmp_path, random_model):
    """Writes 30 questions; returns an experiment on so many of them, so many a shard."""
    World(entities_per_topic=24, pool_size=6).write_csv(tmp_path / "facts.csv")

    def make(size, limit=30):
        return Experiment.model_validate(
            {
                "name": "sharded",
                "data": {"kind": "table", "path": tmp_path / "facts.csv", "limit": limit},
                "splits": {"train": 0, "calibration": 0, "validation": 0, "test": 1},
                "shards": {"size": size, "at_once": 1},
                "models": {
                    "tiny": {
                        "weights": {"kind": "hub", "repo": str(random_model)},
                        "engine": {"kind": "hf", "batch_size": 4, "max_tokens": 8},
                        "elicitations": ["plain"],
                    }
                },
                "judge": {"kind": "exact"},
            }
        )

    return make


def run(experiment):
    """How each stage of inference ended, and the run's folder."""
    state = asyncio.run(baseline(experiment, return_state=True))
    book = Run.find(runs_root(), "latest")
    stages = {stage.name: stage.state for stage in book.stages()}
    return state, {name: how for name, how in stages.items() if name.startswith(("infer", "merge"))}, book


class Killer:
    """Kills the worker of a stage as soon as it has told of progress, so many times."""

    def __init__(self, stage, times):
        self.stage, self.times, self.deaths = stage, times, 0

    def started(self, stage):
        pass

    def ended(self, record):
        pass

    def progressed(self, stage, fraction, note):
        if stage == self.stage and self.deaths < self.times:
            self.deaths += 1
            [worker] = [
                int(place.parent.name)
                for place in Path("/proc").glob("[0-9]*/stat")
                if place.read_text().rpartition(")")[2].split()[1] == str(os.getpid())
                and b"calibration.backends.worker" in (place.parent / "cmdline").read_bytes()
            ]
            os.kill(worker, signal.SIGKILL)


def test_a_shard_that_fails_is_the_only_one_that_is_not_found_again(experiment):
    killer = Killer("infer tiny plain 2/3", times=2)
    with listening(killer):
        state, stages, _ = run(experiment(10))
    assert state.is_failed()
    assert killer.deaths == 2, "it was begun once more"
    # After a failure no other is begun.
    assert stages == {"infer tiny plain 1/3": "Completed", "infer tiny plain 2/3": "Failed"}
    state, stages, book = run(experiment(10))
    assert state.is_completed(), state.message
    assert stages == {
        "infer tiny plain 1/3": "Cached",
        "infer tiny plain 2/3": "Completed",
        "infer tiny plain 3/3": "Completed",
        "merge tiny plain": "Completed",
    }
    measured = Baseline.model_validate_json((book.folder / BASELINE).read_text())
    rows = Store.from_environment().load_rows(measured.models[0].answered[0].generations, Generation)
    assert [row.question_id for row in rows] == [q.id for q in experiment(10).data.questions()]

    # More questions behind those: what was asked is not asked again. A worker's death once is mended.
    killer = Killer("infer tiny plain 4/4", times=1)
    with listening(killer):
        state, stages, book = run(experiment(10, limit=40))
    assert state.is_completed(), state.message
    assert killer.deaths == 1
    assert [stages[f"infer tiny plain {number}/4"] for number in (1, 2, 3, 4)] == ["Cached"] * 3 + [
        "Completed"
    ]
    assert "infer tiny plain, 4 shards" in (book.folder / "report.json").read_text()


def test_so_many_are_under_way_and_after_a_failure_none_is_begun():
    begun, most, under_way = [], 0, 0

    async def work(number):
        nonlocal most, under_way
        begun.append(number)
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        if number == 4:
            raise RuntimeError(number)
        return -number

    assert asyncio.run(each(work, [(number,) for number in range(4)], 2)) == [0, -1, -2, -3]
    assert most == 2
    begun.clear()
    with pytest.raises(RuntimeError):
        asyncio.run(each(work, [(number,) for number in range(100)], 3))
    assert set(begun) < set(range(10))
