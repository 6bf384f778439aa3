from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from calibration.config import Experiment
from calibration.errors import ConfigurationError
from calibration.results import StageRecord
from calibration.runs import Run, RunRecord, new_run_id

EXPERIMENT = Experiment.model_validate(
    {
        "name": "e",
        "data": {"kind": "world"},
        "models": {"m": {"weights": {"kind": "pocket"}}},
        "judge": {"kind": "exact"},
    }
)


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


def test_ids_are_names_and_differ():
    ids = {new_run_id("e") for _ in range(50)}
    assert len(ids) == 50
    for name in ids:
        assert record(name).run == name
