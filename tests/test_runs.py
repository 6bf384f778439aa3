import subprocess
import sys
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from calibration.errors import ConfigurationError
from calibration.results import StageRecord
from calibration.runs import Run, RunRecord, Use, new_run_id
from tests.runs import EXPERIMENT


def record(name, minute=0):
    began = datetime(2026, 1, 1, 0, minute, tzinfo=UTC)
    return RunRecord(run=name, flow="calibrate", experiment=EXPERIMENT, backend="{}", started=began)


def test_a_run_comes_back_as_it_was_written(tmp_path):
    book = Run.begin(tmp_path, record("one"))
    stages = [StageRecord(name="infer", state="Completed", seconds=1.5)] * 2
    for stage in stages:
        book.append(stage)
    found = Run.find(tmp_path, "one")
    assert found.read() == record("one")
    assert found.stages() == stages
    book.restart()
    assert found.stages() == []


def test_latest_is_the_run_that_began_last(tmp_path):
    Run.begin(tmp_path, record("one"))
    Run.begin(tmp_path, record("two", minute=1))
    assert Run.find(tmp_path, "latest").folder.name == "two"
    assert [book.folder.name for book in Run.all(tmp_path)] == ["one", "two"]


def test_an_unknown_run_is_answered_with_those_there_are(tmp_path):
    Run.begin(tmp_path, record("one"))
    with pytest.raises(ConfigurationError, match=r"run must be one of one in .*; got 'two'"):
        Run.find(tmp_path, "two")


@pytest.mark.parametrize("name", ["../outside", "/etc", "a/b", "", ".hidden", "a\nb"])
def test_a_run_cannot_be_named_out_of_its_folder(name):
    with pytest.raises(ValidationError, match="run"):
        record(name)


@pytest.mark.parametrize("name", ["../other/two", "{other}/two", "one/inner", ".", "", "away"])
def test_only_a_run_of_its_folder_is_found(tmp_path, name):
    root, other = tmp_path / "runs", tmp_path / "other"
    Run.begin(other, record("two"))
    inner = Run.begin(Run.begin(root, record("one")).folder, record("inner"))
    (root / "away").symlink_to(other / "two")
    (root / "run.json").write_bytes((inner.folder / "run.json").read_bytes())
    name = name.format(other=other)
    with pytest.raises(ConfigurationError, match=f"got '{name}'.* --runs"):
        Run.find(root, name)


def test_a_folder_of_runs_may_be_a_link(tmp_path):
    Run.begin(tmp_path / "runs", record("one"))
    (tmp_path / "link").symlink_to("runs")
    for name in ("one", "latest"):
        assert Run.find(tmp_path / "link", name).read() == record("one")


def test_ids_are_names_and_differ():
    ids = {new_run_id("e") for _ in range(50)}
    assert len(ids) == 50
    for name in ids:
        assert record(name).run == name


HOLDER = (
    "import sys, time\nfrom pathlib import Path\nfrom calibration.runs import Run\n"
    "with Run(Path(sys.argv[1])).held():\n    print('held', flush=True)\n    time.sleep(600)\n"
)


@pytest.fixture
def running(tmp_path):
    """A run, and the process that runs it until it is killed."""
    book = Run.begin(tmp_path, record("one"))
    with subprocess.Popen([sys.executable, "-c", HOLDER, book.folder], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield book, process
        process.kill()


def test_a_run_whose_process_was_killed_is_stopped_and_can_be_continued(running):
    book, process = running
    assert book.state() == "Running"
    process.kill()
    process.wait()
    assert book.read().state == "Running", "a killed process writes nothing"
    assert book.state() == "Stopped"
    with book.held():
        assert book.state() == "Running"


def test_a_run_is_continued_and_deleted_by_one_process_at_a_time(running):
    book, process = running
    words = rf"run one must be continued by one process at a time; process {process.pid} is at it"
    with pytest.raises(ConfigurationError, match=words), book.held():
        pass
    with pytest.raises(ConfigurationError, match=words):
        book.delete()
    assert book.read() == record("one")


def test_a_run_says_what_it_was_doing_and_what_failed(tmp_path):
    book = Run.begin(tmp_path, record("one"))
    for name, state in [("a", "Running"), ("b", "Running"), ("a", "Completed"), ("c", "Running")]:
        book.append(StageRecord(name=name, state=state, seconds=0))
    assert (book.under_way(), book.stopped_at()) == (["b", "c"], "b, c")
    assert [stage.name for stage in book.stages()] == ["a"]
    book.append(StageRecord(name="c", state="Failed", seconds=1))
    assert book.stopped_at() == "c"


def test_a_line_that_a_full_disk_has_cut_short_spoils_no_other(tmp_path):
    book = Run.begin(tmp_path, record("one"))
    book.use(Use(record="a/1.json"))
    with (book.folder / "uses.jsonl").open("a") as file:
        file.write('{"record":"b/2.j')
    book.use(Use(work="w"))
    assert book.uses() == [Use(record="a/1.json"), Use(work="w")]


def test_a_run_that_could_not_be_begun_leaves_no_half_of_one(tmp_path):
    (tmp_path / "latest" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match="latest"):
        Run.begin(tmp_path, record("one"))
    assert not (tmp_path / "one").exists()


def test_a_deleted_run_is_gone_and_latest_is_the_newest_that_is_left(tmp_path):
    books = [Run.begin(tmp_path, record(name, minute)) for minute, name in enumerate(["one", "two", "three"])]
    books[2].delete()
    assert Run.find(tmp_path, "latest").folder.name == "two"
    books[0].delete()
    assert [book.folder.name for book in Run.all(tmp_path)] == ["two"]
    books[1].delete()
    with pytest.raises(ConfigurationError, match="there are none yet"):
        Run.find(tmp_path, "latest")


def test_a_run_that_does_not_say_what_it_uses_is_not_taken_for_one_that_uses_nothing(tmp_path):
    book = Run.begin(tmp_path, record("one"))
    assert book.uses() == []
    (book.folder / "uses.jsonl").unlink()
    with pytest.raises(ConfigurationError, match="run one must say what it uses"):
        book.uses()
