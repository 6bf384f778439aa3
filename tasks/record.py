"""The book-keeping of a run: its folder, its journal, and how it ended."""

import platform
import time
from asyncio import CancelledError
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal

from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal

from calibration.artifacts import Store, explaining_full_disk
from calibration.backends import BackendConfig
from calibration.config import Experiment
from calibration.errors import ConfigurationError
from calibration.fingerprint import library_versions
from calibration.runs import BASELINE, LATEST, RUN, Run, RunRecord, new_run_id, run_of, runs_root
from calibration.stages.baseline import Baseline
from calibration.stewardship import in_use
from tasks.cancellation import heeding_cancellation
from tasks.journal import Journal, current_listener, keeping

REPORTED_LIBRARIES = (
    *("slm-calibration", "torch", "transformers", "trl", "peft", "datasets"),
    *("prefect", "numpy", "scipy", "pandas", "pydantic"),
)


@contextmanager
def recording(
    flow: Literal["calibrate", "baseline", "compare", "remeasure", "sweep"],
    experiment: Experiment,
    on: BackendConfig,
    run: str | None,
    refresh: str | None,
    base: str | None = None,
) -> Iterator[RunRecord]:
    """Keep the books of everything that happens inside, however it ends.

    Raises:
        ConfigurationError: The run that is to be continued had other settings, or another process runs it.
    """
    started, flow_run = time.monotonic(), _flow_run()
    record = RunRecord(
        run=continued(run) or new_run_id(experiment.name),
        flow=flow,
        experiment=experiment,
        backend=on.model_dump_json(),
        started=datetime.now(UTC),
        baseline=base,
        flow_run=str(flow_run.id) if flow_run else None,
    )
    with (
        explaining_full_disk(runs_root()),
        in_use(Store.from_environment(), runs_root()),
        _opened(record) as book,
    ):
        state, error = "Stopped", "stopped"
        journal = Journal(
            run=book,
            listener=current_listener(),
            refresh=refresh,
            spent=book.spending(),
            began=record.started,
        )
        try:
            with keeping(journal), heeding_cancellation(), explaining_full_disk(book.folder):
                yield record
            state, error = "Completed", ""
        except (CancelledError, KeyboardInterrupt, TerminationSignal):
            raise
        except BaseException as caught:
            state, error = "Failed", in_words(caught)
            raise
        finally:
            seconds = round(time.monotonic() - started, 3)
            with explaining_full_disk(book.folder):
                book.save(record.model_copy(update={"state": state, "error": error, "seconds": seconds}))
                book.spend(journal.spending())  # reads the ledger, which may be what is broken


def in_words(error: BaseException) -> str:
    """What went wrong, in one line; a group of errors says it in its message."""
    if isinstance(error, BaseExceptionGroup):
        return error.message
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _flow_run() -> FlowRun | None:
    """The flow run that this happens in."""
    context = FlowRunContext.get()
    return context.flow_run if context else None


def continued(run: str | None) -> str | None:
    """The run that is to be continued: the one that an earlier attempt has worked on, or the named one."""
    flow_run = _flow_run()
    if flow_run is None or flow_run.run_count <= 1:
        return run
    return run_of(runs_root(), str(flow_run.id)) or run


def begun_with(base: str, run: str | None) -> str:
    """The run that another one is based on; one that is continued keeps its own in place of "latest"."""
    if base == LATEST and run and (runs_root() / run / RUN).exists():
        return Run.find(runs_root(), run).read().baseline or base
    return base


def measured_run(name: str) -> str:
    """The id of a run whose measured models others can start from; the latest is the newest that has any.

    Raises:
        ConfigurationError: There is no such run.
    """
    if name == LATEST:
        for book in reversed([*Run.all(runs_root())]):
            if (book.folder / BASELINE).exists():
                return book.folder.name
    return Run.find(runs_root(), name).folder.name


@contextmanager
def _opened(record: RunRecord) -> Iterator[Run]:
    """The folder of a new run, or of one that is continued, held until it ends."""
    if not (runs_root() / record.run).exists():
        book = Run.begin(runs_root(), record)
        with book.held():
            yield book
        return
    book = Run.find(runs_root(), record.run)
    with book.held():
        earlier = book.read()
        if earlier.flow != record.flow:
            raise ConfigurationError(
                f"run {record.run} must be continued by {earlier.flow}, which began it; got {record.flow}. "
                "Begin a new run: what is there already is taken from the cache"
            )
        if earlier.experiment != record.experiment:
            raise ConfigurationError(
                f"run {record.run} must be continued with the experiment it began with; its settings differ. "
                "Begin a new run: what did not change is taken from the cache"
            )
        book.restart()
        book.save(record)
        yield book


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
