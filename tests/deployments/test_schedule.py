"""The weekly re-measurement on a real Prefect server: paused, due, twice at once, and missed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest

from tests.serving import Server

ROOT = Path(__file__).parents[2]
SERVE = """
import asyncio, json, sys
from datetime import timedelta
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.runner import Runner
from prefect.schedules import Cron, Interval
from prefect.types.entrypoint import EntrypointType
from flows.remeasure import remeasure

async def weekly(name, schedule):
    return await remeasure.ato_deployment(
        name,
        schedule=schedule,
        parameters={"base": sys.argv[1]},
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE
        ),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )

async def main():
    runner = Runner(name="test", query_seconds=1, pause_on_shutdown=False)
    await runner.aadd_deployment(await weekly("weekly", Cron("0 3 * * 1", timezone="UTC", active=False)))
    if "often" in sys.argv:
        await runner.aadd_deployment(await weekly("often", Interval(timedelta(seconds=10), active=False)))
    if "register" not in sys.argv:
        await runner.start()

asyncio.run(main())
"""


class Api:
    """A server of its own, asked over its REST API."""

    def __init__(self, server):
        self.server = server

    def __call__(self, path, body=None, method="POST"):
        return self.server.call(path, body, method=method)

    def deployment(self, name):
        return self(f"/deployments/name/remeasure/{name}", method="GET")

    def runs(self, deployment, *states):
        wanted = {"deployments": {"id": {"any_": [deployment["id"]]}}}
        if states:
            wanted["flow_runs"] = {"state": {"name": {"any_": list(states)}}}
        return self("/flow_runs/filter", {**wanted, "sort": "EXPECTED_START_TIME_ASC"})

    def switch(self, deployment, *, on):
        [schedule] = deployment["schedules"]
        path = f"/deployments/{deployment['id']}/schedules/{schedule['id']}"
        self(path, {"active": on}, method="PATCH")


def until(what, seconds=180):
    """What becomes true, polled with a deadline."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.5)
    return found


@pytest.fixture
def server(tmp_path, monkeypatch):
    services = {
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "2",
        "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "2",
        "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "2",
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "2",
    }
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server", **services)
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_HOME"):
        monkeypatch.setenv(name, server.there[name])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    started = []

    def start(*command):
        with (tmp_path / f"log-{len(started)}").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
            )
        started.append(process)
        return process

    yield Api(server), start
    for process in reversed(started):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    server.stop()


def moment(text):
    return datetime.fromisoformat(text)


@pytest.mark.slow
def test_a_weekly_remeasurement_waits_to_be_switched_on_never_overlaps_and_catches_up_once(
    server, recorded, tmp_path
):
    api, start = server
    experiment = recorded()
    done = subprocess.run(
        [Path(sys.executable).with_name("slm-calibration"), "run", experiment],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    base = (tmp_path / "runs" / "latest").resolve().name
    serving = start("-c", SERVE, base, "often")
    weekly = until(lambda: _deployment(api, "weekly"))
    often = until(lambda: _deployment(api, "often"))

    # Two at once run one after the other.
    for _ in range(2):
        api(f"/deployments/{weekly['id']}/create_flow_run", {})
    until(lambda: len(api.runs(weekly, "Completed")) == 2)
    first, second = sorted(api.runs(weekly), key=lambda run: run["start_time"])
    assert moment(first["end_time"]) <= moment(second["start_time"])

    # Declared paused, it has made no run; switched on, it makes those of the coming weeks; off, none.
    assert len(api.runs(weekly)) == 2
    api.switch(weekly, on=True)
    due = until(lambda: api.runs(weekly, "Scheduled"))
    assert all(run["auto_scheduled"] for run in due)
    days = {moment(run["expected_start_time"]).strftime("%a %H:%M") for run in due}
    assert days == {"Mon 03:00"}
    api.switch(weekly, on=False)
    until(lambda: not api.runs(weekly, "Scheduled"))

    # Nobody serves while several are due. All that were missed begin when somebody does, and one measures.
    os.killpg(serving.pid, signal.SIGKILL)
    before = len(list((tmp_path / "runs").glob("*/drift.json")))
    api.switch(often, on=True)
    until(lambda: len(api.runs(often, "Late")) >= 3)
    api.switch(often, on=False)
    missed = len(api.runs(often, "Late"))
    start("-c", SERVE, base, "often")
    until(lambda: len(api.runs(often, "Completed")) == missed)
    assert len(list((tmp_path / "runs").glob("*/drift.json"))) == before + 1


def _deployment(api, name):
    with suppress(OSError):
        return api.deployment(name)
