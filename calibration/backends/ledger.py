"""The calls that are open, and what the closed ones cost.

A call is written down before it is waited for, so that whoever comes next finds it: after a crash the
same work is not begun, and paid for, a second time.
"""

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from calibration.artifacts import Store
from calibration.errors import ConfigurationError
from calibration.schema import Schema

DAY = timedelta(hours=24)
LOCK_SECONDS = 0.2

Outcome = Literal["done", "refused", "failed", "cancelled", "lost", "elsewhere"]


class Call(Schema):
    """One call that was begun."""

    key: str
    """Names the work; the same work has the same key tomorrow."""
    kind: str
    environment: str | None
    call: str = ""
    """Modal's id. Empty for the moment between setting money aside and the answer of Modal."""
    gpu: str
    minutes: int
    """Time limit of one attempt."""
    usd_per_hour: float
    priced: str
    """Date of the price."""
    begun: datetime

    @property
    def most_usd(self) -> float:
        """What it costs if it runs to its time limit once."""
        return self.minutes / 60 * self.usd_per_hour


class Cost(Schema):
    """One call that ended, as counted here: working seconds times list price."""

    key: str
    kind: str
    call: str
    gpu: str
    seconds: float
    usd: float
    priced: str
    outcome: Outcome
    ended: datetime


class Ledger:
    """`calls/<key>.json` and `costs.jsonl` in a store."""

    def __init__(self, store: Store) -> None:
        """Open the ledger of a store."""
        self._calls = store.root / "calls"
        self._costs = store.root / "costs.jsonl"

    @asynccontextmanager
    async def alone(self, key: str) -> AsyncIterator[None]:
        """Be the only one who begins or waits for this work; the kernel lets go when the process ends."""
        self._calls.mkdir(parents=True, exist_ok=True)
        with (self._calls / f"{key}.lock").open("w") as file:
            while not _locked(file.fileno()):  # noqa: ASYNC110 - another process cannot set an event
                await asyncio.sleep(LOCK_SECONDS)
            yield

    def find(self, key: str) -> Call | None:
        """The open call for this work, if its id is known."""
        path = self._calls / f"{key}.json"
        call = _read(path) if path.exists() else None
        return call if call and call.call else None

    def open(self) -> list[Call]:
        """Every open call, oldest first."""
        calls = []
        for path in self._calls.glob("*.json"):
            # One that another run has closed in the meantime is not open.
            with suppress(FileNotFoundError):
                calls.append(_read(path))
        return sorted(calls, key=lambda call: call.begun)

    def check(self, call: Call, max_usd: float) -> None:
        """See that a call can be afforded.

        Raises:
            ConfigurationError: It may cost more than is left of `max_usd` for 24 hours.
        """
        spent, aside = self.spent(), self._aside(call)
        if spent + aside + call.most_usd > max_usd:
            raise ConfigurationError(
                f"max_usd must leave room for {call.minutes} minutes of {call.kind} on {call.gpu}, up to "
                f"{call.most_usd:.2f} USD; of {max_usd:.2f}, {spent:.2f} were spent within 24 hours and "
                f"{aside:.2f} are set aside for open calls. Raise it with --on max_usd=..., or lower "
                f"--on {call.kind}_minutes=..."
            )

    def reserve(self, call: Call, max_usd: float) -> None:
        """Set money aside for a call that is about to be begun, if it can be afforded."""
        with self._one_at_a_time():
            self.check(call, max_usd)
            self.note(call)

    def has_outgrown(self, call: Call, worked: float, max_usd: float) -> bool:
        """Whether an open call, tried again and again, has cost more than was set aside and than there is.

        Args:
            call: The call.
            worked: Seconds that this work has taken in all calls so far.
            max_usd: Most that may be spent within 24 hours.
        """
        usd = self._seconds(call, worked) / 3600 * call.usd_per_hour
        return usd > call.most_usd and self.spent() + self._aside(call) + usd > max_usd

    def note(self, call: Call) -> None:
        """Write a call down; it is on the disk when this returns."""
        self._calls.mkdir(parents=True, exist_ok=True)
        draft = self._calls / f"{call.key}.draft"
        with draft.open("w", encoding="utf-8") as file:
            file.write(call.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(draft.with_suffix(".json"))

    def forget(self, call: Call) -> None:
        """Give back what was set aside for a call that did not come about."""
        (self._calls / f"{call.key}.json").unlink(missing_ok=True)

    def close(self, call: Call, outcome: Outcome, worked: float) -> None:
        """Book what a call cost, and let go of it.

        Args:
            call: The call.
            outcome: How it ended.
            worked: Seconds that this work has taken in all calls; what was booked before is taken off.
        """
        seconds = self._seconds(call, worked)
        cost = Cost(
            **call.model_dump(include={"key", "kind", "call", "gpu", "priced"}),
            seconds=round(seconds, 3),
            usd=round(seconds / 3600 * call.usd_per_hour, 6),
            outcome=outcome,
            ended=datetime.now(UTC),
        )
        with self._costs.open("a", encoding="utf-8") as file:
            file.write(cost.model_dump_json() + "\n")
        self.forget(call)

    def costs(self) -> list[Cost]:
        """Every cost that was booked, oldest first."""
        lines = self._costs.read_text(encoding="utf-8").splitlines() if self._costs.exists() else []
        return [Cost.model_validate(json.loads(line)) for line in lines]

    def spent(self, within: timedelta = DAY) -> float:
        """What the calls that ended lately cost, in USD."""
        since = datetime.now(UTC) - within
        return sum(cost.usd for cost in self.costs() if cost.ended >= since)

    def _aside(self, call: Call) -> float:
        """What is set aside for other calls, in USD."""
        return sum(other.most_usd for other in self.open() if other.key != call.key)

    def _seconds(self, call: Call, worked: float) -> float:
        """What of the seconds of some work was not booked for earlier calls."""
        return max(0.0, worked - sum(cost.seconds for cost in self.costs() if cost.key == call.key))

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Keep two runs from setting the same money aside."""
        self._calls.mkdir(parents=True, exist_ok=True)
        with (self._calls / "money.lock").open("w") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: Path) -> Call:
    return Call.model_validate_json(path.read_text(encoding="utf-8"))
