"""An answer that can never be judged: the others are, and no round after the first is stopped by it."""

import asyncio
import gzip
import json
import os
import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from calibration.artifacts import Store
from calibration.errors import JudgeError
from calibration.judges import GeminiBatch
from calibration.judges.ledger import FILE, Ledger, Outcome
from calibration.judges.provider import Reply, Usage
from tests.judges.batch_server import BatchServer
from tests.judges.gemini_server import MODEL, Say, error, throttle, tokens

ROOT = Path(__file__).parents[2]
FAULTS = {
    "500": error(500, "INTERNAL"),
    "reset": Say(wire="reset"),
    "no JSON": Say(raw=b"{"),
    "rejected": error(400, "INVALID_ARGUMENT"),
    "throttled": throttle(1000),
    "throttled for ever": error(429, "RESOURCE_EXHAUSTED", headers={"Retry-After": "inf"}),
    "no access": error(403, "PERMISSION_DENIED"),
    "not found": error(404, "NOT_FOUND"),
    "day's quota": throttle(60, quota="GenerateRequestsPerDayPerProjectPerModel"),
    "another model": Say(version="gemini-3.5-flash"),
}


def poisoned(fault, poison):
    """A plan under which some answers meet a fault whenever they are asked."""
    texts = {f"What is {n}?" for n in poison}
    return lambda seen: fault if seen.case["question"] in texts else None


def rounds_of(judge, items, most, **settings):
    """The verdicts, and the round that gave them."""
    for number in range(1, most + 1):
        try:
            return judge(items, **settings), number
        except JudgeError:
            if number == most:
                raise
    return None


def unjudged(verdicts):
    return {int(verdict.question_id[1:]) for verdict in verdicts if verdict.label == "unjudged"}


def test_five_that_always_fail_of_six_hundred_are_unjudged_in_the_first_round(serve, judge, items):
    server = serve(poisoned(FAULTS["500"], {0, 50, 300, 301, 599}))
    verdicts = judge(items(600))
    assert unjudged(verdicts) == {0, 50, 300, 301, 599}
    assert server.count == 595 + 5 * 6
    assert unjudged(judge(items(600))) == {0, 50, 300, 301, 599}
    assert server.count == 595 + 2 * 5 * 6


@pytest.mark.parametrize("concurrency", [1, 30])
@pytest.mark.parametrize("name", FAULTS)
def test_no_kind_of_trouble_stops_a_second_round_on_the_same_answers(serve, judge, items, name, concurrency):
    poison = {0, 7, 8, 30, 39}
    server = serve(poisoned(FAULTS[name], poison))
    quick = {"concurrency": concurrency, "patience_seconds": 0.5, "retry_seconds": 0.001}
    # At worst each stops a round of its own, once.
    verdicts, _ = rounds_of(judge, items(40), len(poison) + 1, **quick)
    assert unjudged(verdicts) == poison
    marks = ["correct" if n % 2 else "incorrect" for n in range(40) if n not in poison]
    assert [verdict.label for verdict in verdicts if verdict.label != "unjudged"] == marks
    server.plan = None
    assert unjudged(judge(items(40), **quick)) == set()


def test_more_than_a_streak_of_them_side_by_side_stop_one_round_and_not_the_next(serve, judge, items):
    serve(poisoned(FAULTS["500"], range(35)))
    with pytest.raises(JudgeError, match="20 requests in a row failed"):
        judge(items(200), retry_seconds=0.001)
    verdicts, number = rounds_of(judge, items(200), 3, retry_seconds=0.001)
    assert unjudged(verdicts) == set(range(35))
    assert number <= 2


def test_many_of_them_at_the_end_of_a_round_do_not_look_like_a_service_that_fails(serve, judge, items):
    poison = set(range(0, 400, 10))
    serve(poisoned(FAULTS["500"], poison))
    assert unjudged(judge(items(400), retry_seconds=0.001)) == poison


def test_an_answer_that_many_systems_gave_is_given_up_once(serve, judge, items):
    server = serve(poisoned(FAULTS["500"], {0}))
    same = [item.model_copy(update={"question_id": f"q{n}"}) for n, item in enumerate(items(1) * 50)]
    assert unjudged(judge(same, retry_seconds=0.001, concurrency=1)) == set(range(50))
    assert server.count == 6


ODD_COUNTS = [None, 2**63, 2**70, -1, 0.5, "x", [], {}, True]


@pytest.mark.parametrize("count", ODD_COUNTS, ids=str)
@pytest.mark.parametrize("name", ["promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount"])
def test_a_count_of_tokens_that_is_none_voids_no_verdict(serve, judge, items, ledger, name, count):
    odd = Say(usage=tokens() | {name: count})
    server = serve(lambda seen: odd if seen.number % 3 == 0 else None)
    assert not unjudged(judge(items(12)))
    assert server.count == 12
    if count is not True:  # which stands for 1
        spent = ledger().spent("gemini", MODEL)
        assert (spent.unknown, spent.used.prompt) == (4, 8 * 600)


@pytest.mark.parametrize("odd", [5, [], {"a": 1}, None, "x" * 2000], ids=str)
def test_an_odd_id_of_a_reply_voids_no_verdict(serve, judge, items, odd):
    body = {
        "candidates": [{"content": {"parts": [{"text": '{"extracted": "x", "verdict": "CORRECT"}'}]}}],
        "usageMetadata": "none",
        "responseId": odd,
    }
    server = serve(lambda seen: Say(raw=json.dumps(body).encode()))
    assert not unjudged(judge(items(3)))
    assert server.count == 3


