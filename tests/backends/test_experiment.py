"""A whole experiment on Modal's stand-in, on a bad day."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from calibration.artifacts import Store
from calibration.backends.ledger import Ledger
from tests.commands import SMALL
from tests.judges.compatible_server import CompatibleServer
from tests.serving import Server

COMMAND = Path(sys.executable).with_name("slm-calibration")


OTHERS = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "default"}


@pytest.fixture
def start(cloud, tmp_path, monkeypatch):
    """Starts the command in a folder of its own; ends what is left of it."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / "small.toml").write_text(SMALL)
    started = []

    def run(*arguments, **variables):
        said = (tmp_path / f"said-{len(started)}").open("wb")
        with said:
            process = subprocess.Popen(
                [str(COMMAND), *map(str, arguments)],
                cwd=tmp_path,
                env={**os.environ, **cloud.environment, **variables},
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield run
    for process in started:
        # The temporary server of a killed run outlives it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def report(tmp_path):
    return json.loads((tmp_path / "runs" / "latest" / "report.json").read_text())


def of_kind(cloud, kind):
    return [call for call in list(cloud.calls.values()) if call.function.function_name == kind]


def has_checkpoint(call):
    """Whether a training has written a checkpoint to its end."""
    return call.containers and list(call.containers[-1].folder.rglob("checkpoint-*/seal.json"))


def assert_close(one, other, where="report"):
    """Equal to 1e-6 in every number, and in everything else."""
    if isinstance(one, float) and isinstance(other, float):
        assert math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_close(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, f"{where}[{number}]")
    else:
        assert one == other, where


def findings(report):
    """What a report says, without when and where it was made."""
    found = {
        name: value
        for name, value in report.items()
        if name not in ("run", "started", "seconds", "stages", "backend", "policies")
    }
    for system, policy in report["policies"].items():
        found[system] = {name: policy[name] for name in policy if name not in ("created", "expires")}
    return found


def adapters(store):
    """The weights of every adapter in a store."""
    return [load_file(path) for path in store.glob("artifacts/adapter/*/adapter_model.safetensors")]


def is_close(one, other):
    """Whether two adapters are the same but for the last digits."""
    return all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


@pytest.mark.slow
def test_killed_and_preempted_it_ends_as_a_local_run_and_no_job_ran_twice(cloud, start, tmp_path, until):
    modal = ("--backend", "modal", "--on", "poll_seconds=0.5")
    ledger = Ledger(Store(tmp_path / "store"))

    def both(kind):
        # With their ids on the disk: the moment before, in which a call could be begun twice, is known.
        return sum(call.kind == kind and call.call != "" for call in ledger.open()) == 2

    for arguments, kind in (("run", "small.toml"), "infer"), (("resume", "latest"), "train"):
        process = start(*arguments, *modal)
        until(lambda kind=kind, process=process: both(kind) or process.poll() is not None, seconds=300)
        assert process.poll() is None, "it ended before it was killed; see the last file said-*"
        process.kill()
        process.wait()
    preempted = until(lambda: next(filter(has_checkpoint, of_kind(cloud, "train")), None), seconds=300)
    cloud.preempt(preempted)
    assert start("resume", "latest", *modal).wait(timeout=500) == 0
    there = report(tmp_path)
    kinds = [call.function.function_name for call in cloud.calls.values()]
    assert sorted(kinds) == ["infer"] * 4 + ["obtain"] + ["train"] * 2
    assert {call.id: len(call.containers) for call in cloud.calls.values()} == {
        call.id: 2 if call is preempted else 1 for call in cloud.calls.values()
    }
    assert not list((tmp_path / "store" / "calls").glob("*.json"))

    # What this machine's environment says of threads counts here no more than there.
    here = start("--store", tmp_path / "here", "run", "small.toml", **OTHERS)
    assert here.wait(timeout=500) == 0
    here = report(tmp_path)
    assert here["run"] != there["run"]
    assert_close(findings(there), findings(here))
    stormy, calm = adapters(tmp_path / "store"), adapters(tmp_path / "here")
    assert len(stormy) == len(calm) == 2
    assert all(any(is_close(one, other) for other in calm) for one in stormy)
    assert not is_close(*calm)


@pytest.mark.slow
def test_killed_while_models_answer_and_while_answers_are_judged_nothing_is_paid_twice(
    cloud, start, tmp_path, until
):
    """The results of the calls expire meanwhile: what a container made is on the volume."""
    court = '[judge]\nkind = "openai"\nmodel = "judge-7b"\nservice = "court"\nconcurrency = 10\n'
    (tmp_path / "judged.toml").write_text(SMALL.replace('[judge]\nkind = "exact"\n', court))
    modal, ledger = ("--backend", "modal", "--on", "poll_seconds=0.5"), Ledger(Store(tmp_path / "store"))
    with CompatibleServer(latency=0.03) as server:
        here = {"OPENAI_BASE_URL": f"{server.url}/v1"}
        signs = {
            "run judged.toml": lambda: sum(c.kind == "infer" and c.call != "" for c in ledger.open()) == 2,
            "resume latest": lambda: server.count > 30,
        }
        for command, sign in signs.items():
            process = start(*command.split(), *modal, **here)
            until(lambda sign=sign, process=process: sign() or process.poll() is not None, seconds=300)
            assert process.poll() is None, "it ended before it was killed; see the last file said-*"
            process.kill()
            process.wait()
            for call in of_kind(cloud, "infer"):
                until(call.over.is_set, seconds=300)
                call.expired = True
        assert start("resume", "latest", *modal, **here).wait(timeout=500) == 0
        assert server.count - len(server.cases) <= 10, "only what was under way is asked again"
    kinds = Counter(call.function.function_name for call in cloud.calls.values())
    assert kinds == {"obtain": 1, "infer": 4, "train": 2}
    assert {len(call.containers) for call in cloud.calls.values()} == {1}
    assert ledger.open() == []


@pytest.mark.pocket
def test_the_demo_ends_on_modal_as_it_ends_here(cloud, start, tmp_path):
    elsewhere = start("run", "pocket", "--backend", "modal")
    assert elsewhere.wait(timeout=3600) == 0
    there = report(tmp_path)
    kinds = [call.function.function_name for call in cloud.calls.values()]
    assert sorted(kinds) == ["infer"] * 4 + ["obtain"] + ["train"] * 2
    here = start("--store", tmp_path / "here", "run", "pocket", **OTHERS)
    assert here.wait(timeout=3600) == 0
    assert report(tmp_path)["run"] != there["run"]
    assert_close(findings(there), findings(report(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["taken", "running"])
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_stops_its_container_within_seconds(by, moment, cloud, start, tmp_path, until):
    if moment == "taken":
        cloud.answers.clear()
    process = start("run", "small.toml", "--backend", "modal")
    [call] = until(lambda: of_kind(cloud, "obtain"), seconds=300)
    ledger = Ledger(Store(tmp_path / "store"))
    until(lambda: ledger.open() if moment == "taken" else call.containers and call.containers[0].begun)
    until(lambda: moment == "taken" or ledger.open()[0].call)
    began = time.monotonic()
    process.send_signal(by)
    if moment == "taken":
        # Modal's answer comes when the run is being torn down already.
        time.sleep(1)
        cloud.answers.set()
    until(call.over.is_set)
    assert time.monotonic() - began < 10
    until(lambda: call.containers[0].process.returncode is not None)
    # One that was still starting finds out only when it asks what to do.
    assert moment == "taken" or time.monotonic() - began < 10
    assert "TERMINATED" in str(call.output)
    process.wait(timeout=60)
    assert ledger.open() == []


@pytest.fixture
def server(tmp_path):
    """A Prefect server with nothing on it."""
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server")
    yield server
    server.stop()


@pytest.mark.slow
def test_a_run_that_is_cancelled_in_the_ui_stops_its_container_within_seconds(
    cloud, start, server, tmp_path, until
):
    told = {name: server.there[name] for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")}
    process = start("run", "small.toml", "--backend", "modal", **told)
    [call] = until(lambda: of_kind(cloud, "obtain"), seconds=300)
    until(lambda: call.containers and call.containers[0].begun)
    [flow_run] = server.call("/flow_runs/filter", {})
    began = time.monotonic()
    # What the button does.
    answer = server.call(f"/flow_runs/{flow_run['id']}/set_state", {"state": {"type": "CANCELLING"}})
    assert answer["status"] == "ACCEPT"
    until(lambda: call.over.is_set() and call.containers[0].process.returncode is not None)
    assert time.monotonic() - began < 10
    assert "TERMINATED" in str(call.output)
    assert process.wait(timeout=60) == 1
    assert Ledger(Store(tmp_path / "store")).open() == []
    assert "was stopped" in (tmp_path / "said-0").read_text()
