"""Measuring again: recorded answers that change under the run, with Prefect's real engine."""

import asyncio
import json
import math
from datetime import UTC, datetime
from unittest.mock import Mock, call

import numpy as np
import pandas as pd
import pytest
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow_async
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from prefect.states import AwaitingRetry
from scipy.special import expit

from calibration.artifacts import Store
from calibration.config import Experiment
from calibration.drift import Drift
from calibration.errors import ConfigurationError
from calibration.routing.policy import Router, stale_path
from calibration.runs import Run, runs_root
from flows.pipeline import baseline
from flows.remeasure import remeasure
from tasks.drift import stored
from tasks.journal import Listener, listening
from tasks.shared import locks_of

NOW = datetime(2026, 12, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def environment(tmp_path):
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "store" / "cache"}):
        yield


def answers(count=600, *, louder=0.0, blind=False, more=0):
    """A table of a model's answers, right as often as it knows; its confidence may be louder, or blind."""
    rng = np.random.default_rng(0)
    known = rng.normal(size=count + more)
    right = rng.random(known.size) < expit(-0.2 + 1.4 * known)
    chance = expit(1.2 + (rng.permutation(known) if blind else known) + louder)
    return pd.DataFrame(
        {
            "question": [f"Which town is number {i}?" for i in range(known.size)],
            "answer": [f"Town{i}" for i in range(known.size)],
            "response": [f"Town{i}" if ok else f"City{i}" for i, ok in enumerate(right)],
            "tokens": [json.dumps([f"Town{i}" if ok else f"City{i}", "<eos>"]) for i, ok in enumerate(right)],
            "logprobs": [json.dumps([math.log(p), -0.001]) for p in chance],
        }
    )


@pytest.fixture
def measured(tmp_path):
    """Writes the answers and, at the first call, measures them; returns the run of that."""
    path, runs = tmp_path / "answers.csv", []

    def write(table):
        table.to_csv(path, index=False)
        if not runs:
            experiment = Experiment.model_validate(
                {
                    "name": "town",
                    "data": {"kind": "table", "path": path},
                    "splits": {"train": 0.0, "calibration": 0.3, "validation": 0.0, "test": 0.7},
                    "models": {
                        "somebody": {"engine": {"kind": "recorded", "path": path, "logprobs": "logprobs"}}
                    },
                    "judge": {"kind": "exact"},
                    "readout": "geometric_mean",
                }
            )
            runs.append(asyncio.run(baseline(experiment)))
        return runs[0]

    return write


def again(base, **parameters):
    """Measure again: the run, what it found, and how each of its stages ended."""
    book = Run.find(runs_root(), asyncio.run(remeasure(base, **parameters)))
    found = Drift.model_validate_json((book.folder / "drift.json").read_text())
    return book, found, {stage.name: stage.state for stage in book.stages()}


def policy_of(run):
    return Run.find(runs_root(), run).folder / "router_policy.json"


def test_measuring_again_asks_again_and_a_run_that_is_continued_does_not(measured):
    base = measured(answers())
    book, found, stages = again(base)
    assert stages["infer somebody plain"] == "Completed"
    assert stages["judge somebody plain"] == "Cached"  # the answers are the same: no verdict is asked again
    assert (found.decision, found.base) == ("unchanged", base)
    [comparison] = found.comparisons
    assert comparison.n_identical == comparison.n_after
    assert not stale_path(policy_of(base)).exists()
    assert not (book.folder / "router_policy.json").exists()
    record = book.read()
    assert (record.flow, record.baseline, record.state) == ("remeasure", base, "Completed")
    for name in ("report.html", "report.md", "summary.txt"):
        assert "unchanged" in (book.folder / name).read_text()

    # Continued, it does not ask again; without the policy there is nothing to measure for.
    _, found, stages = again(base, run=book.folder.name)
    assert set(stages.values()) == {"Cached"}
    assert found.decision == "unchanged"
    policy_of(base).unlink()
    with pytest.raises(ConfigurationError, match="must have a router policy"):
        again(base)


def test_a_louder_confidence_gets_a_new_map_and_the_old_policy_is_followed_no_more(measured):
    base = measured(answers())
    measured(answers(louder=1.0))
    book, found, _ = again(base)
    assert found.decision == "refit"
    old, new = Router.load(policy_of(base)), Router.load(book.folder / "router_policy.json")
    assert old.policy.threshold == new.policy.threshold  # the prices' alone
    assert old.policy.map.offset > new.policy.map.offset
    assert old.policy.expires < new.policy.expires  # 90 days from the new answers
    decision = old.decide("Where?", logprobs=[-0.001], now=NOW)
    assert not decision.keep
    assert "stale since" in decision.reason
    assert "no longer fits" in decision.reason
    assert new.decide("Where?", logprobs=[-0.001], now=NOW).keep
    assert old.stale.replaced_by == book.folder.name

    # From now on the new policy is what the old run stands for.
    _, later, _ = again(base)
    assert (later.base, later.decision) == (book.folder.name, "unchanged")
    # Continued, the run that mended the policy finds what it found, whatever it is said to be based on.
    for name in (base, "latest", book.folder.name):
        _, same, _ = again(name, run=book.folder.name)
        assert same == found
        assert book.read().baseline == base