def test_what_cannot_be_written_leaves_nothing_of_it_behind_and_the_ledger_goes_on(tmp_path):
    book = Ledger(tmp_path / FILE)
    attempt = book.begin("k", "gemini", MODEL, Usage(1, 1))
    huge = Reply("", "whole", "STOP", Usage(prompt=2**70), MODEL, "r")
    with pytest.raises(OverflowError):
        book.end(attempt, "k", Outcome("judged", reply=huge), None, "p")
    with pytest.raises((sqlite3.Error, JudgeError, ValueError, TypeError)):
        book.begin_job("label", "gemini", MODEL, [("a", Usage(1, 1)), (object(), Usage(1, 1))])
    assert book.open_jobs("gemini", MODEL) == []
    book.end(attempt, "k", Outcome("lost"), None, "p")
    assert book.outcomes() == {("gemini", MODEL, "lost"): 1}
    book.close()


QUICK = {"timeout_seconds": 2.0, "retry_seconds": 0.001, "poll_seconds": 0.001, "patience_seconds": 0.2}


def batch(items, **settings):
    return asyncio.run(GeminiBatch(**(QUICK | settings)).judge(items, progress=lambda f, n: None))


@pytest.fixture
def jobs(monkeypatch):
    running = []

    def start(plan=None, **settings):
        running.append(BatchServer(plan, **settings).__enter__())
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", running[-1].url)
        return running[-1]

    yield start
    for server in running:
        server.__exit__()


@pytest.mark.parametrize(
    "fault", [Say(status=7), Say(status=404), Say(version="gemini-3.5-flash"), Say(status=13)], ids=repr
)
def test_in_jobs_no_kind_of_trouble_stops_a_second_round_on_the_same_answers(jobs, items, fault):
    jobs(poisoned(fault, {3, 4}))
    verdicts, number = rounds_of(batch, items(20), 2)
    assert unjudged(verdicts) == {3, 4}
    assert number <= 2


@pytest.mark.parametrize(
    "broken",
    [
        {"create": lambda number: error(400, "INVALID_ARGUMENT")},
        {"create": lambda number: error(403, "PERMISSION_DENIED")},
        {"end": lambda number: "BATCH_STATE_FAILED"},
        {"get": lambda number: Say(raw=b"{}")},
        {"get": lambda number: Say(raw=b"<html>")},
        {"get": lambda number: error(404, "NOT_FOUND")},
    ],
    ids=["create 400", "create 403", "failed", "get {}", "get html", "get 404"],
)
def test_jobs_that_come_to_nothing_in_every_round_leave_their_answers_unjudged(jobs, items, ledger, broken):
    server = jobs(**broken)
    with pytest.raises(JudgeError):
        batch(items(5))
    assert unjudged(batch(items(5))) == set(range(5))
    assert ledger().open_jobs("gemini-batch", MODEL) == []
    server.create = server.end = server.get = None
    assert unjudged(batch(items(5))) == set()


def test_an_odd_part_of_one_reply_in_a_job_costs_none_of_the_others(jobs, items, ledger):
    odd = {"usage": tokens() | {"promptTokenCount": "many"}}
    server = jobs(lambda seen: Say(**odd) if seen.number == 3 else None)
    assert not unjudged(batch(items(10)))
    assert (server.creates, server.count) == (1, 10)
    assert ledger().spent("gemini-batch", MODEL).unknown == 1


def test_jobs_of_others_are_listed_however_odd_they_are(jobs, items):
    server = jobs(create=lambda number: Say(wire="reset") if number == 1 else None)
    listed = server._told

    def told(job):
        return listed(job) | {"x": [2**70], "response": 5}

    server._told = told
    assert not unjudged(batch(items(5)))
    assert (server.creates, len(server.jobs)) == (1, 1)
    assert Store.from_environment().root.exists()


BOMBED = """
import asyncio, resource
from calibration.judges import Gemini, Item
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def judge(start, count):
    items = [Item(question_id=f"q{n}", question=f"What is {n}?", golds=(f"gold {n}",), answer=f"gold {n}")
             for n in range(start, start + count)]
    by = Gemini(timeout_seconds=4.0, retry_seconds=0.01)
    return [v.label for v in asyncio.run(by.judge(items, progress=lambda f, n: None))]
judge(1000, 5)
before = peak()
labels = judge(0, 40)
print(labels.count("correct"), labels.count("unjudged"), peak() - before)
"""
LONG = b'{"candidates": [{"content": {"parts": [{"text": "' + b"x" * 60_000_000 + b'"}]}}]}'


@pytest.mark.parametrize(
    "bomb",
    [
        Say(raw=LONG),
        Say(raw=gzip.compress(b" " * 300_000_000, 1), headers={"Content-Encoding": "gzip"}),
        Say(raw=zlib.compress(b" " * 300_000_000, 1), headers={"Content-Encoding": "deflate"}),
    ],
    ids=["60 MB", "gzip of 300 MB", "deflate of 300 MB"],
)
def test_replies_that_would_fill_the_memory_are_not_read_and_hold_up_no_other(serve, bomb):
    server = serve(poisoned(bomb, range(0, 40, 4)))
    done = subprocess.run(
        [sys.executable, "-c", BOMBED], capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    right, unjudged, megabytes = done.stdout.split()
    assert (int(right), int(unjudged)) == (30, 10)
    assert float(megabytes) < 40
    assert server.count == 5 + 30 + 10 * 6
