"""The book of every request to a paid judge: written before it is sent, closed with what came of it.

One sqlite file. A row of `attempt` stands in it before its request goes out, and is closed in the same
transaction that writes the row of `verdict`. So whatever ends the process, and at whatever instant, the
file holds every verdict that was paid for and arrived, and a trace of each request that was under way.
Those are asked again: no service offers a way to ask what became of them.

Tokens are what is stored; dollars are computed from them. The reply is kept as it came, so that a better
reader labels it again without another request. No key of a service is ever written.
"""

import asyncio
import os
import sqlite3
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from calibration.errors import JudgeError
from calibration.judges.provider import Reply, Usage
from calibration.records import Label

FILE = "judge.sqlite"
VERSION = 2
TURN_SECONDS = 0.05

_TABLES = """
CREATE TABLE job (                 -- many requests that were sent as one
    label TEXT PRIMARY KEY,        -- our name for it, written before it is sent
    name TEXT                      -- the service's name for it; NULL until it is known
) STRICT, WITHOUT ROWID;
CREATE TABLE attempt (
    job TEXT REFERENCES job (label), -- NULL for a request of its own
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,             -- digest of the protocol and the case
    provider TEXT NOT NULL,
    model TEXT NOT NULL,           -- the model that was asked for
    most_prompt INTEGER NOT NULL,  -- tokens that it can use at most
    most_output INTEGER NOT NULL,
    asker TEXT NOT NULL,           -- on whose behalf; see `asking_as`
    sent TEXT NOT NULL,
    ended TEXT,
    outcome TEXT,                  -- NULL while the request is under way
    detail TEXT NOT NULL DEFAULT '',
    status INTEGER,                -- of HTTP, where it was no success
    prompt INTEGER,                -- tokens used; NULL where the service did not say
    cached INTEGER,
    output INTEGER,
    thoughts INTEGER,
    model_version TEXT,            -- the model that answered
    response_id TEXT,
    body TEXT                      -- the reply as it came
) STRICT;
CREATE INDEX attempt_key ON attempt (key);
CREATE INDEX attempt_asker ON attempt (asker);
CREATE INDEX attempt_job ON attempt (job) WHERE job IS NOT NULL;
CREATE TABLE verdict (
    key TEXT PRIMARY KEY,
    label TEXT NOT NULL,
    reason TEXT NOT NULL,
    extracted TEXT,
    model_version TEXT,
    parser TEXT NOT NULL,          -- who read the reply
    attempt INTEGER NOT NULL REFERENCES attempt (id)
) STRICT, WITHOUT ROWID;
"""

FREE = frozenset({"throttled", "failed", "rejected", "fatal"})
"""Outcomes for which the service bills nothing: it answered with an error."""


@dataclass(frozen=True)
class Ruling:
    """What came of a case."""

    label: Label
    reason: str = ""
    extracted: str | None = None
    model_version: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a request ended: `judged`, `blocked`, `cut`, `unreadable`, `drifted`, or one of the troubles."""

    name: str
    detail: str = ""
    status: int | None = None
    retry_after: float | None = None
    reply: Reply | None = None
    body: str | None = None
    ruling: Ruling | None = None
    """What the reply says, if it is a verdict."""

    @property
    def used(self) -> Usage | None:
        """Tokens that will be billed; None when nobody said."""
        if self.reply:
            return self.reply.usage
        return Usage() if self.name in FREE else None

    @property
    def is_answer(self) -> bool:
        """Whether the model that was asked has answered, with a verdict or without: what was paid is kept."""
        return self.reply is not None and self.name != "drifted"


@dataclass(frozen=True)
class Spent:
    """What the requests to one model used."""

    used: Usage
    """What the service counted."""
    unknown: int = 0
    """Requests whose use it did not tell."""
    at_most: Usage = field(default_factory=Usage)
    """What these can have used at most."""
    requests: int = 0
    """All of them."""


@dataclass(frozen=True)
class Job:
    """Many requests that were sent as one, and are under way."""

    label: str
    name: str | None
    """What the service calls it; None when it was not heard of since."""
    requests: dict[int, str]
    """The key of each request, by the request's number, in the order in which they were sent."""


