"""What a run is based on."""

import asyncio
from datetime import UTC, datetime

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow_async
from prefect.states import AwaitingRetry

from calibration.artifacts import Store
from calibration.backends.local import Local
from calibration.errors import ConfigurationError, JudgeError
from calibration.judges import Gemini
from calibration.judges.ledger import FILE
from calibration.runs import Run, RunRecord, runs_root
from tasks.costs import showing_costs
from tasks.record import begun_with, continued, measured_run, recording
from tests.runs import EXPERIMENT


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Begins a run at a minute; says whether its models were measured."""
    monkeypatch.setenv("SLM_CALIBRATION_RUNS", str(tmp_path))

    def begin(name, minute, baseline=None, *, flow_run=None, is_measured=False):
        began = datetime(2026, 1, 1, 0, minute, tzinfo=UTC)
        record = RunRecord(
            run=name,
            flow="compare",
            experiment=EXPERIMENT,
            backend="{}",
            started=began,
            baseline=baseline,
            flow_run=flow_run,
        )
        book = Run.begin(runs_root(), record)
        if is_measured:
            (book.folder / "baseline.json").write_text("{}")

    return begin


def test_the_latest_measured_run_is_the_newest_that_has_measured_models(begin):
    begin("one", 0, is_measured=True)
    begin("two", 1, is_measured=True)
    begin("three", 2)
    assert measured_run("latest") == "two"
    assert measured_run("one") == "one"
    assert measured_run("three") == "three"
    with pytest.raises(ConfigurationError, match="got 'four'"):
        measured_run("four")


def test_a_run_that_is_continued_keeps_what_it_is_based_on(begin):
    begin("one", 0, is_measured=True)
    begin("two", 1, baseline="one")
    begin("three", 2, is_measured=True)
    assert begun_with("latest", "two") == "one"
    assert begun_with("three", "two") == "three"
    assert begun_with("latest", None) == begun_with("latest", "not yet") == "latest"


def test_a_retry_goes_on_with_the_run_of_its_first_attempt_whatever_it_is_told_to_continue(begin):
    @flow
    async def which(run: str) -> str | None:
        return continued(run)

    async def attempts():
        async with get_client() as client:
            flow_run = await client.create_flow_run(which, parameters={"run": "one"})
            begin("one", 0, flow_run=str(flow_run.id))
            begin("two", 1)
            first = await run_flow_async(which, flow_run=flow_run, parameters={"run": "one"})
            await client.set_flow_run_state(flow_run.id, AwaitingRetry(), force=True)
            flow_run = await client.read_flow_run(flow_run.id)
            # "latest" is another run by now.
            return first, await run_flow_async(which, flow_run=flow_run, parameters={"run": "two"})

    assert asyncio.run(attempts()) == ("one", "one")


def test_a_run_whose_ledger_is_broken_is_kept_as_failed_with_the_reason(begin, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    path = Store.from_environment().root / FILE
    path.parent.mkdir(parents=True)
    path.write_text("no ledger")

    @flow
    async def work():
        with recording("baseline", EXPERIMENT, Local(), None, None):
            async with showing_costs(Gemini()):
                await Gemini().judge([], progress=lambda *_: None)

    with pytest.raises(JudgeError, match="must be a whole file"):
        asyncio.run(work())
    record = Run.find(runs_root(), "latest").read()
    assert record.state == "Failed"
    assert str(path) in record.error
