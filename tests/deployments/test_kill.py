"""`kill -9` in the middle of a run, and what is left of it."""

import json
import signal
import time

import pytest

from calibration.runs import Run
from tests.commands import SMALL


def stages_of(said):
    """How each stage ended, from the lines that a run has written so far."""
    ended = {}
    for line in said.read_text().splitlines():
        words = line.split()
        state = next((word for word in words if word in {"Completed", "Cached", "Failed"}), None)
        if state is not None:
            ended[" ".join(words[: words.index(state)])] = state
    return ended


def follow(process, said, until=None):
    """Wait for a run to end; with `until`, kill it as soon as that stage has ended."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if until is not None and until in stages_of(said):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    process.wait(timeout=120)
    return stages_of(said)


def finished(attempt):
    return {name for name, state in attempt.items() if state == "Completed"}


def test_a_killed_run_continues_without_repeating_what_was_whole(cli, recorded, tmp_path):
    killed = follow(*cli("run", recorded(), wait=False), until="infer somebody plain")
    assert Run.find(tmp_path / "runs", "latest").state() == "Stopped", "its temporary server lives on"
    resumed = follow(*cli("resume", "latest", wait=False))
    assert {"prepare questions", "infer somebody plain"} <= finished(killed)
    assert not finished(killed) & finished(resumed)
    assert (tmp_path / "runs" / "latest" / "report.json").exists()
    assert json.loads((tmp_path / "runs" / "latest" / "run.json").read_text())["state"] == "Completed"


@pytest.mark.slow
def test_killed_after_every_stage_it_ends_as_an_undisturbed_run(cli, tmp_path):
    experiment = tmp_path / "small.toml"
    experiment.write_text(SMALL)
    stages = list(follow(*cli("--store", tmp_path / "calm", "run", experiment, wait=False)))
    calm = json.loads((tmp_path / "runs" / "latest" / "report.json").read_text())

    attempts = [follow(*cli("run", experiment, wait=False), until="prepare questions")]
    for stage in [*stages[1:], None]:
        if stage in attempts[-1]:
            continue
        attempts.append(follow(*cli("resume", "latest", wait=False), until=stage))
    stormy = json.loads((tmp_path / "runs" / "latest" / "report.json").read_text())

    assert len(attempts) > 6
    done = [name for attempt in attempts for name in finished(attempt)]
    # One that was whole when the kill came, but not yet announced, is seen as Cached only.
    assert len(done) == len(set(done)), "no stage is finished twice"
    assert set(attempts[-1]) == set(stages), "the last attempt came to the end"
    assert stormy["run"] != calm["run"]
    assert stormy["rows"] == calm["rows"]
    assert stormy["verdicts"] == calm["verdicts"]


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_shards_that_are_not_there(cli, tmp_path):
    experiment = tmp_path / "small.toml"
    experiment.write_text(SMALL)
    shards = ("--flow", "baseline", "--set", "shards={size=30,at_once=1}")
    killed = follow(*cli("run", experiment, *shards, wait=False), until="infer tiny plain 2/5")
    stages = follow(*cli("resume", "latest", wait=False))

    plain = [f"infer tiny plain {number}/5" for number in range(1, 6)]
    assert [killed.get(name) for name in plain[:2]] == ["Completed", "Completed"]
    assert [stages[name] for name in plain[:2]] == ["Cached", "Cached"]
    assert stages[plain[4]] == stages["merge tiny plain"] == "Completed"
    assert not finished(killed) & finished(stages), "no stage is finished twice"