def test_a_flow_run_that_is_retried_after_it_replaced_the_policy_measures_the_same_again(measured):
    base = measured(answers())
    measured(answers(louder=1.0))
    parameters = {"base": "latest"}

    async def twice():
        async with get_client() as client:
            flow_run = await client.create_flow_run(remeasure, parameters=parameters)
            name = await run_flow_async(remeasure, flow_run=flow_run, parameters=parameters)
            found = (Run.find(runs_root(), name).folder / "drift.json").read_text()
            await client.set_flow_run_state(flow_run.id, AwaitingRetry(), force=True)
            flow_run = await client.read_flow_run(flow_run.id)
            assert await run_flow_async(remeasure, flow_run=flow_run, parameters=parameters) == name
        return name, found

    name, found = asyncio.run(twice())
    assert (Run.find(runs_root(), name).folder / "drift.json").read_text() == found
    assert Run.find(runs_root(), name).read().baseline == base
    assert stored(base, None).run == name
    assert policy_of(name).exists()


def test_a_run_is_continued_by_the_flow_that_began_it_only(measured):
    base = measured(answers())
    words = f"run {base} must be continued by baseline, which began it; got remeasure"
    with pytest.raises(ConfigurationError, match=words):
        asyncio.run(remeasure("latest", run=base))
    assert policy_of(base).exists()
    assert Run.find(runs_root(), base).read().flow == "baseline"
    book, *_ = again(base)
    with pytest.raises(
        ConfigurationError, match="must be continued by remeasure, which began it; got baseline"
    ):
        asyncio.run(baseline(book.read().experiment, run=book.folder.name))


def test_a_policy_whose_successor_is_gone_is_measured_again_itself(measured):
    base = measured(answers())
    measured(answers(louder=1.0))
    book, found, _ = again(base)
    assert found.decision == "refit"
    policy_of(book.folder.name).unlink()
    assert stored(base, None).run == stored(book.folder.name, None).run == base
    book.delete()
    _, found, _ = again(base)
    assert (found.base, found.decision) == (base, "refit")


def test_a_confidence_that_knows_nothing_asks_for_training_and_a_recovery_is_noticed(measured):
    base = measured(answers())
    measured(answers(blind=True))
    book, found, _ = again(base)
    assert found.decision == "retrain"
    assert not (book.folder / "router_policy.json").exists()
    assert Router.load(policy_of(base)).stale.replaced_by is None
    assert "train again" in (book.folder / "summary.txt").read_text()

    measured(answers())
    _, found, _ = again(book.folder.name)  # stands for the run it measured again
    assert (found.base, found.decision) == (base, "unchanged")
    assert Router.load(policy_of(base)).stale is None


def test_a_table_that_grew_is_compared_on_old_and_on_new_questions(measured):
    base = measured(answers(500))
    measured(pd.concat([answers(500), answers(500, louder=1.0, more=400).iloc[500:]]))
    _, found, _ = again(base)
    old, new = found.comparisons
    assert (old.questions, old.decision) == ("same questions", "unchanged")
    assert (new.questions, new.n_after) == ("new questions", 400)
    assert new.of("gap").low > 0
    assert found.decision in ("refit", "retrain")


def test_while_a_system_is_measured_again_the_next_one_waits_one_after_the_other(measured):
    base = measured(answers())
    locks, person = locks_of(Store.from_environment(), None), Mock(spec=Listener)
    locks.acquire_lock("remeasure another", "who does not matter")
    locks.acquire_lock(f"remeasure {base}", "who is at it")

    async def second():
        told = asyncio.Event()
        person.started.side_effect = lambda stage: told.set()
        task = asyncio.create_task(remeasure("latest"))
        await told.wait()
        assert [book.folder.name for book in Run.all(runs_root())] == [base]
        locks.release_lock(f"remeasure {base}", "who is at it")
        return await task

    with listening(person):
        run = asyncio.run(second())
    assert person.started.mock_calls[0] == call("wait for another run")
    ended = person.ended.mock_calls[0].args[0]
    assert (ended.name, ended.state) == ("wait for another run", "Completed")
    assert Run.find(runs_root(), run).read().baseline == base


def test_a_chain_whose_beginning_was_deleted_can_be_measured_again(measured):
    base = measured(answers())
    measured(answers(louder=1.0))
    book, _, _ = again(base)
    Run.find(runs_root(), base).delete()
    _, found, _ = again(book.folder.name)
    assert (found.base, found.decision) == (book.folder.name, "unchanged")
