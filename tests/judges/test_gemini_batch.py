"""Jobs are sent once, found again, and read as single replies are; counted on the service's side."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calibration.artifacts import Store
from calibration.errors import ConfigurationError, JudgeError
from calibration.judges import Gemini, GeminiBatch, Item
from calibration.judges.provider import Usage
from tests.judges.batch_server import BatchServer
from tests.judges.conftest import KEY
from tests.judges.gemini_server import MODEL, Say, error, throttle, tokens

ROOT = Path(__file__).parents[2]


@pytest.fixture
def serve(monkeypatch):
    running = []

    def start(plan=None, **settings):
        running.append(BatchServer(plan, **settings).__enter__())
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", running[-1].url)
        return running[-1]

    yield start
    for server in running:
        server.__exit__()


QUICK = {"timeout_seconds": 5.0, "retry_seconds": 0.01, "poll_seconds": 0.01}


def batch(items, progress=lambda f, n: None, **settings):
    return asyncio.run(GeminiBatch(**(QUICK | settings)).judge(items, progress=progress))


def item(answer="gold", key="q"):
    return Item(question_id=key, question="What?", golds=("gold",), answer=answer)


def first(*faults):
    return lambda seen: faults[seen.time - 1] if seen.time <= len(faults) else None


def labels(verdicts):
    return [verdict.label for verdict in verdicts]


def right(count):
    return ["correct" if n % 2 else "incorrect" for n in range(count)]


def test_one_job_judges_all_and_a_second_run_asks_nothing(serve, items):
    server = serve(looks=3)
    notes = []
    verdicts = batch(items(50), lambda f, n: notes.append((f, n)))
    assert labels(verdicts) == right(50)
    assert (server.creates, server.singles, server.gets, server.count) == (1, 0, 3, 50)
    assert verdicts[0].judge == f"gemini:{MODEL}:simpleqa@1"
    assert (verdicts[1].extracted, verdicts[1].model_version) == ("gold 1", MODEL)
    assert notes[0] == (0.0, "0 of 50, 0 kept, 1 jobs under way, $0.0000 of about $0.0000")
    price = 50 * (600 * 0.15 + 20 * 1.25) / 1e6
    assert notes[-1] == (
        1.0,
        f"50 of 50, 0 kept, 0 jobs under way, ${price:.4f} of about ${price:.4f}",
    )
    assert batch(items(50)) == verdicts
    assert server.creates == 1


def test_it_and_gemini_use_each_others_verdicts(serve, judge, items):
    server = serve()
    live = judge(items(20))
    assert server.singles == 20
    both = batch(items(40))
    assert both[:20] == live
    assert [len(job.requests) for job in server.jobs] == [20]
    assert judge(items(40)) == both
    assert server.singles == 20
    assert GeminiBatch().identity() == Gemini().identity()
    assert GeminiBatch(thinking="low").identity() == Gemini(thinking="low").identity() != Gemini().identity()


def test_a_request_of_a_job_is_the_request_that_gemini_sends(serve, judge):
    server = serve()
    judge([item()])
    (single,) = server.seen
    batch([item()], retry_unjudged=True)
    assert server.creates == 0
    batch([item("gold", "r"), item("other", "s")])
    (job,) = server.jobs
    sent = json.loads(json.dumps(job.requests[0]["request"]).replace("other", "gold"))
    assert sent == single.body


def test_what_needs_no_model_and_what_is_equal_is_not_asked(serve):
    server = serve()
    verdicts = batch([item(":", "a"), item("gold", "b"), item(" gold\nConfidence: 0.9", "c")])
    assert labels(verdicts) == ["not_attempted", "correct", "correct"]
    assert [len(job.requests) for job in server.jobs] == [1]
    assert batch([]) == []
    assert server.creates == 1


def test_many_answers_go_in_several_jobs(serve, items, monkeypatch):
    server = serve()
    assert labels(batch(items(50), requests_per_job=20)) == right(50)
    assert [len(job.requests) for job in server.jobs] == [20, 20, 10]
    import calibration.judges.gemini_batch as module

    monkeypatch.setattr(module, "LARGEST", 60_000)
    batch(items(50, start=100))
    sizes = [len(json.dumps(job.requests)) for job in server.jobs[3:]]
    assert len(sizes) > 1
    assert max(sizes) <= 60_000
    assert server.count == 100 == len(server.cases)


@pytest.mark.parametrize(
    "fault",
    [
        error(503, "UNAVAILABLE"),
        error(13, "x"),
        throttle(),
        Say(status=8),
        Say(finish="MAX_TOKENS", parts=[]),
    ],
)
def test_what_failed_in_a_job_is_asked_again_in_another(serve, items, fault):
    server = serve(lambda seen: fault if seen.time == 1 and seen.case["answer"] == "gold 7" else None)
    assert labels(batch(items(30))) == right(30)
    assert [len(job.requests) for job in server.jobs] == [30, 1]
    room = server.jobs[1].requests[0]["request"]["generationConfig"]["maxOutputTokens"]
    assert room == (1024 if fault.finish == "MAX_TOKENS" else 256)


@pytest.mark.parametrize(
    ("fault", "reason", "asked", "again"),
    [
        (Say(block="PROHIBITED_CONTENT"), "blocked: PROHIBITED_CONTENT", 2, 0),
        (Say(finish="SAFETY", parts=[]), "blocked: SAFETY", 2, 0),
        (Say(finish="MAX_TOKENS", parts=[]), "cut: MAX_TOKENS", 2, 0),
        (Say(text="CORRECT"), "unreadable: no JSON object", 3, 0),
        (Say(status=3), "rejected: 3: one request failed", 1, 1),
        (Say(status=13), "failed: 13: one request failed", 6, 6),
    ],
)
def test_what_stays_without_a_verdict_is_unjudged_as_with_gemini(serve, fault, reason, asked, again):
    server = serve(lambda seen: fault)
    (verdict,) = batch([item()])
    assert (verdict.label, verdict.reason, server.count) == ("unjudged", reason, asked)
    batch([item()])
    assert server.count == asked + again


@pytest.mark.parametrize("half", ["\ud800", r"\ud800"], ids=["in the whole reply", "in what was read"])
def test_half_a_character_in_a_reply_costs_no_verdict_and_is_paid_once(serve, half):
    server = serve(lambda seen: Say(text=f'{{"extracted": "gold{half}", "verdict": "CORRECT"}}'))
    verdicts = batch([item()])
    assert [(verdict.label, verdict.extracted) for verdict in verdicts] == [("correct", "gold?")]
    assert batch([item()]) == verdicts
    assert (server.creates, server.count) == (1, 1)


@pytest.mark.parametrize("state", ["BATCH_STATE_FAILED", "BATCH_STATE_EXPIRED", "BATCH_STATE_CANCELLED"])
def test_a_job_without_results_stops_the_round_and_the_next_asks_its_cases_again(serve, items, ledger, state):
    server = serve(end=lambda number: state if number == 2 else None)
    with pytest.raises(JudgeError, match=rf"batches/b2 is JOB_STATE_{state[12:]}.*20 of 60.*run it again"):
        batch(items(60), requests_per_job=20)
    unknown = ledger().spent("gemini-batch", MODEL).unknown
    # Nothing is billed for what failed; the rest, and the third job, may be.
    assert unknown == (20 if state == "BATCH_STATE_FAILED" else 40)
    assert labels(batch(items(60), requests_per_job=20)) == right(60)
    assert [len(job.requests) for job in server.jobs] == [20, 20, 20, 20]


def test_a_missing_reply_is_asked_again(serve, items):
    server = serve()
    finish = server._finish

    def lossy(request, job):
        finish(request, job)
        if job.name == "batches/b1":
            del job.responses[3]
            job.responses.reverse()

    server._finish = lossy
    assert labels(batch(items(10))) == right(10)
    assert [len(job.requests) for job in server.jobs] == [10, 1]


def test_another_model_in_its_place_stops_the_round_and_keeps_the_others(serve, items):
    drift = Say(version="gemini-3.5-flash")
    server = serve(lambda seen: drift if seen.case["answer"] == "gold 7" and seen.time == 1 else None)
    with pytest.raises(JudgeError, match=r"another model answered in its place .*29 of 30"):
        batch(items(30))
    assert labels(batch(items(30))) == right(30)
    assert [len(job.requests) for job in server.jobs] == [30, 1]


@pytest.mark.parametrize(
    "fault",
    [error(503, "UNAVAILABLE"), throttle(0.01), Say(wire="reset"), Say(wire="torn", raw=b'{"name": "b"}')],
)
def test_a_create_that_nobody_confirmed_is_looked_for_before_it_is_repeated(serve, items, fault):
    server = serve(create=lambda number: fault if number == 2 else None)
    assert labels(batch(items(40), requests_per_job=20)) == right(40)
    assert [len(job.requests) for job in server.jobs] == [20, 20]
    assert server.creates == (2 if fault.wire != "whole" else 3)
    assert server.lists >= 1


def test_a_create_that_takes_too_long_is_looked_for(serve, items):
    server = serve(create=lambda number: Say(wire="stall") if number == 1 else None)
    assert labels(batch(items(5), timeout_seconds=0.5)) == right(5)
    assert (server.creates, len(server.jobs)) == (1, 1)


def test_a_service_that_cannot_be_asked_for_a_while_loses_no_job(serve, items):
    def get(number):
        return [error(503, "UNAVAILABLE"), throttle(0.01), Say(status=502, raw=b"x"), None][
            min(number, 4) - 1
        ]

    server = serve(get=get)
    assert labels(batch(items(5))) == right(5)
    assert (server.creates, server.gets) == (1, 4)


def test_a_service_that_does_not_come_back_is_not_waited_for_and_the_job_is_found_later(serve, items):
    server = serve(get=lambda number: error(503, "UNAVAILABLE"))
    with pytest.raises(JudgeError, match="must answer; it does not"):
        batch(items(5), patience_seconds=0.2)
    server.get = None
    assert labels(batch(items(5))) == right(5)
    assert server.creates == 1


def test_a_job_that_is_gone_is_asked_anew_by_the_next_round(serve, items):
    server = serve(get=lambda number: error(404, "NOT_FOUND") if number == 1 else None)
    with pytest.raises(JudgeError, match=r"must know the job batches/b1; it is gone"):
        batch(items(5))
    assert labels(batch(items(5))) == right(5)
    assert server.creates == 2


def test_a_refused_create_stops_at_once_shows_no_key_and_leaves_nothing_open(serve, items, ledger):
    server = serve(create=lambda number: error(403, "PERMISSION_DENIED", KEY))
    with pytest.raises(JudgeError, match=r"must accept requests.*\[key\]") as caught:
        batch(items(5))
    assert KEY not in str(caught.value)
    assert server.creates == 1
    assert ledger().open_jobs("gemini-batch", MODEL) == []
    assert ledger().outcomes() == {("gemini-batch", MODEL, "fatal"): 5}
    files = b"".join(path.read_bytes() for path in Store.from_environment().root.rglob("*") if path.is_file())
    assert KEY.encode() not in files


def test_no_job_is_sent_that_could_pass_the_limit(serve, items, ledger):
    server = serve(lambda seen: Say(usage=tokens(prompt=700, output=60)))
    with pytest.raises(JudgeError, match=r"max_usd = 0\.02.*Raise max_usd"):
        batch(items(400), max_usd=0.02)
    each = (700 * 0.15 + 60 * 1.25) / 1e6
    assert len(server.jobs) > 1
    assert 0.02 - 0.001 < server.count * each <= 0.02
    assert ledger().spent("gemini-batch", MODEL).used.prompt == 700 * server.count
    assert labels(batch(items(400), max_usd=1.0)) == right(400)
    assert server.count == 400


def test_what_single_requests_cost_counts_against_the_limit(serve, judge, items):
    server = serve()
    judge(items(50))
    spent = 50 * (600 * 0.30 + 20 * 2.50) / 1e6
    with pytest.raises(JudgeError, match=rf"{spent:.4f} are spent"):
        batch(items(60), max_usd=spent + 0.0001)
    assert server.creates == 0


def test_what_batches_cost_counts_against_the_limit_of_single_requests(serve, judge, items):
    server = serve()
    batch(items(50))
    spent = 50 * (600 * 0.15 + 20 * 1.25) / 1e6
    with pytest.raises(JudgeError, match=rf"{spent:.4f} are spent"):
        judge(items(60), max_usd=spent + 0.0001)
    assert server.singles == 0
    judge(items(60), max_usd=spent + 0.1)
    assert server.singles == 10


def test_a_job_under_way_counts_against_the_limit_of_single_requests_at_the_most_it_can_cost(
    serve, judge, items
):
    server = serve(looks=None)
    killed_when(lambda: server.gets >= 1)
    most = 30 * 256 * 1.25 / 1e6  # for the replies alone
    with pytest.raises(JudgeError, match=r"max_usd = 0\.01") as caught:
        judge(items(1, start=100), max_usd=0.01)
    assert float(re.search(r"; (\S+) are spent", str(caught.value))[1]) > most
    assert server.singles == 0


JUDGING = (
    "import asyncio, sys\nfrom calibration.judges import GeminiBatch, Item\n"
    "items = [Item(question_id=f'q{n}', question=f'What is {n}?', golds=(f'gold {n}',),\n"
    "              answer=f'gold {n}' if n % 2 else f'other {n}') for n in range(int(sys.argv[1]))]\n"
    "judge = GeminiBatch(poll_seconds=0.01, retry_seconds=0.01, requests_per_job=15)\n"
    "asyncio.run(judge.judge(items, progress=lambda f, n: None))\n"
)


def killed_when(is_time):
    """Judge 30 answers in a process of its own, and kill it with 9 when it is time."""
    process = subprocess.Popen(
        [sys.executable, "-c", JUDGING, "30"], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        until = time.monotonic() + 60
        while not is_time():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("instant", ["waiting", "before the name came", "before it was sent"])
def test_killed_with_9_it_finds_its_jobs_and_pays_for_none_twice(serve, judge, items, ledger, instant):
    creates = {
        "waiting": None,
        "before the name came": Say(wire="stall"),
        "before it was sent": error(503, "UNAVAILABLE"),
    }
    server = serve(looks=None, create=lambda number: creates[instant] if number >= 2 else None)
    killed_when(lambda: server.creates >= 2 and (instant != "waiting" or server.gets >= 4))
    assert len(server.jobs) == (1 if instant == "before it was sent" else 2)
    server.looks, server.create = 1, None
    assert labels(batch(items(30), requests_per_job=15)) == right(30)
    assert [len(job.requests) for job in server.jobs] == [15, 15]
    assert server.count == 30 == len(server.cases)
    assert ledger().spent("gemini-batch", MODEL).used == Usage(prompt=18_000, output=600)


def test_a_job_of_other_cases_is_not_waited_for(serve, items):
    server = serve(looks=None)

    async def cancelled():
        looked = server.event_at(2)
        task = asyncio.create_task(GeminiBatch(**QUICK).judge(items(5), progress=lambda f, n: None))
        await looked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    looks = server.jobs[0].looks
    server.looks = 1
    assert labels(batch(items(5, start=5))) == ["correct" if n % 2 else "incorrect" for n in range(5, 10)]
    assert server.jobs[0].looks == looks
    assert labels(batch(items(8))) == right(8)
    assert [len(job.requests) for job in server.jobs] == [5, 5]


def test_rounds_side_by_side_do_not_wait_for_each_other_and_pay_once(serve, items):
    server = serve(looks=4)

    async def both():
        judge = GeminiBatch(**QUICK)
        sets = [items(10), items(10, start=5), items(10, start=20)]
        return await asyncio.gather(*(judge.judge(one, progress=lambda f, n: None) for one in sets))

    verdicts = asyncio.run(both())
    assert [len(one) for one in verdicts] == [10, 10, 10]
    assert verdicts[0][5:] == verdicts[1][:5]
    assert [len(job.requests) for job in server.jobs] == [10, 5, 10]
    assert server.count == 25 == len(server.cases)


def test_a_verdict_that_came_in_the_meantime_is_not_replaced(serve, judge, items):
    server = serve(lambda seen: Say(text='{"extracted": null, "verdict": "NOT_ATTEMPTED"}'), looks=None)

    async def meanwhile():
        looked = server.event_at(1)
        task = asyncio.create_task(GeminiBatch(**QUICK).judge(items(3), progress=lambda f, n: None))
        await looked.wait()
        live = await Gemini().judge(items(3)[:1], progress=lambda f, n: None)
        server.plan, server.looks = None, 1
        return live, await task

    live, verdicts = asyncio.run(meanwhile())
    assert verdicts[0] == live[0] == judge(items(1))[0]
    assert labels(verdicts) == ["not_attempted", "correct", "incorrect"]


def test_what_is_wrong_is_known_before_anything_is_sent(serve, items, monkeypatch):
    server = serve()
    with pytest.raises(ConfigurationError, match="shut down on 2026-06-01"):
        batch(items(1), model="gemini-2.0-flash")
    monkeypatch.delenv("GEMINI_API_KEY")
    with pytest.raises(ConfigurationError, match="must have a key"):
        GeminiBatch().check([])
    assert server.creates == 0
