"""`slm-calibration ui`: from one command to a run that somebody triggered."""

import http.server
import json
import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from calibration.runs import LOCK, Run, run_of
from tests.commands import SMALL
from tests.deployments.conftest import recorded_answers
from tests.serving import COMMAND, RECORDED, Served, environment, free_port


def write_experiment(folder):
    recorded_answers().to_csv(folder / "answers.csv", index=False)
    (folder / "recorded.toml").write_text(RECORDED)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    write_experiment(folder)
    served = Served(folder)
    yield served
    served.stop()


@pytest.mark.slow
def test_three_lines_say_where_to_click(served):
    said = served.said.read_text().splitlines()[-3:]
    assert said[0] == f"Prefect UI: {served.link}"
    assert f"{served.link}&/v2/deployments/deployment/{served.deployments['calibrate']}/run" in said[1]
    assert "pocket" in said[1]
    assert said[2].startswith("Ctrl-C ends it")


@pytest.mark.slow
def test_a_run_from_the_form_and_one_from_the_command_line_share_every_stage(served):
    state, stages = served.ended(served.started("calibrate", file="recorded.toml"))
    assert state["name"] == "Completed", state["message"]
    assert "Cached" not in stages.values()
    done = served.run("run", "recorded.toml")
    assert done.returncode == 0, done.stderr
    book = json.loads((served.folder / "runs" / "latest" / "report.json").read_text())
    assert {stage["state"] for stage in book["stages"]} == {"Cached"}
    _, again = served.ended(served.started("calibrate", file="recorded.toml"))
    assert {name for name, state in again.items() if state == "Cached"} >= {"evaluate", "draw"}
    assert len(list((served.folder / "runs").glob("*/report.html"))) == 4  # and one is `latest`


@pytest.mark.slow
def test_what_is_impossible_is_refused_by_the_server_with_a_sentence(served):
    code, answer = served.start("calibrate", changes={"data": {"kind": "world", "entities_per_topic": 1}})
    assert code == 409
    assert "1 is less than the minimum of 4" in answer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"changes": {"splits": {"train": 0.9}}}, "split fractions must sum to 1"),
        ({"file": "nothing.toml"}, "nothing.toml must be an experiment; No such file"),
        ({"experiment": "gemma2-nq"}, "nq_gemma2_0_shot_test.csv.gz"),
        ({"file": "recorded.toml", "run": "no-such-run"}, "run must be one of"),
    ],
)
def test_what_only_the_whole_experiment_can_tell_fails_before_any_stage(served, parameters, sentence):
    state, stages = served.ended(served.started("calibrate", **parameters))
    assert state["name"] == "Failed"
    assert sentence in state["message"]
    assert "\n" not in state["message"]
    assert stages == {}
    kept = [path for path in (served.folder / ".calibration").rglob("*") if path.is_file()]
    assert not [path for path in kept if b"pickle" in path.read_bytes()]


@pytest.mark.slow
def test_the_methods_of_another_run_need_one_that_is_there(served):
    state, _ = served.ended(served.started("compare", base="nobody", file="recorded.toml"))
    assert "run must be one of" in state["message"]
    assert "got 'nobody'" in state["message"]


@pytest.mark.slow
def test_a_second_command_uses_the_server_that_is_there(served):
    (served.folder / "second").mkdir()
    with subprocess.Popen(
        [COMMAND, "ui", "--port", str(served.port)],
        cwd=served.folder / "second",
        env=served.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as other:
        said = [other.stdout.readline() for _ in range(3)]
        other.send_signal(signal.SIGINT)
        assert other.wait(timeout=60) == 0
    assert said[0] == f"Prefect UI: {served.link}\n", said
    assert served.answers()


def killed_politely(served):
    served.process.terminate()
    return served.process.wait(timeout=90)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [Served.interrupt, killed_politely], ids=["ctrl_c", "polite_kill"])
def test_a_run_whose_process_dies_is_marked_as_crashed_and_a_stop_ends_the_runs_and_the_server(
    tmp_path, stop
):
    (tmp_path / "small.toml").write_text(SMALL)
    served = Served(tmp_path)

    def begun():
        """A run whose process is at work."""
        flow_run = served.started("calibrate", file="small.toml")
        book = served.until(lambda: under_way(tmp_path / "runs", flow_run), 120)
        return flow_run, book, int((book.folder / LOCK).read_text().removeprefix("process "))

    try:
        assert (tmp_path / ".prefect").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / ".calibration").stat().st_mode & 0o777 == 0o700
        flow_run, book, process = begun()
        os.kill(process, signal.SIGKILL)
        state, _ = served.ended(flow_run, seconds=30)
        assert (state["name"], book.state()) == ("Crashed", "Stopped")
        flow_run, book, process = begun()
        assert stop(served) == 0
        assert not served.answers()
        assert not Path(f"/proc/{process}").exists()
        assert (book.read().state, book.state()) == ("Stopped", "Stopped")
        with sqlite3.connect(tmp_path / ".prefect" / "prefect.db") as known:
            query = "SELECT state_name FROM flow_run WHERE id = ?"
            assert known.execute(query, (flow_run,)).fetchone() == ("Crashed",)
        assert "Traceback" not in served.said.read_text()
    finally:
        served.stop()


