"""Two machines with one place between them: what a stage made on one is found on the other."""

import asyncio
import json
import pickle
from base64 import b64encode
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError
from fsspec.core import url_to_fs
from prefect import flow
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from s3fs import S3FileSystem

from calibration.artifacts import Artifact, Store
from tasks.journal import Journal, keeping
from tasks.stage import stage

RAN = []
NOTES = []
"""What was noted of each stage."""


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@stage("calibration.artifacts", name="write {text}")
async def write(text: str) -> Artifact:
    RAN.append(text)
    store = Store.from_environment()
    with store.draft() as draft:
        (draft / "text").write_text(text)
        return store.keep("text", draft)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Runs a stage on a machine of this name: what came of it, and how it ended."""
    RAN.clear()
    NOTES.clear()

    def run(name, text="a"):
        @flow
        async def around():
            return await write(text)

        monkeypatch.setenv("SLM_CALIBRATION_STORE", str(tmp_path / name))
        cache = temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / name / "cache"})
        with cache, keeping(Journal()) as journal:
            artifact = asyncio.run(around())
        NOTES.extend(record.note for record in journal.stages)
        return artifact, [record.state for record in journal.stages]

    return run


def test_what_was_made_on_one_machine_is_cached_on_the_other(place, machine):
    one, states = machine("one")
    other, cached = machine("other")
    assert (states, cached) == (["Completed"], ["Cached"])
    assert RAN == ["a"]
    assert NOTES == ["", ""]
    assert one == other
    assert (Store.from_environment().folder(other) / "text").read_text() == "a"


def test_without_a_place_between_them_each_makes_its_own(machine):
    assert machine("one")[1] == machine("other")[1] == ["Completed"]
    assert RAN == ["a", "a"]


def test_an_artifact_altered_in_between_is_made_again_and_is_whole_for_the_third(place, machine):
    artifact, _ = machine("one")
    files, path = url_to_fs(f"{place}/artifacts/text/{artifact.sha256}/text")
    files.pipe_file(path, b"wrong")
    assert machine("other") == (artifact, ["Completed"])
    assert machine("third") == (artifact, ["Cached"])
    note = f"text {artifact.sha256[:12]} is missing, and {place} does not have it as it was stored"
    assert NOTES.index(note) == 1
    assert NOTES.count("") == 2
    assert (Store.from_environment().folder(artifact) / "text").read_text() == "a"


def test_an_artifact_altered_on_a_machine_is_fetched_anew_and_that_is_said(place, machine, caplog):
    artifact, _ = machine("one")
    text = Store.from_environment().folder(artifact) / "text"
    text.write_text("wrong")
    assert machine("one") == (artifact, ["Cached"])
    assert text.read_text() == "a"
    said = f"text {artifact.sha256[:12]} was altered after it was stored (text); it was fetched from {place}"
    assert said in caplog.messages


def test_what_is_altered_on_the_machine_and_in_between_is_named_and_made_again(place, machine):
    artifact, _ = machine("one")
    (Store.from_environment().folder(artifact) / "text").write_text("wrong")
    files, path = url_to_fs(f"{place}/artifacts/text/{artifact.sha256}/text")
    files.pipe_file(path, b"wrong")
    assert machine("one") == (artifact, ["Completed"])
    assert NOTES[1].startswith(f"text {artifact.sha256[:12]} was altered after it was stored (text), and")
    assert machine("other") == (artifact, ["Cached"])


@pytest.mark.parametrize("result", ["no reference", None])
def test_a_record_that_cannot_be_read_is_said_and_made_again(place, machine, result):
    machine("one")
    files, path = url_to_fs(f"{place}/cache/write")
    [record] = files.find(path)
    files.pipe_file(record, json.dumps(json.loads(files.cat_file(record)) | {"result": result}).encode())
    assert machine("other")[1] == ["Completed"]
    assert machine("third")[1] == ["Cached"]
    assert NOTES == ["", "its record in the cache could not be read", ""]


def test_a_place_out_of_reach_is_no_reason_to_do_work_again(s3, machine, monkeypatch, tmp_path):
    monkeypatch.setenv("SLM_CALIBRATION_SHARED", f"s3://bucket/{tmp_path.name}")
    machine("one")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    S3FileSystem.clear_instance_cache()
    with pytest.raises(EndpointConnectionError):
        machine("other")
    S3FileSystem.clear_instance_cache()
    assert RAN == ["a"]


def test_neither_secrets_nor_pickle_lie_in_between(place, machine):
    machine("one")
    files, path = url_to_fs(place)
    assert {name.removeprefix(path).split("/")[1] for name in files.find(path)} <= {
        *("artifacts", "cache", "leases", "locks")
    }
    for name in files.find(path):
        content = files.cat_file(name)
        assert b"planted-3d81" not in content
        assert b"pickle" not in content


def test_a_planted_record_that_would_run_code_is_not_read(place, machine, tmp_path):
    machine("one")
    files, path = url_to_fs(f"{place}/cache/write")
    [record] = files.find(path)
    payload = b64encode(pickle.dumps(Planted(str(tmp_path / "ran")))).decode()
    planted = json.loads(files.cat_file(record)) | {"result": payload}
    planted["metadata"]["serializer"] = {"type": "pickle"}
    files.pipe_file(record, json.dumps(planted).encode())
    assert machine("other")[1] == ["Completed"]
    assert NOTES == ["", "its record in the cache could not be read"]
    assert not (tmp_path / "ran").exists()
    assert machine("third")[1] == ["Cached"]
