"""What happens in a run, as it happens: to the run's folder, and to whoever listens."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from calibration.results import StageRecord
from calibration.runs import Run


class Listener(Protocol):
    """Someone who is told how a run goes."""

    def started(self, stage: str) -> None:
        """A stage begins."""

    def progressed(self, stage: str, fraction: float, note: str) -> None:
        """A stage has come this far."""

    def ended(self, record: StageRecord) -> None:
        """A stage is over."""


@dataclass
class Journal:
    """Notes the stages of one run."""

    run: Run | None = None
    listener: Listener | None = None
    refresh: str | None = None
    """Stages whose name begins with this are run again although a result is stored."""
    stages: list[StageRecord] = field(default_factory=list)
    is_server_lost: bool = False
    """Whether the Prefect server has gone; nothing more is told to it."""
    began: float = field(default_factory=time.monotonic)
    """By a clock that nobody sets."""
    asked_before: int | None = None
    """The latest request to a judging model before this run's first."""

    def wants_refresh(self, stage: str) -> bool:
        """Whether a stored result of this stage is to be made again."""
        return self.refresh is not None and stage.startswith(self.refresh)

    def start(self, stage: str) -> None:
        """A stage begins."""
        if self.listener:
            self.listener.started(stage)

    def progress(self, stage: str, fraction: float, note: str) -> None:
        """A stage has come this far."""
        if self.listener:
            self.listener.progressed(stage, fraction, note)

    def record(self, stage: str, state: str, seconds: float, note: str = "") -> None:
        """A stage is over."""
        record = StageRecord(name=stage, state=state, seconds=round(seconds, 3), note=note)
        self.stages.append(record)
        if self.run:
            self.run.append(record)
        if self.listener:
            self.listener.ended(record)


_current: ContextVar[Journal | None] = ContextVar("journal", default=None)
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def current_journal() -> Journal:
    """The journal of the run that is going on; outside of one, a journal that nobody reads."""
    return _current.get() or Journal()


@contextmanager
def keeping(journal: Journal) -> Iterator[Journal]:
    """Make this the journal of all that happens inside."""
    token = _current.set(journal)
    try:
        yield journal
    finally:
        _current.reset(token)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell this listener of the runs that begin inside."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def current_listener() -> Listener | None:
    """Who wants to be told."""
    return _listener.get()
