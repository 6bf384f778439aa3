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

    def run(name, text="a"):
        @flow
        async def around():
            return await write(text)

        monkeypatch.setenv("SLM_CALIBRATION_STORE", str(tmp_path / name))
        cache = temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / name / "cache"})
        with cache, keeping(Journal()) as journal:
            artifact = asyncio.run(around())
        return artifact, [record.state for record in journal.stages]

    return run


def test_what_was_made_on_one_machine_is_cached_on_the_other(place, machine):
    one, states = machine("one")
    other, cached = machine("other")
    assert (states, cached) == (["Completed"], ["Cached"])
    assert RAN == ["a"]
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
    assert (Store.from_environment().folder(artifact) / "text").read_text() == "a"


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
    assert not (tmp_path / "ran").exists()
    assert machine("third")[1] == ["Cached"]
