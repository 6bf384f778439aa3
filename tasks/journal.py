"""What happens in a run, as it happens: to the run's folder, and to whoever listens."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol
from uuid import uuid4

from calibration.artifacts import Artifact, Store
from calibration.judges.language import LanguageJudge
from calibration.judges.ledger import asking_as
from calibration.results import StageRecord
from calibration.runs import Run, Use
from calibration.spending import Spending, spent_on_gpus, spent_on_judge

SPENDING_SECONDS = 5.0
"""How often, while a stage goes on, the run's folder is told what it has cost: what a kill can leave out."""


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
    clock: float = field(default_factory=time.monotonic)
    """When it began, by a clock that nobody sets."""
    asker: str = field(default_factory=lambda: uuid4().hex)
    """On whose behalf the judge's ledger says that its requests are made."""
    asked: LanguageJudge | None = None
    """Whom they are made to, once there are any."""
    spent: Spending = field(default_factory=Spending)
    """In earlier attempts."""
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    _work: set[str] = field(default_factory=set)
    _noted: float = 0.0

    def wants_refresh(self, stage: str) -> bool:
        """Whether a stored result of this stage is to be made again."""
        return self.refresh is not None and stage.startswith(self.refresh)

    def start(self, stage: str) -> None:
        """A stage begins."""
        if self.run:
            self.run.append(StageRecord(name=stage, state="Running", seconds=0.0))
        if self.listener:
            self.listener.started(stage)

    def progress(self, stage: str, fraction: float, note: str) -> None:
        """A stage has come this far."""
        if time.monotonic() - self._noted >= SPENDING_SECONDS:
            self._note_spending()
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
        self._note_spending()

    def use(self, *artifacts: Artifact, record: str | None = None, work: str | None = None) -> None:
        """The run needs this of the store."""
        if work:
            self._work.add(work)
        if self.run:
            self.run.use(Use(record=record, work=work, artifacts=artifacts))

    def spending(self) -> Spending:
        """What the run has cost so far."""
        gpus = spent_on_gpus(Store.from_environment(), self._work, self.began)
        judge = spent_on_judge(self.asked, self.asker) if self.asked else Spending()
        return self.spent + judge + gpus

    def _note_spending(self) -> None:
        if self.run:
            self._noted = time.monotonic()
            self.run.spend(self.spending())


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
        with asking_as(journal.asker):
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