def under_way(runs, flow_run):
    """The run that a flow run has begun, once a stage of it goes on."""
    name = run_of(runs, flow_run)
    book = Run.find(runs, name) if name else None
    return book if book and book.under_way() else None


class Other(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *words):
        pass


def refused(folder, port, **more):
    done = subprocess.run(
        [COMMAND, "ui", *(["--port", str(port)] if port else [])],
        cwd=folder,
        env=environment(folder, **more),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.strip().splitlines()
    return line


def test_a_port_that_something_else_has_is_one_sentence(tmp_path):
    with http.server.HTTPServer(("127.0.0.1", 0), Other) as taken:
        threading.Thread(target=taken.serve_forever, daemon=True).start()
        line = refused(tmp_path, taken.server_port)
        taken.shutdown()
    assert f"127.0.0.1:{taken.server_port} must be free, or have the server of" in line
    assert "--port" in line


def test_a_server_elsewhere_that_does_not_answer_is_not_started_here(tmp_path):
    line = refused(tmp_path, None, PREFECT_API_URL=f"http://localhost.localdomain:{free_port()}/api")
    assert "PREFECT_API_URL must be the address of a running Prefect server" in line


@pytest.mark.slow
def test_who_does_not_know_the_password_is_refused_and_who_works_in_the_folder_knows_it(served):
    kept = served.folder / ".prefect" / "password"
    assert kept.stat().st_mode & 0o777 == 0o600
    for path in ("/flow_runs/filter", "/deployments/filter", "/artifacts/filter"):
        assert served.call(path, {}, has_key=False)[0] == 401
    wrong = refused(served.folder, None, **served.there | {"PREFECT_API_AUTH_STRING": "somebody:else"})
    assert "PREFECT_API_AUTH_STRING must be what the server" in wrong
    without = served.environment | {"PREFECT_API_URL": f"{served.address}/api"}
    done = subprocess.run(
        [COMMAND, "run", "recorded.toml"],
        cwd=served.folder,
        env=without,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert served.call("/flow_runs/filter", {"flow_runs": {"name": {"like_": "calibrate recorded"}}})


@pytest.mark.slow
def test_a_page_of_another_origin_and_a_foreign_name_are_refused_also_without_a_password(tmp_path):
    write_experiment(tmp_path)
    served = Served(tmp_path, "--no-password")
    try:
        assert "can start runs, and so run any command as you" in served.said.read_text()
        assert isinstance(served.call("/deployments/filter", {}, has_key=False), list)
        for odd in ({"Origin": "http://evil.example"}, {"Host": f"evil.example:{served.port}"}):
            assert served.call("/deployments/filter", {}, has_key=False, **odd)[0] in (403, 421)
        assert not (tmp_path / ".prefect" / "password").exists()
    finally:
        served.stop()


@pytest.mark.slow
def test_a_password_of_ones_own_is_the_one(tmp_path):
    write_experiment(tmp_path)
    served = Served(tmp_path, PREFECT_SERVER_API_AUTH_STRING="somebody:secret")
    try:
        assert served.call("/flow_runs/filter", {}, has_key=False)[0] == 401
        state, _ = served.ended(served.started("calibrate", file="recorded.toml"))
        assert state["name"] == "Completed", state["message"]
    finally:
        served.stop()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["at once", "when its server starts", "before its address", "after it"])
@pytest.mark.parametrize("blow", [signal.SIGTERM, signal.SIGKILL])
def test_whenever_it_is_killed_it_leaves_nothing_behind(tmp_path, moment, blow):
    port, said = free_port(), tmp_path / "said"
    with said.open("wb") as out:
        process = subprocess.Popen(
            [COMMAND, "ui", "--port", str(port)],
            cwd=tmp_path,
            env=environment(tmp_path),
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    signs = {
        "at once": lambda: True,
        "when its server starts": lambda: "Starting a Prefect server" in said.read_text(),
        "before its address": lambda: answers(port),
        "after it": lambda: "Ctrl-C" in said.read_text(),
    }
    wait_until(signs[moment], 240)
    process.send_signal(blow)
    process.wait(timeout=60)
    wait_until(lambda: not answers(port) and not of_folder(tmp_path), 60)
    assert "Traceback" not in said.read_text()


def wait_until(is_so, seconds):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def of_folder(folder):
    """The processes that work in a folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (place / "cwd").resolve() == folder.resolve():
                found.append(int(place.name))
    return found
