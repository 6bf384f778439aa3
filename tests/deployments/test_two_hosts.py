"""Two hosts that share a Prefect server and a bucket, and nothing else: each has folders of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.deployments.conftest import recorded_answers
from tests.serving import Server

ROOT = Path(__file__).parent.parent.parent
PREFECT = [sys.executable, "-m", "prefect"]

pytestmark = pytest.mark.slow


def until(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def start(command, log, environment):
    with log.open("ab") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)


class Host:
    """A worker in folders of its own, listening to a queue of its own."""

    def __init__(self, name, root, environment):
        self.name, self.root = name, root / name
        (self.root / "tmp").mkdir(parents=True)
        folders = {
            "HOME": self.root,
            "TMPDIR": self.root / "tmp",
            "PREFECT_HOME": self.root / "prefect",
            "SLM_CALIBRATION_STORE": self.root / "store",
            "SLM_CALIBRATION_RUNS": self.root / "runs",
            "PREFECT_LOCAL_STORAGE_PATH": self.root / "store" / "cache",
        }
        self.environment = environment | {key: str(folder) for key, folder in folders.items()}

    def boot(self):
        command = [
            *PREFECT,
            "worker",
            "start",
            "--pool",
            "pool",
            "--work-queue",
            self.name,
            "--type",
            "process",
        ]
        self.worker = start(command, self.root / "log", self.environment)

    def kill(self):
        """Kill every process of this host at once, as a power cut does."""
        for _ in range(2):
            for place in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    if f"SLM_CALIBRATION_STORE={self.root}/".encode() in (place / "environ").read_bytes():
                        os.kill(int(place.name), signal.SIGKILL)
        self.worker.wait()

    def stages(self, run):
        """How each stage of a run has ended here."""
        path = self.root / "runs" / run / "stages.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        stages = {stage["name"]: stage["state"] for stage in map(json.loads, lines)}
        return {name: state for name, state in stages.items() if state != "Running"}

    def report(self, run):
        """The report of a run, once it has ended."""

        def ended():
            record = self.root / "runs" / run / "run.json"
            return record.exists() and json.loads(record.read_text())["state"] != "Running"

        until(ended)
        return json.loads((self.root / "runs" / run / "report.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def environment(s3, folder):
    """A Prefect server, and what all hosts are told."""
    (folder / "server").mkdir()
    server = Server(folder / "server")
    kept = {name: value for name, value in server.there.items() if name != "PREFECT_HOME"}
    yield kept | {
        "PYTHONPATH": str(ROOT),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "SLM_CALIBRATION_SHARED": f"s3://bucket/{folder.name}",
    }
    server.stop()


@pytest.fixture(scope="module")
def hosts(environment, folder):
    both = [Host(name, folder, environment) for name in ("a", "b")]
    for host in both:
        host.boot()
    yield both
    for host in both:
        host.kill()


DEPLOY = """
import asyncio, json, sys
from contextlib import suppress
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists
from flows.pipeline import baseline

async def main(queue, folder, parameters):
    async with get_client() as client:
        with suppress(ObjectAlreadyExists):
            await client.create_work_pool(WorkPoolCreate(name="pool", type="process"))
        with suppress(ObjectAlreadyExists):
            await client.create_work_queue(name=queue, work_pool_name="pool")
        deployment = await client.create_deployment(
            flow_id=await client.create_flow(baseline),
            name=queue,
            entrypoint="flows.pipeline.baseline",
            work_pool_name="pool",
            work_queue_name=queue,
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": folder}}],
        )
        await client.create_flow_run_from_deployment(deployment, parameters=parameters, work_queue_name=queue)

asyncio.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
"""
HERE = """
import asyncio, json, sys
from flows.pipeline import baseline
asyncio.run(baseline(**json.loads(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def trigger(environment, folder):
    """Asks the server for a run on each of some hosts, at the same time."""

    def ask(experiment, **runs):
        asked = []
        for host, run in runs.items():
            parameters = json.dumps({"experiment": experiment, "run": run})
            home = {"PREFECT_HOME": str(folder / f"person-{host}")}
            command = [sys.executable, "-c", DEPLOY, host, str(ROOT), parameters]
            asked.append(subprocess.Popen(command, env=environment | home))
        assert [person.wait() for person in asked] == [0] * len(asked)

    return ask


@pytest.fixture(scope="module")
def experiment(folder):
    """An experiment on so many recorded answers."""

    def make(count):
        path = folder / f"answers-{count}.csv"
        recorded_answers(count).to_csv(path, index=False)
        return {
            "name": "recorded",
            "data": {"kind": "table", "path": str(path), "topic": "topic"},
            "splits": {"train": 0.0, "calibration": 0.3, "validation": 0.0, "test": 0.7},
            "models": {
                "somebody": {"engine": {"kind": "recorded", "path": str(path), "logprobs": "logprobs"}}
            },
            "judge": {"kind": "recorded", "path": str(path)},
        }

    return make


def test_two_hosts_that_do_the_same_at_once_do_each_stage_once(hosts, trigger, experiment):
    a, b = hosts
    trigger(experiment(200), a="both-a", b="both-b")
    one, other = a.report("both-a"), b.report("both-b")
    assert one["rows"] == other["rows"]
    done, there = a.stages("both-a"), b.stages("both-b")
    assert done.keys() == there.keys()
    for stage in done:
        assert {done[stage], there[stage]} == {"Completed", "Cached"}, stage


def test_what_a_host_leaves_that_is_killed_the_other_goes_on_with(
    hosts, trigger, experiment, environment, folder
):
    a, b = hosts
    asked = experiment(300)
    trigger(asked, a="killed")
    until(lambda: "judge somebody plain" in a.stages("killed"))
    a.kill()
    left = a.stages("killed")
    assert "draw" not in left

    trigger(asked, b="continued")
    report = b.report("continued")
    continued = b.stages("continued")
    assert {continued[stage] for stage in left} == {"Cached"}
    assert continued["draw"] == "Completed"

    a.boot()
    trigger(asked, a="after")
    assert a.report("after")["rows"] == report["rows"]
    assert set(a.stages("after").values()) == {"Cached"}

    alone = Host("alone", folder, {k: v for k, v in environment.items() if k != "SLM_CALIBRATION_SHARED"})
    subprocess.run(
        [sys.executable, "-c", HERE, json.dumps({"experiment": asked, "run": "calm"})],
        env=alone.environment,
        cwd=ROOT,
        check=True,
    )
    calm = alone.report("calm")
    assert calm["rows"] == report["rows"]
    assert set(alone.stages("calm").values()) == {"Completed"}
