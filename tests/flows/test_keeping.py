"""What a run keeps alive: continued by whoever comes next, and untouched when the store is cleaned up."""

import argparse
import asyncio
import json
from datetime import timedelta

import pandas as pd
import pytest
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow_async
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from prefect.states import AwaitingRetry

from calibration.artifacts import Store
from calibration.config import Experiment
from calibration.runs import Run, runs_root
from deployments.keeping import gc
from flows.pipeline import calibrate


@pytest.fixture(autouse=True)
def own_cache(tmp_path):
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "store" / "cache"}):
        yield


@pytest.fixture
def experiment(tmp_path):
    """Writes so many recorded answers; returns an experiment on them."""

    def make(count=40):
        path = tmp_path / f"answers-{count}.csv"
        rows = [
            {
                "question": f"Which town is number {number}?",
                "answer": "Town",
                "response": "Town" if number % 3 else "City",
                "tokens": json.dumps(["Town" if number % 3 else "City"]),
                "logprobs": json.dumps([-1 / (1 + number)]),
            }
            for number in range(count)
        ]
        pd.DataFrame(rows).to_csv(path, index=False)
        return Experiment.model_validate(
            {
                "name": "recorded",
                "data": {"kind": "table", "path": path},
                "splits": {"train": 0, "calibration": 0, "validation": 0, "test": 1},
                "models": {
                    "somebody": {"engine": {"kind": "recorded", "path": path, "logprobs": "logprobs"}}
                },
                "judge": {"kind": "exact"},
            }
        )

    return make


def run(experiment, name=None):
    state = asyncio.run(calibrate(experiment, run=name, return_state=True))
    assert state.is_completed(), state.message
    book = Run.find(runs_root(), name or "latest")
    return book, {stage.name: stage.state for stage in book.stages()}


def files():
    root = Store.from_environment().root
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    return {path for path in found if not path.startswith(("locks/", "in-use"))}


def test_cleaning_up_removes_what_a_deleted_run_left_and_nothing_that_another_needs(experiment, capsys):
    kept, _ = run(experiment(40))
    needed = files()
    other, _ = run(experiment(50))
    assert files() > needed
    options = argparse.Namespace(dry_run=False, forget=[], older_than=timedelta())
    gc(options)
    with_other = files()
    other.delete()
    options.dry_run = True
    gc(options)
    assert files() == with_other
    options.dry_run = False
    gc(options)
    assert files() == needed
    assert "records" in capsys.readouterr().out
    _, stages = run(experiment(40), kept.folder.name)
    assert set(stages.values()) == {"Cached"}
    gc(options)
    assert files() == needed, "what the earlier attempt used is not forgotten"


def test_a_flow_run_that_is_retried_continues_its_own_run(experiment):
    chosen = experiment()

    async def twice():
        async with get_client() as client:
            flow_run = await client.create_flow_run(calibrate, parameters={"experiment": chosen})
            names = [await run_flow_async(calibrate, flow_run=flow_run, parameters={"experiment": chosen})]
            # What `prefect flow-run retry` and the button in the UI do.
            await client.set_flow_run_state(flow_run.id, AwaitingRetry(), force=True)
            flow_run = await client.read_flow_run(flow_run.id)
            names.append(
                await run_flow_async(calibrate, flow_run=flow_run, parameters={"experiment": chosen})
            )
        return names

    one, other = asyncio.run(twice())
    assert one == other
    [book] = Run.all(runs_root())
    assert {stage.state for stage in book.stages()} == {"Cached"}
    run(chosen)
    assert len(list(Run.all(runs_root()))) == 2, "another flow run is another run"
