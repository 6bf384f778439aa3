"""Cancelling on a real server, of a flow that no runner started."""

import asyncio

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.states import Cancelling

from tasks import cancellation
from tasks.cancellation import heeding_cancellation


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(cancellation, "LOOK_SECONDS", 0.01)


def test_a_flow_that_is_cancelled_on_the_server_stops_with_all_that_runs_in_it():
    stopped = []

    async def job():
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append("job")

    @flow
    async def waits():
        with heeding_cancellation():
            jobs = asyncio.gather(job(), job(), return_exceptions=True)
            async with get_client() as client:
                # What the button in the UI does.
                await client.set_flow_run_state(FlowRunContext.get().flow_run.id, Cancelling())
            await jobs

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(asyncio.wait_for(waits(), 60))
    assert stopped == ["job", "job"]


def test_a_flow_that_nobody_cancels_comes_to_its_end_and_leaves_no_watcher():
    @flow
    async def works():
        with heeding_cancellation():
            await asyncio.sleep(0.1)
        for _ in range(100):
            await asyncio.sleep(0)
        return [task for task in asyncio.all_tasks() if "_watch" in str(task.get_coro())]

    assert asyncio.run(works()) == []


def test_outside_of_a_flow_there_is_nothing_to_heed():
    async def alone():
        with heeding_cancellation():
            return len(asyncio.all_tasks())

    assert asyncio.run(alone()) == 1
