"""Our Prefect servers, each in a process of its own, and what a person or a program does with them."""

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
from contextlib import contextmanager
from functools import cached_property
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


def _unless_busy(answer):
    return None if isinstance(answer, tuple) and answer[0] == 503 else answer


@contextmanager
def harness(folder):
    """A temporary server for all that Prefect does in this process."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    from deployments.console import told
    from deployments.server import temporary

    with temporary(folder) as server, told(server):
        yield
        APILogWorker.drain_all(timeout=10.0)
        EventsWorker.drain_all(timeout=10.0)


class Server:
    """A Prefect server in a folder of its own, from its command to its end."""

    def __init__(self, folder, *words, **more):
        self.folder, self.port, self.words = folder, free_port(), words
        self.environment = environment(folder, **more)
        self.address = f"http://127.0.0.1:{self.port}"
        self.said = folder / "said"
        with self.said.open("wb") as out:
            self.process = subprocess.Popen(
                self.command(),
                cwd=folder,
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.until(self.is_ready, 240)
        except BaseException:
            self.stop()
            raise

    @property
    def password(self):
        if given := self.environment.get("PREFECT_SERVER_API_AUTH_STRING"):
            return given
        kept = self.folder / ".prefect" / "password"
        return kept.read_text() if kept.exists() else ""

    @property
    def link(self):
        """What a person follows to sign in."""
        return f"{self.address}/sign-in#{b64encode(self.password.encode()).decode()}"

    def at(self, place):
        """The address of a page, which signs a person in."""
        return f"{self.link}&{place}"

    @property
    def key(self):
        return {"Authorization": f"Basic {b64encode(self.password.encode()).decode()}"}

    @property
    def there(self):
        """What a program has that speaks to it."""
        url = {"PREFECT_API_URL": f"{self.address}/api"}
        return self.environment | url | {"PREFECT_API_AUTH_STRING": self.password}

    def command(self):
        return [COMMAND, "server", "--port", str(self.port), *self.words]

    def is_ready(self):
        return "For workers" in self.said.read_text()

    def until(self, is_so, seconds):
        """Wait for what a person would wait for."""
        deadline = time.monotonic() + seconds
        while not (found := is_so()):
            assert self.process.poll() is None, self.said.read_text()
            assert time.monotonic() < deadline, self.said.read_text()
            time.sleep(0.2)
        return found

    def call(self, path, body=None, *, method=None, has_key=True, **headers):
        """What the API answers; an error is its code and its text."""
        request = urllib.request.Request(  # noqa: S310
            f"{self.address}/api{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"} | (self.key if has_key else {}) | headers,
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    @cached_property
    def deployments(self):
        """The ids of the deployments, by name."""
        return {own["name"]: own["id"] for own in self.call("/deployments/filter", {})}

    def start(self, deployment, **parameters):
        """Start a run as the UI does; on SQLite a busy server may ask to try again (503)."""
        path = f"/deployments/{self.deployments[deployment]}/create_flow_run"
        return self.until(lambda: _unless_busy(self.call(path, {"parameters": parameters})), 60)

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

    def run(self, *arguments, command=COMMAND):
        """A command against this server."""
        return subprocess.run(
            [command, *map(str, arguments)],
            cwd=self.folder,
            env=self.there,
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


class Served(Server):
    """A server with every deployment, by the command of ours."""

    def command(self):
        return [COMMAND, "ui", "--port", str(self.port), *self.words]

    def is_ready(self):
        return "Ctrl-C" in self.said.read_text()
