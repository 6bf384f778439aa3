"""The wall clock is set by hours in the middle of a run, for all its processes."""

import json
import shutil
import struct
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

HOUR = 3600


@pytest.fixture
def set_clock(tmp_path, monkeypatch):
    """Moves the wall clock of every process of a run by so many seconds; its temporary server has it, too."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a C compiler is needed to put another clock under a process")
    library, file = tmp_path / "clock.so", tmp_path / "clock"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)

    def move(seconds):
        with file.open("r+b" if file.exists() else "wb") as moved:
            moved.write(struct.pack("q", seconds))

    move(0)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("CHAOS_CLOCK", str(file))
    monkeypatch.delenv("PREFECT_API_URL")
    return move


@pytest.mark.parametrize("hours", [24, 7, -1, -7])
def test_a_clock_that_is_set_changes_no_number_and_repeats_nothing(light, set_clock, hours):
    light.run().done()
    numbers = light.numbers()
    light.begin_anew()
    light.court.latency = 0.2

    attempt = light.run()
    attempt.wait_for("infer somebody plain")
    set_clock(hours * HOUR)
    attempt.done()

    assert light.numbers() == numbers
    light.check_nothing_was_repeated()
    record = json.loads((light.runs / "latest" / "run.json").read_text())
    report = json.loads((light.runs / "latest" / "report.json").read_text())
    assert record["state"] == "Completed"
    assert 0 < report["seconds"] <= record["seconds"] < HOUR

    latest = light.runs / "latest"
    first = latest.readlink().name
    again = light.run().done()
    assert set(again.stages().values()) == {"Cached"}
    assert latest.readlink().name != first, "the latest is the one that was begun last"
    assert {first, latest.readlink().name} <= set(light.begin("runs").done().words.split())
    for policy in report["policies"].values():
        created, expires = (datetime.fromisoformat(policy[name]) for name in ("created", "expires"))
        assert created < expires
