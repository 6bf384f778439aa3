"""The promises of `@stage`, on small stages of its own that count how often their body ran."""

import asyncio
import json
from pathlib import Path

import pytest
from prefect import flow
from prefect.serializers import Serializer
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from calibration.artifacts import Artifact, Store
from calibration.backends.wire import NoResultError, OutOfReachError
from calibration.engines.hf import Hf
from calibration.errors import DataError, JobError
from tasks.journal import Journal, keeping
from tasks.stage import stage

RAN = []
NOTES = []
"""What was noted of each stage."""


async def write(text, ran_as):
    RAN.append(ran_as)
    store = Store.from_environment()
    with store.draft() as draft:
        (draft / "text").write_text(text)
        return store.keep("text", draft)


@stage("calibration.artifacts", name="first {text}")
async def first(text: str, label: str = "") -> Artifact:
    return await write(text, "first")


@stage("calibration.artifacts", name="second {text}")
async def second(text: str) -> Artifact:
    return await write(text, "second")


@stage("calibration.artifacts", name="after")
async def after(before: Artifact, engine: Hf) -> Artifact:
    return await write("after", "after")


@stage("calibration.artifacts", name="broken")
async def broken(text: str) -> Artifact:
    RAN.append("broken")
    raise DataError(f"{text} is no good")


@stage("calibration.artifacts", name="mortal", retries=1)
async def mortal(deaths: int, label: type[Exception]) -> Artifact:
    artifact = await write("mortal", "mortal")
    if len(RAN) <= deaths:
        raise label("ended with code -9")
    return artifact


@pytest.fixture(autouse=True)
def own_cache(tmp_path):
    RAN.clear()
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "store" / "cache"}):
        yield


def run(work, refresh=None):
    """Run stages inside a flow; return their result and (name, state) of each."""

    @flow
    async def around():
        return await work()

    with keeping(Journal(refresh=refresh)) as journal:
        result = asyncio.run(around())
    NOTES.extend(record.note for record in journal.stages)
    return result, [(record.name, record.state) for record in journal.stages]


def test_a_second_run_is_cached_and_runs_no_body():
    one, states = run(lambda: first("a"))
    again, cached = run(lambda: first("a"))
    assert one == again
    assert states == [("first a", "Completed")]
    assert cached == [("first a", "Cached")]
    assert RAN == ["first"]


def test_other_inputs_run_again_and_a_label_does_not():
    run(lambda: first("a", label="x"))
    assert run(lambda: first("a", label="y"))[1] == [("first a", "Cached")]
    assert run(lambda: first("b"))[1] == [("first b", "Completed")]


def test_two_stages_with_equal_inputs_never_share_a_result():
    run(lambda: first("a"))
    assert run(lambda: second("a"))[1] == [("second a", "Completed")]
    assert RAN == ["first", "second"]


def test_a_lost_artifact_is_made_again_and_what_follows_stays_cached():
    async def both():
        return await after(await first("a"), Hf())

    run(both)
    (Store.from_environment().folder(run(lambda: first("a"))[0]) / "text").unlink()
    RAN.clear()
    assert run(both)[1] == [("first a", "Completed"), ("after", "Cached")]
    assert RAN == ["first"]


def test_an_altered_artifact_is_made_again():
    artifact, _ = run(lambda: first("a"))
    (Store.from_environment().folder(artifact) / "text").write_text("altered")
    NOTES.clear()
    assert run(lambda: first("a"))[1] == [("first a", "Completed")]
    [note] = NOTES
    assert note == f"text {artifact.sha256[:12]} was altered after it was stored (text)"
    assert (Store.from_environment().folder(artifact) / "text").read_text() == "a"


def test_a_record_that_cannot_be_read_is_said_and_made_again(tmp_path):
    run(lambda: first("a"))
    [record] = (tmp_path / "store" / "cache" / "first").iterdir()
    record.write_text(record.read_text()[:50])
    NOTES.clear()
    assert run(lambda: first("a"))[1] == [("first a", "Completed")]
    assert run(lambda: first("a"))[1] == [("first a", "Cached")]
    assert NOTES == ["its record in the cache could not be read", ""]


def test_a_changed_setting_of_a_plugin_repeats_only_what_depends_on_it():
    async def both(engine):
        return await after(await first("a"), engine)

    run(lambda: both(Hf()))
    assert run(lambda: both(Hf(max_tokens=7)))[1] == [("first a", "Cached"), ("after", "Completed")]


def test_a_refreshed_stage_runs_again():
    run(lambda: first("a"))
    assert run(lambda: first("a"), refresh="first")[1] == [("first a", "Completed")]
    assert run(lambda: first("a"), refresh="second")[1] == [("first a", "Cached")]


def test_a_failure_is_raised_as_it_was_and_never_cached():
    for _ in range(2):
        with pytest.raises(DataError, match="bad is no good"):
            run(lambda: broken("bad"))
    assert RAN == ["broken", "broken"]


def test_two_runs_at_once_do_the_work_once():
    async def at_once():
        return await asyncio.gather(first("a"), first("a"))

    (one, other), states = run(at_once)
    assert one == other
    assert sorted(state for _, state in states) == ["Cached", "Completed"]
    assert RAN == ["first"]


def test_the_cache_is_readable_json_and_no_pickle(tmp_path):
    run(lambda: first("a"))
    [record] = (tmp_path / "store" / "cache" / "first").glob("*.json")
    assert b'"whole-artifact"' in record.read_bytes()
    assert b"pickle" not in record.read_bytes()


class Planted:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


@pytest.mark.parametrize("kind", ["pickle", "cloudpickle", "compressed/pickle"])
def test_a_planted_pickle_is_never_loaded_and_the_stage_runs_again(tmp_path, kind):
    run(lambda: first("a"))
    [record] = (tmp_path / "store" / "cache" / "first").glob("*.json")
    named = {"type": "pickle", "picklelib": "cloudpickle" if kind == "cloudpickle" else "pickle"}
    serializer = Serializer(type="compressed", serializer=named) if "/" in kind else Serializer(**named)
    planted = json.loads(record.read_text())
    planted["metadata"]["serializer"] = serializer.model_dump()
    planted["result"] = serializer.dumps(Planted(tmp_path / "ran")).decode()
    record.write_text(json.dumps(planted))
    assert run(lambda: first("a"))[1] == [("first a", "Completed")]
    assert not (tmp_path / "ran").exists()
    assert run(lambda: first("a"))[1] == [("first a", "Cached")]


def test_a_job_that_died_is_begun_once_more():
    _, states = run(lambda: mortal(1, label=JobError))
    assert states == [("mortal", "Completed")]
    assert RAN == ["mortal"] * 2


@pytest.mark.parametrize(
    ("deaths", "error", "bodies"),
    [
        (2, JobError, 2),
        (1, DataError, 1),  # it would refuse again
        (1, NoResultError, 1),  # Modal has tried it again itself
        (1, OutOfReachError, 1),  # it may be going on
    ],
)
def test_what_refused_or_was_tried_enough_is_not_begun_again(deaths, error, bodies):
    with pytest.raises(error):
        run(lambda: mortal(deaths, label=error))
    assert len(RAN) == bodies
