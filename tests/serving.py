"""`slm-calibration ui` in a process of its own, and what a person or a program does with its server."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path

COMMAND = Path(sys.executable).with_name("slm-calibration")
RECORDED = """
name = "recorded"
[data]
kind = "table"
path = "answers.csv"
topic = "topic"
[splits]
train = 0.0
calibration = 0.3
validation = 0.0
test = 0.7
[models.somebody.engine]
kind = "recorded"
path = "answers.csv"
logprobs = "logprobs"
[judge]
kind = "recorded"
path = "answers.csv"
"""
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(folder, **more):
    """As a person has it in a folder of their own."""
    mine = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "SLM_"))}
    return mine | {"PREFECT_HOME": str(folder / ".prefect"), "OMP_NUM_THREADS": "1"} | more


class Served:
    """A server with every deployment, from the command to Ctrl-C."""

    def __init__(self, folder, **more):
        self.folder, self.port = folder, free_port()
        self.environment = environment(folder, **more)
        self.address = f"http://127.0.0.1:{self.port}"
        secret = more.get("PREFECT_SERVER_API_AUTH_STRING", "")
        self.key = {"Authorization": f"Basic {b64encode(secret.encode()).decode()}"} if secret else {}
        self.said = folder / "said"
        with self.said.open("wb") as out:
            self.process = subprocess.Popen(
                [COMMAND, "ui", "--port", str(self.port)],
                cwd=folder,
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.until(lambda: "Ctrl-C" in self.said.read_text(), 240)
            self.deployments = {own["name"]: own["id"] for own in self.call("/deployments/filter", {})}
        except BaseException:
            self.stop()
            raise

    def until(self, is_so, seconds):
        """Wait for what a person would wait for."""
        deadline = time.monotonic() + seconds
        while not (found := is_so()):
            assert self.process.poll() is None, self.said.read_text()
            assert time.monotonic() < deadline, self.said.read_text()
            time.sleep(0.2)
        return found

    def call(self, path, body=None, *, has_key=True):
        """What the API answers; an error is its code and its text."""
        request = urllib.request.Request(  # noqa: S310
            f"{self.address}/api{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"} | (self.key if has_key else {}),
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def start(self, deployment, **parameters):
        """Start a run as the UI does."""
        path = f"/deployments/{self.deployments[deployment]}/create_flow_run"
        return self.call(path, {"parameters": parameters})

    def started(self, deployment, **parameters):
        """The id of a run that was started."""
        answer = self.start(deployment, **parameters)
        assert isinstance(answer, dict), answer
        return answer["id"]

    def ended(self, flow_run, seconds=300):
        """The last state of a run and the states of its stages."""
        state = self.until(lambda: self._ended(flow_run), seconds)
        stages = self.call("/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}})
        return state, {stage["name"]: stage["state"]["name"] for stage in stages}

    def _ended(self, flow_run):
        state = self.call(f"/flow_runs/{flow_run}")["state"]
        return state if state["type"] in ENDED else None

    def run(self, *arguments):
        """A command of ours against this server."""
        environment = self.environment | {"PREFECT_API_URL": f"{self.address}/api"}
        if self.key:
            environment["PREFECT_API_AUTH_STRING"] = environment["PREFECT_SERVER_API_AUTH_STRING"]
        return subprocess.run(
            [COMMAND, *map(str, arguments)],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def interrupt(self):
        """Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=90)

    def answers(self):
        """Whether anything listens on the port."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self):
        """End whatever is left of it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
