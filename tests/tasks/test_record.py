"""What a run is based on."""

from datetime import UTC, datetime

import pytest

from calibration.errors import ConfigurationError
from calibration.runs import Run, RunRecord, runs_root
from tasks.record import begun_with, measured_run
from tests.runs import EXPERIMENT


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Begins a run at a minute; says whether its models were measured."""
    monkeypatch.setenv("SLM_CALIBRATION_RUNS", str(tmp_path))

    def begin(name, minute, baseline=None, *, is_measured=False):
        began = datetime(2026, 1, 1, 0, minute, tzinfo=UTC)
        record = RunRecord(
            run=name, flow="compare", experiment=EXPERIMENT, backend="{}", started=began, baseline=baseline
        )
        book = Run.begin(runs_root(), record)
        if is_measured:
            (book.folder / "baseline.json").write_text("{}")

    return begin


def test_the_latest_measured_run_is_the_newest_that_has_measured_models(begin):
    begin("one", 0, is_measured=True)
    begin("two", 1, is_measured=True)
    begin("three", 2)
    assert measured_run("latest") == "two"
    assert measured_run("one") == "one"
    assert measured_run("three") == "three"
    with pytest.raises(ConfigurationError, match="got 'four'"):
        measured_run("four")


def test_a_run_that_is_continued_keeps_what_it_is_based_on(begin):
    begin("one", 0, is_measured=True)
    begin("two", 1, baseline="one")
    begin("three", 2, is_measured=True)
    assert begun_with("latest", "two") == "one"
    assert begun_with("three", "two") == "three"
    assert begun_with("latest", None) == begun_with("latest", "not yet") == "latest"
