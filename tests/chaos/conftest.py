"""What the tests of chaos share: runs that are watched and killed, and what an undisturbed run says."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from tests.commands import SMALL
from tests.deployments.conftest import COMMAND, recorded  # noqa: F401 - a fixture
from tests.judges.compatible_server import CompatibleServer

WATCH = Path(__file__).with_name("watch")
ENDS = {"Completed", "Cached", "Failed"}
COURT = '[judge]\nkind = "openai"\nmodel = "judge-7b"\nservice = "court"\n'
"""A judge behind a server that counts on its side."""
JUDGED = SMALL.replace('[judge]\nkind = "exact"\n', COURT)
CHOSEN = os.environ.get("CHAOS_EXPERIMENT")
"""A shipped experiment to be killed in place of the small one, such as `pocket`."""
SHIPPED = Path(__file__).parents[2] / "deployments" / "experiments"
EXPERIMENT = (SHIPPED / f"{CHOSEN}.toml").read_text() if CHOSEN else JUDGED
PATIENCE = 3600 if CHOSEN else 600
"""Seconds within which a run must end."""
OPENS = "chaos:planted"
OF_THE_RUN = {"run", "started", "seconds", "stages", "backend"}
"""What a report says of its run, and not of the models."""


class Server:
    """A Prefect server of our own, on a port and a database that it keeps when it is started again."""

    def __init__(self, home):
        self.home = home
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/api"

    def start(self):
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "said").open("ab") as said:
            self.process = subprocess.Popen(
                [COMMAND, "server", "--port", str(self.port)],
                cwd=self.home,
                env={**os.environ, "PREFECT_HOME": str(self.home), "PREFECT_SERVER_API_AUTH_STRING": OPENS},
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        wait_until(self.is_healthy, 120)

    def is_healthy(self):
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/health", timeout=5).is_success
        return False

    def kill(self):
        """`kill -9` of the command and of the server that it has started."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            process.kill()
        kill(self.process)

    @property
    def there(self):
        """What a run has in its environment that speaks to it."""
        return {"PREFECT_API_URL": self.url, "PREFECT_API_AUTH_STRING": OPENS}


def wait_until(is_so, seconds):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"it did not come to be within {seconds} s"
        time.sleep(0.02)


def kill(process):
    """`kill -9` of the whole process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass
class Attempt:
    """A command that is going on, or was."""

    process: subprocess.Popen
    said: Path
    begun: float = field(default_factory=time.time)

    @property
    def words(self):
        return self.said.read_text()

    def stages(self):
        """How each stage that is over ended, from the lines that were written so far."""
        return {name: state for name, state in map(ending, self.words.splitlines()) if state}

    def durations(self):
        """The seconds that each stage took which is over."""
        lines = [line.split() for line in self.words.splitlines() if ending(line)[1]]
        return {" ".join(words[:-3]): float(words[-2]) for words in lines}

    def under_way(self, place, wanted):
        """The first stage to be under way of those that are wanted; None when it ends without one."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.words
            if found := [stage for stage in place.going(self.begun) if stage in wanted]:
                return found[0]
            time.sleep(0.01)
        return None

    def met(self, place):
        """The stages that were under way when it was killed; none when it had ended."""
        return place.going(self.begun) if self.process.returncode == -signal.SIGKILL else []

    def follow(self, until=None):
        """Wait for its end; with `until`, kill its group as soon as that stage is over."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.words
            if until is not None and until in self.stages():
                kill(self.process)
            time.sleep(0.02)
        return self

    def wait_for(self, stage):
        """Wait until this stage is over, in a run that goes on."""
        wait_until(lambda: stage in self.stages() or self.process.poll() is not None, 120)
        assert self.process.poll() is None, self.words

    def done(self):
        """Wait for an end that must be a good one."""
        assert self.follow().process.returncode == 0, self.words
        return self

    def kill_after(self, seconds):
        """Kill its group at this instant; False when it had ended before."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=seconds)
            return False
        kill(self.process)
        return True


def ending(line):
    words = line.split()
    state = next((word for word in words if word in ENDS), None)
    return (" ".join(words[: words.index(state)]), state) if state else ("", None)


