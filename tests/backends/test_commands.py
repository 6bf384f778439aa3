"""The commands that look after Modal, as a person types them."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from calibration.artifacts import Store
from calibration.backends.ledger import Call, Ledger

COMMAND = Path(sys.executable).with_name("slm-calibration")

EXPERIMENT = """
name = "ours"
[data]
kind = "table"
path = "answers.csv"
[models.open.weights]
kind = "hub"
repo = "acme/open"
[models.gated.weights]
kind = "hub"
repo = "acme/gated"
[judge]
kind = "exact"
"""


@pytest.fixture
def cli(cloud, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))

    def run(*arguments):
        environment = {**os.environ, **cloud.environment}
        return subprocess.run(
            [COMMAND, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_the_doctor_finds_everything_in_order(cli):
    done = cli("doctor", "--backend", "modal")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", what] for what in ("app", "secret", "prices", "budget", "container")
    ]
    assert "A100-40GB at 2.10 USD an hour" in done.stdout
    assert "torch 2." in lines[-1]


def test_the_doctor_names_each_thing_that_is_wrong_with_its_remedy(cli, cloud, hub, tmp_path):
    (tmp_path / "ours.toml").write_text(EXPERIMENT)
    hub.models.update({"acme/open": {}, "acme/gated": {}})
    hub.gated.add("acme/gated")
    cloud.secrets["st-huggingface"] = {"HF_TOKEN": "hf_of_somebody_else"}
    done = cli("doctor", "ours.toml", "--backend", "modal", "--on", "max_usd=1")
    assert done.returncode == 1
    failed = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("FAIL")}
    assert failed.keys() == {"budget", "model"}
    assert "--on max_usd=" in failed["budget"]
    assert "https://huggingface.co/acme/gated" in failed["model"]
    assert "ok    model      acme/open can be had" in done.stdout

    cloud.tags = None
    done = cli("doctor", "--backend", "modal")
    assert done.returncode == 1
    assert "FAIL  app        app slm-calibration must be deployed" in done.stdout


def test_the_doctor_has_nothing_to_say_against_this_machine(cli):
    done = cli("doctor")
    assert (done.returncode, done.stdout.split()) == (0, ["ok", "backend", "local:", "this", "machine"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--on", "infer_gpu=H900"], "infer_gpu must be one of T4"),
        (["--on", "max_usd=0"], "--on: max_usd"),
        (["--on", "gpus=2"], "no such setting"),
        ([], "must be deployed"),
    ],
)
def test_a_run_that_cannot_be_is_refused_in_one_line_before_it_begins(cli, cloud, tmp_path, arguments, words):
    cloud.tags = None
    done = cli("run", "pocket", "--backend", "modal", *arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert words in done.stderr
    assert not (tmp_path / "runs").exists()


def test_open_calls_are_listed_and_cancelled(cli, cloud, hub):
    store = Store.from_environment()
    environment = {"key": "0123456789abcdef", "kind": "train", "environment": None, "gpu": "H100"}
    call = Call(
        **environment, minutes=30, usd_per_hour=4.0, priced="2026-05-07", begun=datetime.now(UTC), call=""
    )
    Ledger(store).note(call)
    done = cli("calls", "list")
    assert "0123456789ab  train   H100" in done.stdout
    assert "was never begun" in done.stdout
    assert "0.00 USD spent within 24 hours" in done.stdout
    assert cli("calls", "cancel", "ffff").returncode == 2
    done = cli("calls", "cancel", "0123")
    assert done.stdout.split()[:3] == ["cancelled", "train", "0123456789ab"]
    assert Ledger(store).open() == []


def test_a_call_that_goes_on_is_stopped_by_hand(cli, cloud, hub, begun):
    store = Store.from_environment()
    _, call = begun("acme/by-hand", "by-hand")
    assert "going on" in cli("calls", "list").stdout
    assert call.id in cli("calls", "cancel").stdout
    assert call.output is not None
    assert json.loads((store.root / "costs.jsonl").read_text())["outcome"] == "cancelled"
    assert Ledger(store).open() == []
