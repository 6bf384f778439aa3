"""The commands `runs` and `gc` as a person types them; neither needs Prefect."""

import re
from datetime import UTC, datetime, timedelta
from shutil import rmtree

import pytest

from calibration.artifacts import Store
from calibration.records import Verdict
from calibration.results import StageRecord
from calibration.runs import Run, RunRecord, Use
from calibration.spending import Spending
from calibration.stewardship import in_use
from tests.commands import run_many
from tests.runs import EXPERIMENT


@pytest.fixture
def begin(tmp_path):
    """Makes a run that began so many hours ago, with its stages."""

    def make(name, hours, state="Running", stages=(), **spending):
        began = datetime.now(UTC) - timedelta(hours=hours)
        record = RunRecord(
            run=name, flow="calibrate", experiment=EXPERIMENT, backend="{}", started=began, state=state
        )
        with in_use(Store.from_environment(), tmp_path / "runs"):
            book = Run.begin(tmp_path / "runs", record)
        for stage, how in stages:
            book.append(StageRecord(name=stage, state=how, seconds=0))
        book.spend(Spending(**spending))
        return book

    return make


def test_runs_are_listed_with_state_age_dollars_and_where_they_stopped(begin, tmp_path):
    begun = [(name, "Running") for name in ("infer m plain", "judge m plain")]
    begin("whole", 70, "Completed", [*begun, ("infer m plain", "Completed")], judge_usd=0.25, gpu_usd=1.5)
    begin("failed", 40, "Failed", [*begun, ("judge m plain", "Failed")])
    begin("killed", 3, stages=[*begun, ("infer m plain", "Completed")])
    going = begin("going", 1, stages=begun)
    begin("new", 0)
    with going.held():
        [[(code, out, _), *refusals], heavy] = run_many(
            tmp_path, [["runs"], ["runs", "--delete", "going"], ["resume", "going"]]
        )
    assert (code, heavy) == (0, [])
    for refused, said, error in refusals:
        assert (refused, said) == (2, "")
        assert "run going must be continued by one process at a time" in error
        assert len(error.splitlines()) == 1
    assert [re.split(r"  +", line) for line in out.splitlines()] == [
        ["whole", "calibrate", "Completed", "2 d", "1.75 USD"],
        ["failed", "calibrate", "Failed", "40 h", "0.00 USD", "at judge m plain"],
        ["killed", "calibrate", "Stopped", "3 h", "0.00 USD", "at judge m plain"],
        ["going", "calibrate", "Running", "60 m", "0.00 USD", "in infer m plain, judge m plain"],
        ["new", "calibrate", "Stopped", "0 m", "0.00 USD", "before the first stage"],
    ]


def test_what_only_a_deleted_run_used_is_removed_and_counted(begin, tmp_path):
    store = Store.from_environment()
    with store.draft() as draft:
        (draft / "weights").write_bytes(b"0" * 1500)
        artifact = store.keep("model", draft)
    begin("one", 1).use(Use(artifacts=(artifact,)))
    commands = [
        ["gc"],
        ["runs", "--delete", "one"],
        ["gc", "--dry-run"],
        ["gc", "--older-than", "1d"],
        ["gc"],
        ["gc", "--older-than", "soon"],
    ]
    [done, heavy] = run_many(tmp_path, commands)
    assert heavy == []
    assert [code for code, _, _ in done] == [0, 0, 0, 0, 0, 2]
    nothing, deleted, would, young, removed, unread = (out + error for _, out, error in done)
    assert f"runs are looked for in {tmp_path / 'runs'}" in nothing
    assert "0 removed, 0 B" in nothing
    assert str(tmp_path / "runs" / "one") in deleted
    assert re.search(rf"would be removed: .*model/{artifact.sha256} \(1\.\d kB\)", would)
    assert "0 removed, 0 B" in young
    assert re.search(r"\n1 removed, 1\.\d kB\n", removed)
    assert not store.is_whole(artifact)
    assert "an age must look like 30d, 12h or 90m; got 'soon'" in unread


def test_a_store_is_not_cleaned_up_while_a_folder_of_runs_is_gone_unless_it_is_forgotten(begin, tmp_path):
    store = Store.from_environment()
    one, other = (store.save_rows(kind, [], Verdict) for kind in ("one", "other"))
    begin("one", 1).use(Use(artifacts=(one,)))
    with in_use(store, tmp_path / "other"):
        began = Run(tmp_path / "runs" / "one").read()
        Run.begin(tmp_path / "other", began).use(Use(artifacts=(other,)))
    gone, moved = tmp_path / "runs", tmp_path / "moved"
    gone.rename(moved)
    commands = [
        ["gc"],
        ["gc", "--dry-run"],
        ["--runs", moved, "gc", "--forget", tmp_path / "other"],
        ["--runs", moved, "gc", "--forget", gone],
        ["--runs", gone, "gc"],
    ]
    [[refused, would, there, forgotten, later], _] = run_many(tmp_path, commands)
    assert [code for code, _, _ in (refused, would, there, forgotten, later)] == [2, 0, 2, 0, 0]
    assert len(refused[2].splitlines()) == 1
    assert f"gone: {gone}." in refused[2]
    assert f"slm-calibration gc --forget {gone}" in refused[2]
    assert f"{gone} (gone), {tmp_path / 'other'}" in would[1]
    assert f"would be removed: {store.folder(one)}" in would[1]
    assert f"--forget must be {gone}; got {tmp_path / 'other'}" in there[2]
    for _, said, _ in (forgotten, later):
        assert f"runs are looked for in {tmp_path / 'other'}, {moved}\n" in said
        assert "0 removed" in said
    assert store.is_whole(one)
    assert store.is_whole(other)


def test_a_folder_of_runs_that_is_gone_for_good_no_longer_keeps_what_its_runs_used(begin, tmp_path):
    artifact = Store.from_environment().save_rows("one", [], Verdict)
    begin("one", 1).use(Use(artifacts=(artifact,)))
    rmtree(tmp_path / "runs")
    [[(code, said, _)], _] = run_many(tmp_path, [["gc", "--forget", "runs"]])
    assert code == 0
    assert "1 removed" in said
    assert not Store.from_environment().is_whole(artifact)


def test_a_store_that_no_run_has_used_is_not_cleaned_up(tmp_path):
    [[(code, _, error)], _] = run_many(tmp_path, [["gc"]])
    assert code == 2
    assert "must have been used by a run" in error
