"""What is removed from a store, and what never is."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from calibration.artifacts import Store
from calibration.backends.ledger import Call, Ledger
from calibration.backends.worker import finish
from calibration.errors import ConfigurationError
from calibration.runs import Run, RunRecord, Use
from calibration.stewardship import alone, in_use, leftovers, runs_folders
from tests.runs import EXPERIMENT

USER = (
    "import sys, time\nfrom pathlib import Path\nfrom calibration.artifacts import Store\n"
    "from calibration.runs import Run\nfrom calibration.stewardship import in_use\n"
    "run = Run(Path(sys.argv[1]))\n"
    "with in_use(Store.from_environment(), run.folder.parent), run.held():\n"
    "    print('in use', flush=True)\n    time.sleep(600)\n"
)


def artifact(store, text):
    with store.draft() as draft:
        (draft / "text").write_text(text)
        return store.keep("text", draft)


def run(store, root, name):
    """A run of that name with an artifact, a record and a job of its own."""
    began = datetime(2026, 1, 1, tzinfo=UTC)
    with in_use(store, root):
        book = Run.begin(
            root, RunRecord(run=name, flow="calibrate", experiment=EXPERIMENT, backend="{}", started=began)
        )
    made = artifact(store, name)
    for path in (f"cache/write/{name}.json", f"scratch/{name}/done.json", f"logs/{name}.log"):
        (store.root / path).parent.mkdir(parents=True, exist_ok=True)
        (store.root / path).write_text(name)
    book.use(Use(record=f"write/{name}.json", artifacts=(made,)))
    book.use(Use(work=name))
    return book


def paths(store):
    return {path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if path.is_file()}


def remove(found):
    for leftover in found:
        leftover.remove()


@pytest.fixture
def store():
    return Store.from_environment()


def test_what_a_run_refers_to_stays_and_what_only_a_deleted_one_did_goes(store, tmp_path):
    run(store, tmp_path / "runs", "kept")
    before = paths(store)
    deleted = run(store, tmp_path / "runs", "deleted")
    assert leftovers(store) == []
    deleted.delete()
    found = leftovers(store)
    assert [leftover.kind for leftover in found] == ["records", "artifacts", "checkpoints", "logs"]
    assert found[0].bytes == len("deleted")
    assert paths(store) > before, "looking removes nothing"
    remove(found)
    assert paths(store) == before
    assert leftovers(store) == []


def test_what_ended_in_the_middle_goes_and_the_ledgers_stay(store, tmp_path):
    run(store, tmp_path / "runs", "kept")
    books = {"judge.sqlite", "judge.lock", "costs.jsonl", "calls/k.json", "calls/k.lock", "calls/money.lock"}
    rubbish = {"drafts/d/rows.parquet", "locks/l.lock", "scratch/lost/checkpoint"}
    call = Call(
        key="open",
        kind="train",
        environment=None,
        gpu="A100",
        minutes=1,
        usd_per_hour=1,
        priced="",
        begun=datetime.now(UTC),
    )
    for path in (*books, *rubbish, "scratch/open/sign.json"):
        (store.root / path).parent.mkdir(parents=True, exist_ok=True)
        (store.root / path).write_text(call.model_dump_json())
    Ledger(store).note(call)
    before = paths(store)
    remove(leftovers(store))
    assert before - paths(store) == rubbish


def test_what_is_younger_than_an_age_stays(store, tmp_path):
    run(store, tmp_path / "runs", "deleted").delete()
    old = store.root / "logs" / "deleted.log"
    days_ago = (datetime.now(UTC) - timedelta(days=3)).timestamp()
    os.utime(old, (days_ago, days_ago))
    assert [leftover.path for leftover in leftovers(store, timedelta(days=2))] == [old]


def test_runs_in_another_folder_that_use_the_store_are_asked_too(store, tmp_path):
    run(store, tmp_path / "runs", "here")
    run(store, tmp_path / "elsewhere", "there")
    assert runs_folders(store) == [tmp_path / "runs", tmp_path / "elsewhere"]
    assert leftovers(store) == []


def test_runs_beside_a_store_are_found_again_when_both_have_moved(store, tmp_path):
    run(store, tmp_path / "runs", "one")
    moved = tmp_path / "elsewhere" / "moved"
    moved.mkdir(parents=True)
    for folder in (store.root, tmp_path / "runs"):
        folder.rename(moved / folder.name)
    assert runs_folders(Store(moved / "store")) == [moved / "runs"]
    assert leftovers(Store(moved / "store")) == []


def test_the_runs_that_are_looked_at_now_are_asked_whether_the_store_knows_of_them_or_not(store, tmp_path):
    run(store, tmp_path / "runs", "one")
    (store.root / "runs-folders.txt").unlink()
    assert leftovers(store) == []


def test_what_finished_work_has_made_stays_before_the_run_has_noted_it(store, tmp_path):
    book = run(store, tmp_path / "runs", "one")
    finish(store, "training", artifact(store, "adapter"))
    assert [leftover.kind for leftover in leftovers(store)] == ["artifacts", "checkpoints"]
    book.use(Use(work="training"))
    assert leftovers(store) == []


def test_a_store_is_not_cleaned_up_while_a_run_uses_it_and_at_once_when_that_is_killed(store, tmp_path):
    book = run(store, tmp_path / "runs", "going")
    command = [sys.executable, "-c", USER, book.folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"in use\n"
        words = "must be free to be cleaned up; going is using it"
        with pytest.raises(ConfigurationError, match=words), alone(store):
            pass
        with in_use(store, tmp_path / "runs"):  # runs do not keep each other out
            process.kill()
            process.wait()
    with alone(store):
        pass
