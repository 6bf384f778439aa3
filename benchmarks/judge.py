"""What durability costs: the judge with its ledger against the bare client doing the same calls.

    python -m benchmarks.judge

A server of our own in another process answers each request after 200 ms. Both sides send 3000 of them, at
most 100 at a time, in turns, so that what else the machine does meets both.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from google import genai
from google.genai import types

from calibration.judges import Gemini, Item
from calibration.judges.cases import Case
from calibration.judges.replies import SCHEMA
from calibration.prompts import SIMPLEQA_JUDGE
from tests.judges.gemini_server import GeminiServer

COUNT, CONCURRENCY, LATENCY, ROUNDS = 3000, 100, 0.2, 3
QUOTA, QUOTA_COUNT = 60, 1500
KEY = "loopback"


def main() -> None:
    """Print the ratio, the second run, and the use of a quota."""
    if sys.argv[1:2] == ["--serve"]:
        serve(float(sys.argv[2]), float(sys.argv[3]) or None)
        return
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    os.environ["GEMINI_API_KEY"] = KEY
    items = make_items(COUNT)
    with server(LATENCY) as ask:
        bare, ours = [], []
        for _ in range(ROUNDS):
            bare.append(timed(lambda: asyncio.run(call_bare(items))))
            with fresh_store():
                ours.append(timed(lambda: judge(items)))
                before = ask()["count"]
                again = timed(lambda: judge(items))
                repeated = ask()["count"] - before
    show("bare client", bare)
    show("judge with ledger", ours)
    print(f"ratio of medians      {statistics.median(ours) / statistics.median(bare):.2f}  (must be <= 1.3)")
    print(f"second run            {again:.2f} s, {repeated} requests  (must be < 2 s and 0)")
    with server(LATENCY, QUOTA) as ask, fresh_store():
        seconds = timed(lambda: judge(make_items(QUOTA_COUNT)))
        counts = ask()
    used = QUOTA_COUNT / seconds / QUOTA
    print(
        f"quota of {QUOTA} a second  {used:.0%} used, {counts['refused']} refused of {counts['count']} sent"
    )


def make_items(count: int) -> list[Item]:
    """So many different answers."""
    return [
        Item(question_id=str(n), question=f"What is number {n}?", golds=(f"gold {n}",), answer=f"answer {n}")
        for n in range(count)
    ]


def judge(items: Sequence[Item]) -> None:
    """As an experiment does."""
    asyncio.run(Gemini(concurrency=CONCURRENCY).judge(items, progress=lambda *_: None))


async def call_bare(items: Sequence[Item]) -> None:
    """As one would without a ledger: the client, a semaphore, and nothing else."""
    config = types.GenerateContentConfig(
        max_output_tokens=256,
        thinking_config=types.ThinkingConfig(thinking_level=types.ThinkingLevel.MINIMAL),
        response_mime_type="application/json",
        response_json_schema=SCHEMA,
    )
    room = asyncio.Semaphore(CONCURRENCY)
    async with genai.Client(api_key=KEY).aio as client:

        async def one(item: Item) -> str | None:
            prompt = SIMPLEQA_JUDGE.render(asdict(Case.of(item)))
            async with room:
                reply = await client.models.generate_content(
                    model="gemini-3.5-flash-lite", contents=prompt, config=config
                )
            return reply.text

        replies = await asyncio.gather(*(one(item) for item in items))
    if any("verdict" not in (reply or "") for reply in replies):
        raise RuntimeError("the bare client must have an answer to every request")


def timed(work: Callable[[], None]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def show(name: str, seconds: Sequence[float]) -> None:
    """One line: the median and every round."""
    rounds = ", ".join(f"{value:.1f}" for value in seconds)
    print(f"{name:21} {statistics.median(seconds):.2f} s  ({rounds})")


@contextmanager
def fresh_store() -> Iterator[None]:
    """A store that is empty at first and gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SLM_CALIBRATION_STORE"] = folder
        yield


@contextmanager
def server(latency: float, quota: float = 0.0) -> Iterator[Callable[[], dict[str, int]]]:
    """The server in a process of its own; gives a function that asks for its counts."""
    command = [sys.executable, "-m", "benchmarks.judge", "--serve", str(latency), str(quota)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        tell, hear = process.stdin, process.stdout
        if tell is None or hear is None:
            raise RuntimeError("the server must be reached through pipes")

        def ask() -> dict[str, int]:
            tell.write("count\n")
            tell.flush()
            counts: dict[str, int] = json.loads(hear.readline())
            return counts

        os.environ["GOOGLE_GEMINI_BASE_URL"] = hear.readline().strip()
        yield ask
        tell.close()


def serve(latency: float, quota: float | None) -> None:
    """Print the address, then counts for each line read, until there is no more."""
    with GeminiServer(latency=latency, requests_per_second=quota) as running:
        print(running.url, flush=True)
        for _ in sys.stdin:
            print(json.dumps({"count": running.count, "refused": running.refused}), flush=True)


if __name__ == "__main__":
    main()
