"""What a person at a terminal sees of a run."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
from prefect.exceptions import TerminationSignal
from rich.console import Console as Terminal
from rich.live import Live
from rich.table import Table

from calibration.results import StageRecord
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
        with suppress(*stops), listening(console), console.live:
            ended = asyncio.run(FLOWS[flow](**parameters, return_state=True))
            return "" if ended.is_completed() else str(ended.message).removeprefix(PREFIX)
    except httpx.TransportError as error:
        # It is asked for only what it is shown: the run's folder knows how the run ended.
        console.terminal.print(f"the Prefect server went out of reach ({error}) and does not show the end")
    return ""
