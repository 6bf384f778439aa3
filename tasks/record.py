"""The book-keeping of a run: its folder, its journal, and how it ended."""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal

from calibration.artifacts import explaining_full_disk
from calibration.backends import BackendConfig
from calibration.config import Experiment
from calibration.errors import ConfigurationError
from calibration.fingerprint import library_versions
from calibration.runs import BASELINE, Run, RunRecord, new_run_id, runs_root
from calibration.stages.baseline import Baseline
from tasks.cancellation import heeding_cancellation
from tasks.journal import Journal, current_listener, keeping

REPORTED_LIBRARIES = (
    *("slm-calibration", "torch", "transformers", "trl", "peft", "datasets"),
    *("prefect", "numpy", "scipy", "pandas", "pydantic"),
)


@contextmanager
def recording(
    flow: Literal["calibrate", "baseline", "compare"],
    experiment: Experiment,
    on: BackendConfig,
    run: str | None,
    refresh: str | None,
    base: str | None = None,
) -> Iterator[RunRecord]:
    """Keep the books of everything that happens inside, however it ends."""
    started = time.monotonic()
    record = RunRecord(
        run=run or new_run_id(experiment.name),
        flow=flow,
        experiment=experiment,
        backend=on.model_dump_json(),
        started=datetime.now(UTC),
        baseline=base,
    )
    book = _continued(record) if (runs_root() / record.run).exists() else Run.begin(runs_root(), record)
    state, error = "Failed", "stopped"
    try:
        journal = Journal(run=book, listener=current_listener(), refresh=refresh)
        with keeping(journal), heeding_cancellation(), explaining_full_disk(book.folder):
            yield record
        state, error = "Completed", ""
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
        raise
    finally:
        seconds = round(time.monotonic() - started, 3)
        with explaining_full_disk(book.folder):
            book.save(record.model_copy(update={"state": state, "error": error, "seconds": seconds}))


def _continued(record: RunRecord) -> Run:
    book = Run.find(runs_root(), record.run)
    before = book.read()
    if before.experiment != record.experiment:
        raise ConfigurationError(
            f"run {record.run} must be continued with the experiment it began with; its settings differ. "
            "Begin a new run: what did not change is taken from the cache"
        )
    book.restart()
    book.save(record)
    return book


def save_baseline(book: Run, baseline: Baseline) -> None:
    """Keep what a later comparison can start from."""
    (book.folder / BASELINE).write_text(baseline.model_dump_json(indent=1), encoding="utf-8")


def stored_baseline(name: str) -> Baseline:
    """The measured models of an earlier run.

    Raises:
        ConfigurationError: There is no such run, or it was not measured to the end.
    """
    path = Run.find(runs_root(), name).folder / BASELINE
    if not path.exists():
        raise ConfigurationError(f"run {name} must have measured its models; resume it first")
    return Baseline.model_validate_json(path.read_text(encoding="utf-8"))


def versions() -> dict[str, str]:
    """The interpreter and libraries that made the numbers."""
    return {"python": platform.python_version(), **library_versions(REPORTED_LIBRARIES)}
