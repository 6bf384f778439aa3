"""A disk that has no room left."""

import hashlib
import json
import os
import subprocess

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

MOUNT, UMOUNT = "/bin/mount", "/bin/umount"
SIZE = 8_000_000
BEFORE, AFTER = 200_000, 600_000
"""Bytes that are left: too few for the model's checkpoints, and too few for what follows the model."""


@pytest.fixture
def small_disk(place):
    """A disk of its own for the store and the runs, and a function that leaves so much room on it."""
    disk = place.folder / "disk"
    disk.mkdir()
    mount = [MOUNT, "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    place.store, place.runs = disk / "store", disk / "runs"
    filler = disk / "filler"

    def leave(room):
        filler.unlink(missing_ok=True)
        left = os.statvfs(disk)
        filler.write_bytes(bytes(max(0, left.f_bavail * left.f_frsize - room)))

    yield leave
    place.close()
    subprocess.run([UMOUNT, "--lazy", str(disk)], check=True)


def altered(store):
    """Artifacts whose files are not those that their manifest names, by a look of our own."""
    found = []
    for manifest in (store / "artifacts").rglob("manifest.json"):
        for name, digest in json.loads(manifest.read_text())["files"].items():
            content = (manifest.parent / name).read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                found.append(manifest.parent)
    return found


def test_a_full_disk_is_said_in_one_sentence_and_costs_nothing_that_was_whole(place, calm, small_disk):
    small_disk(BEFORE)
    early = fails_for_want_of_room(place, place.run())
    small_disk(SIZE)
    place.resume().follow(until="obtain tiny")
    small_disk(AFTER)
    late = fails_for_want_of_room(place, place.resume())
    assert len(early.stages()) < len(late.stages())

    small_disk(SIZE)
    place.resume().done()

    assert place.numbers(runs="disk/runs") == calm.numbers()
    assert not altered(place.store)
    place.check_nothing_was_repeated()


def test_a_disk_without_any_room_is_said_in_one_sentence_and_leaves_no_half_of_a_run(place, small_disk):
    place.store.mkdir(parents=True)
    small_disk(0)
    attempt = place.run().follow()
    assert attempt.process.returncode == 2, attempt.words
    assert "disk is full" in attempt.words
    assert "Traceback" not in attempt.words
    assert not list(place.runs.glob("*"))


def fails_for_want_of_room(place, attempt):
    assert attempt.follow().process.returncode == 1, attempt.words
    said = [line for line in attempt.words.splitlines() if "disk is full" in line]
    assert said, attempt.words
    assert str(place.store) in said[0] or str(place.runs) in said[0]
    assert "Traceback" not in attempt.words
    assert not altered(place.store)
    return attempt
