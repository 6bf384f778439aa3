"""Locks between machines. A folder of lock files is a machine here: flock(2) knows nothing of another one."""

import os
import signal
import subprocess
import sys

import pytest

from calibration.shared import Shared
from tasks import leases
from tasks.leases import LEASE_SECONDS, LOOK_SECONDS, LeaseManager

HOLDER = (
    "import sys, time\nfrom pathlib import Path\nfrom calibration.shared import Shared\n"
    "from tasks.leases import LeaseManager\n"
    "manager = LeaseManager(Path(sys.argv[1]), Shared(sys.argv[2]))\n"
    "assert manager.acquire_lock('key', 'other')\n"
    "print('held', flush=True)\ntime.sleep(600)\n"
)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(leases, "time", clock)
    return clock


@pytest.fixture
def shared(s3, tmp_path):
    return Shared(f"s3://bucket/{tmp_path.name}")


@pytest.fixture
def machine(shared, tmp_path):
    return lambda name: LeaseManager(tmp_path / name, shared)


@pytest.fixture
def killed(shared, tmp_path):
    """A process on machine `a` that was killed while it held the lock."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "a"), shared.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        os.kill(process.pid, signal.SIGKILL)


def lose_an_answer(manager):
    """What the bucket holds when a sign of life got through and the answer to it did not."""
    lease = manager._leases["key"]
    lease._shared.save(lease._name, lease._here + b"unanswered")


def tries(manager, key="key"):
    return manager.acquire_lock(key, "me", acquire_timeout=0)


def test_what_one_machine_holds_another_is_not_given_until_it_lets_go(machine, clock):
    a, b = machine("a"), machine("b")
    assert tries(a)
    assert not tries(b)
    assert b.is_locked("key")
    assert tries(b, "another key")
    a.release_lock("key", "me")
    clock.now += LOOK_SECONDS
    assert tries(b)
    assert b.is_lock_holder("key", "me")


def test_a_holder_killed_on_another_machine_is_taken_over_after_a_while(machine, clock, killed):
    b = machine("b")
    assert not tries(b)
    clock.now += LEASE_SECONDS - 1
    assert not tries(b)
    clock.now += LOOK_SECONDS
    assert tries(b)


def test_a_holder_killed_on_this_machine_is_taken_over_at_once(machine, killed):
    assert tries(machine("a"))


def test_a_holder_that_shows_signs_of_life_is_never_taken_over(machine, clock, monkeypatch):
    monkeypatch.setattr(leases, "SIGN_SECONDS", 0.0)
    a, b = machine("a"), machine("b")
    assert tries(a)
    seen = set()
    while len(seen) < 4:
        assert not tries(b)
        seen.add(b._signs["key"])
        clock.now += LEASE_SECONDS - 1


def test_a_holder_that_missed_an_answer_still_shows_signs_of_life(machine, clock, monkeypatch):
    monkeypatch.setattr(leases, "SIGN_SECONDS", 0.0)
    a, b = machine("a"), machine("b")
    assert tries(a)
    lose_an_answer(a)
    seen = set()
    while len(seen) < 4:
        assert not tries(b)
        seen.add(b._signs["key"])
        clock.now += LEASE_SECONDS - 1


def test_a_holder_that_missed_an_answer_lets_go_at_once(machine, clock):
    a, b = machine("a"), machine("b")
    assert tries(a)
    lose_an_answer(a)
    a.release_lock("key", "me")
    assert tries(b)


def test_who_was_taken_over_does_not_end_the_lease_of_the_next(machine, clock):
    a, b = machine("a"), machine("b")
    assert tries(a)
    assert not tries(b)
    clock.now += LEASE_SECONDS
    assert tries(b)
    a.release_lock("key", "me")
    assert not tries(machine("c"))