class Ledger:
    """The open book. One at a time may write; see `opened`."""

    def __init__(self, path: Path) -> None:
        """Open or begin the book.

        Raises:
            JudgeError: The file is no ledger, is damaged, or was written by a later version.
        """
        self.path = path
        with self._explained():
            self._db = sqlite3.connect(path, isolation_level=None)
        try:
            self._prepare()
        except JudgeError:
            self._db.close()
            raise

    def _prepare(self) -> None:
        with self._explained():
            self._db.execute("PRAGMA journal_mode = WAL")
            # A commit survives the end of the process. A power cut can undo the last ones, never half of one.
            self._db.execute("PRAGMA synchronous = NORMAL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
            elif version != VERSION:
                raise JudgeError(
                    f"the ledger {self.path} must be of version {VERSION}; it is of version {version}. "
                    "Use the slm-calibration that wrote it, or another store"
                )
            # Whoever holds the lock knows that nobody else is waiting for these. Of a job one can ask.
            self._db.execute(
                "UPDATE attempt SET outcome = 'lost', detail = 'the process ended' "
                "WHERE outcome IS NULL AND job IS NULL"
            )

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def begin(self, key: str, provider: str, model: str, at_most: Usage) -> int:
        """Write down that a request is about to go out, and return its number."""
        row = (key, provider, model, at_most.prompt, at_most.output, _asker.get(), _now())
        with self._explained():
            cursor = self._db.execute(
                "INSERT INTO attempt (key, provider, model, most_prompt, most_output, asker, sent) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )
        return int(cursor.lastrowid or 0)

    def begin_job(
        self, label: str, provider: str, model: str, requests: Sequence[tuple[str, Usage]]
    ) -> list[int]:
        """Write down that a job is about to be sent, all of it or nothing, and return its requests' numbers.

        Args:
            label: A name that no other job has; the service can be asked for it.
            provider: Who is asked.
            model: The model that is asked for.
            requests: The key of each, and what it can use at most.
        """
        with self._writing():
            self._db.execute("INSERT INTO job (label) VALUES (?)", (label,))
            numbers = []
            for key, at_most in requests:
                cursor = self._db.execute(
                    "INSERT INTO attempt "
                    "(job, key, provider, model, most_prompt, most_output, asker, sent) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (label, key, provider, model, at_most.prompt, at_most.output, _asker.get(), _now()),
                )
                numbers.append(int(cursor.lastrowid or 0))
        return numbers

    def name_job(self, label: str, name: str) -> None:
        """Write down what the service calls a job."""
        with self._explained():
            self._db.execute("UPDATE job SET name = ? WHERE label = ?", (name, label))

    def open_jobs(self, provider: str, model: str) -> list[Job]:
        """The jobs with requests of which nobody knows yet how they ended, the oldest first."""
        with self._explained():
            rows = self._db.execute(
                "SELECT label, name, id, key FROM attempt JOIN job ON job = label "
                "WHERE outcome IS NULL AND provider = ? AND model = ? ORDER BY id",
                (provider, model),
            ).fetchall()
        jobs: dict[str, Job] = {}
        for label, name, attempt, key in rows:
            jobs.setdefault(label, Job(label, name, {})).requests[attempt] = key
        return list(jobs.values())

    def end(self, attempt: int, key: str, outcome: Outcome, ruling: Ruling | None, parser: str) -> None:
        """Write down how a request ended and, in the same transaction, the verdict if there is one."""
        reply, usage = outcome.reply, outcome.used
        row = (
            *(_now(), outcome.name, outcome.detail, outcome.status, outcome.body),
            *((usage.prompt, usage.cached, usage.output, usage.thoughts) if usage else (None,) * 4),
            *((reply.model_version, reply.response_id) if reply else (None, None)),
        )
        with self._writing():
            self._db.execute(
                "UPDATE attempt SET ended = ?, outcome = ?, detail = ?, status = ?, body = ?, "
                "prompt = ?, cached = ?, output = ?, thoughts = ?, model_version = ?, response_id = ? "
                "WHERE id = ?",
                (*row, attempt),
            )
            if ruling:
                self._put(key, ruling, parser, attempt)

    def next_attempt(self) -> int:
        """A number that every later request has at least."""
        with self._explained():
            (last,) = self._db.execute("SELECT MAX(id) FROM attempt").fetchone()
        return int(last or 0) + 1

    def has_met(self, key: str, outcomes: Sequence[str], before: int) -> bool:
        """Whether a request of this case with a lower number than `before` has ended in one of these ways."""
        marks = ", ".join("?" * len(outcomes))
        query = f"SELECT 1 FROM attempt WHERE key = ? AND id < ? AND outcome IN ({marks}) LIMIT 1"  # noqa: S608
        with self._explained():
            return self._db.execute(query, (key, before, *outcomes)).fetchone() is not None

    def find(self, key: str) -> tuple[Ruling, str] | None:
        """The kept verdict and who read the reply; None when there is none."""
        with self._explained():
            row = self._db.execute(
                "SELECT label, reason, extracted, model_version, parser FROM verdict WHERE key = ?", (key,)
            ).fetchone()
        return (Ruling(*row[:4]), row[4]) if row else None

    def bodies(self, key: str) -> list[tuple[int, str]]:
        """The replies to one case as they came, the latest first, with the numbers of their requests."""
        with self._explained():
            return self._db.execute(
                "SELECT id, body FROM attempt WHERE key = ? AND body IS NOT NULL AND outcome != 'drifted' "
                "ORDER BY id DESC",
                (key,),
            ).fetchall()

    def relabel(self, key: str, ruling: Ruling, parser: str, attempt: int) -> None:
        """Put what a newer reader makes of a kept reply in the place of the verdict."""
        with self._explained():
            self._put(key, ruling, parser, attempt)

    def spent(self, provider: str, model: str) -> Spent:
        """What all requests to this model used, over every run."""
        with self._explained():
            return _spent(self._db).get((provider, model), Spent(Usage()))

    def outcomes(self) -> dict[tuple[str, str, str], int]:
        """How many requests ended in which way, by provider, model and outcome."""
        with self._explained():
            rows = self._db.execute(
                "SELECT provider, model, outcome, COUNT(*) FROM attempt GROUP BY 1, 2, 3"
            ).fetchall()
        return {(provider, model, outcome): count for provider, model, outcome, count in rows}

    def _put(self, key: str, ruling: Ruling, parser: str, attempt: int) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO verdict (key, label, reason, extracted, model_version, parser, attempt) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (key, ruling.label, ruling.reason, ruling.extracted, ruling.model_version, parser, attempt),
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """All that is written inside, or nothing, whatever goes wrong."""
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise JudgeError(
                f"the ledger {self.path} must be a whole file on a disk with room; {error}. What was written "
                "stays in it: make room, or if it is damaged move it away and begin another"
            ) from error


_SPENT = """
SELECT provider, model, COUNT(*), COUNT(*) - COUNT(prompt),
    TOTAL(prompt), TOTAL(cached), TOTAL(output), TOTAL(thoughts),
    TOTAL(most_prompt) FILTER (WHERE prompt IS NULL), TOTAL(most_output) FILTER (WHERE prompt IS NULL)
FROM attempt{where} GROUP BY provider, model
"""


def _spent(db: sqlite3.Connection, asker: str | None = None) -> dict[tuple[str, str], Spent]:
    found = {}
    query = _SPENT.format(where="" if asker is None else " WHERE asker = ?")
    for provider, model, requests, unknown, *tokens in db.execute(query, () if asker is None else (asker,)):
        used, most = Usage(*map(int, tokens[:4])), Usage(prompt=int(tokens[4]), output=int(tokens[5]))
        found[provider, model] = Spent(used, unknown, most, requests)
    return found


def read_spent(folder: Path, asker: str | None = None) -> dict[tuple[str, str], Spent]:
    """What the requests in a folder's ledger used, by provider and model, while others may write to it.

    Args:
        folder: Where the ledger is, if there is one.
        asker: Only requests on behalf of this one; see `asking_as`.
    """
    with _reading(folder) as db:
        return _spent(db, asker) if db else {}


_asker: ContextVar[str] = ContextVar("asker", default="")


@contextmanager
def asking_as(asker: str) -> Iterator[None]:
    """Write down the requests that are made inside as this one's; by its name it finds what they cost."""
    token = _asker.set(asker)
    try:
        yield
    finally:
        _asker.reset(token)


@contextmanager
def _reading(folder: Path) -> Iterator[sqlite3.Connection | None]:
    path = folder / FILE
    try:
        with closing(sqlite3.connect(path)) if path.exists() else nullcontext() as db:
            begun = db and db.execute("SELECT 1 FROM sqlite_master WHERE name = 'attempt'").fetchone()
            yield db if begun else None
    except sqlite3.Error as error:
        raise JudgeError(f"the ledger {path} must be a whole file; {error}") from error


_turns: dict[Path, threading.Lock] = defaultdict(threading.Lock)


@asynccontextmanager
async def opened(folder: Path, waiting: Callable[[str], None] = lambda _: None) -> AsyncIterator[Ledger]:
    """The ledger in a folder, for one round of judging.

    Rounds take turns, in one process or in several, so that the second finds what the first was told, under
    one window and one budget.

    Args:
        folder: Where it is, or is to be.
        waiting: Told, in words, which other process is waited for.

    Raises:
        JudgeError: It cannot be used.
    """
    path = (folder / FILE).absolute()
    turn = _turns[path]
    # Polled: rounds may be in two threads with a loop each, and a lock cannot be waited for in a loop.
    while not turn.acquire(blocking=False):  # noqa: ASYNC110
        await asyncio.sleep(TURN_SECONDS)
    try:
        async with _only_process(path, waiting):
            with closing(Ledger(path)) as ledger:
                yield ledger
    finally:
        turn.release()


@asynccontextmanager
async def _only_process(path: Path, waiting: Callable[[str], None]) -> AsyncIterator[None]:
    """Hold a lock that the kernel takes back from a killed process."""
    import fcntl  # where there is none, the rest of the library can still be used

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                waiting(f"waits for {holder}, which judges with {path}")
            await asyncio.sleep(TURN_SECONDS)
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
