"""What a person at a terminal sees of a run."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from prefect.context import refresh_global_settings_context
from prefect.events.worker import EventsWorker
from prefect.exceptions import TerminationSignal
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL, PREFECT_HOME
from rich.console import Console as Terminal
from rich.live import Live
from rich.table import Table

from calibration.results import StageRecord
from deployments.server import CLIENT, Server, known_password, look_at, temporary
from flows.pipeline import baseline, calibrate, compare
from flows.remeasure import remeasure
from flows.sweep import sweep
from tasks.journal import listening

FLOWS: dict[str, Callable[..., Any]] = {
    "calibrate": calibrate,
    "baseline": baseline,
    "compare": compare,
    "remeasure": remeasure,
    "sweep": sweep,
}

LAST_WORDS_SECONDS = 10.0
PREFIX = "Flow run encountered an exception: "
"""What Prefect says before it says what went wrong."""


class Console:
    """One line for each finished stage; below, what is going on now."""

    def __init__(self) -> None:
        """Write to standard error; a terminal gets live progress, a file only the finished lines."""
        self.terminal = Terminal(stderr=True, highlight=False)
        self.going: dict[str, tuple[float, float, str]] = {}
        self.live = Live(console=self.terminal, transient=True, refresh_per_second=4)

    def started(self, stage: str) -> None:
        """A stage begins."""
        self.going[stage] = (time.monotonic(), 0.0, "")
        self._show()

    def progressed(self, stage: str, fraction: float, note: str) -> None:
        """A stage has come this far."""
        began = self.going.get(stage, (time.monotonic(), 0.0, ""))[0]
        self.going[stage] = (began, fraction, note)
        self._show()

    def ended(self, record: StageRecord) -> None:
        """A stage is over."""
        self.going.pop(record.name, None)
        self.terminal.print(f"{record.name:32} {record.state:10} {record.seconds:7.1f} s")
        if record.note:
            self.terminal.print(f"  {record.note}; it is not used")
        self._show()

    def _show(self) -> None:
        table = Table.grid(padding=(0, 2))
        for stage, (began, fraction, note) in self.going.items():
            table.add_row(stage, f"{fraction:4.0%}", f"{time.monotonic() - began:6.0f} s", note)
        self.live.update(table)


@contextmanager
def some_server() -> Iterator[None]:
    """A Prefect server while the body runs: the one that is set, else one for this process alone.

    Raises:
        ConfigurationError: The one that is set cannot be used.
    """
    if url := PREFECT_API_URL.value():
        password = PREFECT_API_AUTH_STRING.value() or known_password(url)
        if not PREFECT_API_KEY.value():  # of Prefect Cloud
            look_at(url, password)
        with told(Server(url, password)):
            yield
        return
    with temporary(Path(PREFECT_HOME.value())) as server, told(server):
        try:
            yield
        finally:
            # What was noted in the background is for this server, which is about to end.
            APILogWorker.drain_all(timeout=LAST_WORDS_SECONDS)
            EventsWorker.drain_all(timeout=LAST_WORDS_SECONDS)


@contextmanager
def told(server: Server) -> Iterator[None]:
    """Have all of Prefect in this process speak to a server."""
    before = os.environ.copy()
    os.environ["PREFECT_API_URL"] = server.url
    if server.password:
        os.environ[CLIENT] = server.password
    refresh_global_settings_context()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        refresh_global_settings_context()


def run_flow(flow: str, parameters: dict[str, Any]) -> str:
    """Run a flow in this process; its folder says how it ended, unless that could not be written.

    Returns:
        What went wrong, if anything did.
    """
    console = Console()
    # Ctrl-C, a polite kill or Cancel in the UI has ended the jobs by then, and the run's folder says that it
    # was stopped.
    stops = (KeyboardInterrupt, TerminationSignal, asyncio.CancelledError)
    try:
        with suppress(*stops), some_server(), listening(console), console.live:
            ended = asyncio.run(FLOWS[flow](**parameters, return_state=True))
            return "" if ended.is_completed() else str(ended.message).removeprefix(PREFIX)
    except httpx.TransportError as error:
        # It is asked for only what it is shown: the run's folder knows how the run ended.
        console.terminal.print(f"the Prefect server went out of reach ({error}) and does not show the end")
    return ""
