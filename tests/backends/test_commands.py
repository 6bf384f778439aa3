"""The commands that look after Modal, as a person types them."""

import json
import os
import re
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

    def run(*arguments, without=""):
        environment = {**os.environ, **cloud.environment}
        environment = {
            name: value for name, value in environment.items() if not without or without not in name
        }
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


def problems(done):
    """What a command says on standard error beside where questions go."""
    return [line for line in done.stderr.splitlines() if not line.endswith(" go to https://modal.com")]


@pytest.fixture
def ours(hub, random_model, tmp_path):
    """An experiment with two models of the hub, one of them gated."""
    files = {path.name: path.read_bytes() for path in random_model.iterdir()}
    hub.models.update({"acme/open": files, "acme/gated": files})
    hub.gated.add("acme/gated")
    rows = [f"Which town is number {n}?,Town{n}" for n in range(40)]
    (tmp_path / "answers.csv").write_text("\n".join(["question,answer", *rows]))
    (tmp_path / "ours.toml").write_text(EXPERIMENT)


def test_the_doctor_names_each_thing_that_is_wrong_with_its_remedy(cli, cloud, ours):
    cloud.secrets["st-huggingface"] = {"HF_TOKEN": "hf_of_somebody_else"}
    done = cli("doctor", "ours.toml", "--backend", "modal", "--on", "max_usd=1")
    assert done.returncode == 1
    failed = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("FAIL")}
    assert failed.keys() == {"budget", "model"}
    assert "--on max_usd=" in failed["budget"]
    assert "https://huggingface.co/acme/gated" in failed["model"]
    assert "ok    model      acme/open can be had and asked" in done.stdout

    cloud.tags = None
    done = cli("doctor", "--backend", "modal")
    assert done.returncode == 1
    assert "FAIL  app        app slm-calibration must be deployed" in done.stdout


def test_a_run_whose_model_cannot_be_had_ends_before_a_gpu_is_asked_for(cli, cloud, ours, tmp_path):
    cloud.secrets["st-huggingface"] = {"HF_TOKEN": "hf_of_somebody_else"}
    done = cli("run", "ours.toml", "--backend", "modal")
    assert done.returncode == 2
    assert len(problems(done)) == 1, done.stderr
    assert "acme/gated is gated; accept its terms" in done.stderr
    assert [call.function.function_name for call in cloud.calls.values()] == ["doctor"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("repo", "words", "asked"),
    [
        ("{folder}", "must be on the hub to be used on Modal", []),
        ("no/such/name", "found no no/such/name", ["doctor"]),
        ("acme/broken", "doctor on CPU broke: .*500.*modal app logs .*fc-", ["doctor"]),
    ],
)
def test_a_model_that_no_container_can_get_is_named_in_one_line(
    repo, words, asked, cli, cloud, hub, ours, random_model, tmp_path
):
    hub.models["acme/broken"] = None
    repo = repo.format(folder=random_model)
    (tmp_path / "ours.toml").write_text(EXPERIMENT.replace("acme/gated", repo))
    for command, code in (("run", 2), ("doctor", 1)):
        done = cli(command, "ours.toml", "--backend", "modal")
        assert done.returncode == code
        [line] = re.findall(r"^(?:FAIL|slm-calibration: ).*", done.stdout + done.stderr, re.MULTILINE)
        assert re.search(words, line), line
        assert len(problems(done)) == (command == "run"), done.stderr
        assert [call.function.function_name for call in cloud.calls.values()] == asked
        cloud.calls.clear()


@pytest.mark.parametrize("command", ["doctor", "run"])
def test_without_credentials_each_command_says_how_to_get_them(command, cli):
    done = cli(command, "pocket", "--backend", "modal", without="MODAL_TOKEN")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "Run: modal setup" in done.stdout + done.stderr


def test_the_doctor_has_nothing_to_say_against_this_machine(cli):
    done = cli("doctor")
    assert (done.returncode, done.stdout.split()) == (0, ["ok", "backend", "local:", "this", "machine"])


def test_the_doctor_says_what_keeps_a_cluster_or_an_experiment_from_being_used(cli):
    done = cli("doctor", "gemma2-nq", "--backend", "dask")
    assert done.returncode == 1
    cluster, experiment = done.stdout.splitlines()
    assert re.match(r"FAIL +backend +.* SLM_CALIBRATION_SHARED is not set", cluster)
    assert re.match(r"FAIL +experiment +data/nq_gemma2_0_shot_test.csv.gz must be a data file", experiment)


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
    assert len(problems(done)) == 1, done.stderr
    assert words in done.stderr
    assert not (tmp_path / "runs").exists()


def test_open_calls_are_listed_and_cancelled(cli, cloud, hub):
    store = Store.from_environment()
    environment = {"key": "0123456789abcdef", "kind": "train", "environment": None, "gpu": "H100"}
    call = Call(
        **environment, minutes=30, usd_per_hour=4.0, priced="2026-05-07", begun=datetime.now(UTC), call=""
    )
    Ledger(store).note(call)
    # One that began so long ago that Modal has forgotten it.
    Ledger(store).note(call.model_copy(update={"key": "fedcba9876543210", "call": "fc-0"}))
    done = cli("calls", "list")
    assert "0123456789ab  train   H100" in done.stdout
    assert "was never begun" in done.stdout
    assert "fc-0  over; the next run collects it" in done.stdout
    assert "0.00 USD spent within 24 hours" in done.stdout
    assert cli("calls", "cancel", "aaaa").returncode == 2
    done = cli("calls", "cancel", "0123", "fedc")
    lines = [line.split()[:3] for line in done.stdout.splitlines()]
    assert sorted(lines) == [["cancelled", "train", "0123456789ab"], ["cancelled", "train", "fedcba987654"]]
    assert Ledger(store).open() == []


def test_a_call_that_goes_on_is_stopped_by_hand(cli, cloud, hub, begun):
    store = Store.from_environment()
    _, call = begun("acme/by-hand", "by-hand")
    assert "going on" in cli("calls", "list").stdout
    assert call.id in cli("calls", "cancel").stdout
    assert call.output is not None
    assert json.loads((store.root / "costs.jsonl").read_text())["outcome"] == "cancelled"
    assert Ledger(store).open() == []