class Place:
    """A folder with an experiment, a store and runs, where commands are begun that are watched."""

    def __init__(self, folder, court):
        self.folder, self.court = folder, court
        self.store, self.runs, self.book = folder / "store", folder / "runs", folder / "book"
        self.experiment = folder / "experiment.toml"
        self.attempts = []
        folder.mkdir(exist_ok=True)

    def begin(self, *arguments, **environment):
        said = self.folder / f"said-{len(self.attempts)}"
        with said.open("wb") as out:
            process = subprocess.Popen(
                [COMMAND, "--store", self.store, "--runs", self.runs, *map(str, arguments)],
                cwd=self.folder,
                env={
                    **os.environ,
                    "PREFECT_HOME": str(self.folder / "prefect"),
                    "PYTHONPATH": os.pathsep.join([str(WATCH), *sys.path]),
                    "CHAOS_BOOK": str(self.book),
                    "OPENAI_BASE_URL": f"{self.court.url}/v1",
                    **environment,
                },
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.attempts.append(Attempt(process, said))
        return self.attempts[-1]

    def run(self, *arguments, **environment):
        return self.begin("run", self.experiment, *arguments, **environment)

    def resume(self, **environment):
        return self.begin("resume", "latest", **environment)

    def go_on(self):
        """Continue the run, as a person does; where the kill came before there was one, begin it."""
        return self.resume() if (self.runs / "latest" / "run.json").exists() else self.run()

    def begin_anew(self):
        """An empty store and no runs; what came of the earlier ones was looked at."""
        for folder in (self.store, self.runs):
            shutil.rmtree(folder)
        self.book.unlink()
        self.court.seen.clear()
        self.court.cases.clear()

    def going(self, since):
        """The stages of the run that are under way, by what was written in its folder since then."""
        path = self.runs / "latest" / "stages.jsonl"
        states = {}
        with suppress(OSError):
            if path.stat().st_mtime < since:
                return []
            for line in path.read_text().splitlines():
                with suppress(ValueError):
                    stage = json.loads(line)
                    states[stage["name"]] = stage["state"]
        return [name for name, state in states.items() if state == "Running"]

    def numbers(self, runs="runs"):
        """All that a report says, but for what it says of its run and of the time."""
        report = json.loads((self.folder / runs / "latest" / "report.json").read_text())
        for policy in report["policies"].values():
            del policy["created"], policy["expires"]
        return {name: value for name, value in report.items() if name not in OF_THE_RUN}

    def finished_jobs(self):
        """How often a worker came to the end of each job."""
        lines = [line.split(" ", 1) for line in self.book.read_text().splitlines()]
        return Counter(job for job, place in lines if job != "-" and "/artifacts/" in place)

    def artifacts(self, kind):
        return sorted((self.store / "artifacts" / kind).iterdir())

    def records(self):
        return sorted((self.store / "cache").rglob("*.json"))

    def check_nothing_was_repeated(self):
        """By what the watched processes and the judge's server counted, and by the ledger's own rows."""
        assert set(self.finished_jobs().values()) <= {1}, self.finished_jobs()
        self.check_no_call_was_repeated()

    def check_no_call_was_repeated(self):
        if not self.court.count:
            return
        with sqlite3.connect(self.store / "judge.sqlite") as ledger:
            attempts = dict(ledger.execute("SELECT outcome, COUNT(*) FROM attempt GROUP BY outcome"))
            most = ledger.execute(
                "SELECT COUNT(*) FROM attempt WHERE outcome = 'judged' GROUP BY key ORDER BY 1 DESC"
            ).fetchone()[0]
        lost = attempts.pop("lost", 0)
        assert set(attempts) == {"judged"}
        assert most == 1, "no finished call is made again"
        assert self.court.count - len(self.court.cases) <= lost, "only what was under way is asked again"

    def close(self):
        for attempt in self.attempts:
            kill(attempt.process)


@pytest.fixture(scope="session")
def prefect(tmp_path_factory):
    """A Prefect server that outlives whatever is killed."""
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def court():
    """The judge's server."""
    with CompatibleServer(latency=0.02) as server:
        yield server


@pytest.fixture
def place(tmp_path, court, prefect, monkeypatch):
    """An empty place; what it runs talks to the server that is there."""
    for name, value in prefect.there.items():
        monkeypatch.setenv(name, value)
    here = Place(tmp_path, court)
    here.experiment.write_text(EXPERIMENT)
    yield here
    here.close()


@pytest.fixture(scope="session")
def calm(tmp_path_factory, prefect):
    """An undisturbed run of the small experiment, as everything here should end, and how long it took."""
    with CompatibleServer() as court:
        here = Place(tmp_path_factory.mktemp("calm"), court)
        here.experiment.write_text(EXPERIMENT)
        began = time.monotonic()
        here.run(**prefect.there).done()
        here.seconds = time.monotonic() - began
        here.check_nothing_was_repeated()
        yield here
        here.close()


@pytest.fixture
def light(place, recorded):  # noqa: F811 - the fixture of that name
    """A place whose experiment takes its answers from a table: seconds, most of them the judge's."""
    text = recorded().read_text().replace('[judge]\nkind = "recorded"\npath = "answers.csv"\n', COURT)
    assert COURT in text
    place.experiment.write_text(text)
    return place


@pytest.fixture
def whole(place, calm):
    """A place where the undisturbed run was made."""
    shutil.copytree(calm.store, place.store)
    return place
