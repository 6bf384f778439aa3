import asyncio
import os

import pytest

from calibration.artifacts import Store
from calibration.judges import Gemini, Item
from calibration.judges.ledger import FILE, Ledger
from tests.judges.gemini_server import GeminiServer

KEY = "AIza-planted-5f0c"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """A key, and no proxy."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("GOOGLE_", "GEMINI_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GEMINI_API_KEY", KEY)


@pytest.fixture
def serve(monkeypatch):
    """Start a server that the judge will ask."""
    running = []

    def start(plan=None, **settings):
        server = GeminiServer(plan, **settings).__enter__()
        running.append(server)
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
        return server

    yield start
    for server in running:
        server.__exit__()


@pytest.fixture
def judge():
    """Judge items with short pauses; the last progress note is kept in `judge.note`."""

    def run(items, **settings):
        def progress(fraction, note):
            run.note = note

        quick = {"timeout_seconds": 5.0, "retry_seconds": 0.01}
        return asyncio.run(Gemini(**(quick | settings)).judge(items, progress=progress))

    return run


@pytest.fixture
def items():
    """So many answers; every other one is right."""

    def make(count, start=0):
        return [
            Item(
                question_id=f"q{n}",
                question=f"What is {n}?",
                golds=(f"gold {n}",),
                answer=f"gold {n}" if n % 2 else f"other {n}",
            )
            for n in range(start, start + count)
        ]

    return make


@pytest.fixture
def ledger():
    """Open the store's ledger to look into it."""

    def open_it():
        opened.append(Ledger(Store.from_environment().root / FILE))
        return opened[-1]

    opened = []
    yield open_it
    for book in opened:
        book.close()
