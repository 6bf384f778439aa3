"""A server without our command: deployments for a work pool, and an automation for runs that died unseen."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.commands import SMALL
from tests.deployments.conftest import recorded_answers
from tests.serving import COMMAND, RECORDED, Server

ROOT = Path(__file__).parent.parent.parent
PREFECT = Path(sys.executable).with_name("prefect")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@contextmanager
def going(server, command, **more):
    """A process in a group of its own, which is killed at the end."""
    with (server.folder / "going").open("wb") as out:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=more.pop("cwd", server.folder),
            env=server.there | more,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def prefect(server, *arguments, cwd=ROOT):
    done = subprocess.run(
        [PREFECT, "--no-prompt", *map(str, arguments)],
        cwd=cwd,
        env=server.there,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_deployments_of_the_file_are_run_by_a_worker(server):
    recorded_answers().to_csv(server.folder / "answers.csv", index=False)
    file = server.folder / "recorded.toml"
    file.write_text(RECORDED.replace('"answers.csv"', f'"{server.folder / "answers.csv"}"'))
    prefect(server, "work-pool", "create", "slm-calibration", "--type", "process")
    prefect(server, "deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
    own = {
        "SLM_CALIBRATION_STORE": str(server.folder / "store"),
        "SLM_CALIBRATION_RUNS": str(server.folder / "runs"),
        "PREFECT_LOCAL_STORAGE_PATH": str(server.folder / "store" / "cache"),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    worker = [PREFECT, "worker", "start", "--pool", "slm-calibration"]
    with going(server, worker, **own):
        state, stages = server.ended(server.started("baseline", file=str(file)))
    assert state["name"] == "Completed", (state["message"], (server.folder / "going").read_text())
    assert "evaluate" in stages
    assert (server.folder / "runs" / "latest" / "report.html").exists()


def test_a_run_whose_whole_process_group_was_killed_ends_up_as_crashed(server):
    automation = yaml.safe_load((ROOT / "deployments" / "zombies.yaml").read_text())
    automation["automations"][0]["trigger"]["within"] = 40
    (server.folder / "zombies.yaml").write_text(yaml.safe_dump(automation))
    prefect(server, "automation", "create", "--from-file", server.folder / "zombies.yaml")
    (server.folder / "small.toml").write_text(SMALL)
    command = [COMMAND, "run", "small.toml"]
    with going(server, command, PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30"):
        flow_run = server.until(lambda: breathing(server), 180)
    assert server.call(f"/flow_runs/{flow_run}")["state"]["name"] == "Running"
    state, _ = server.ended(flow_run, seconds=240)
    assert state["name"] == "Crashed"
    assert "not been heard of" in state["message"]


def breathing(server):
    """The run of which the server has heard a sign of life."""
    running = server.call("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}})
    asked = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}}}
    events = server.call("/events/filter", asked)["events"]
    heard = {event["resource"]["prefect.resource.id"] for event in events}
    return next((run["id"] for run in running if f"prefect.flow-run.{run['id']}" in heard), None)


def test_the_automation_as_it_is_shipped_is_taken(server):
    prefect(server, "automation", "create", "--from-file", "deployments/zombies.yaml")
    taken = [own for own in server.call("/automations/filter", {}) if own["trigger"]["within"] == 90]
    assert [(own["name"], own["enabled"]) for own in taken] == [("slm-calibration-zombies", True)]
