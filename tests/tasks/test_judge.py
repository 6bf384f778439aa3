"""The judge as a stage: cached, told from outside how far it is, and honest when it fails."""

import asyncio
import json
import logging
import subprocess
import sys
import traceback
from subprocess import PIPE

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterType
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from calibration.artifacts import Store
from calibration.errors import JudgeError
from calibration.judges import Exact, Gemini
from calibration.records import Generation, Question, Verdict
from calibration.runs import Run
from calibration.spending import Spending
from tasks.journal import Journal, keeping
from tasks.judge import judge as judge_stage
from tests.judges.gemini_server import GeminiServer, Say, error
from tests.told import every

PLANTED = "AIza-planted-5f0c-in-a-flow"


class Listener:
    """Remembers what it was told."""

    def __init__(self):
        self.notes = []

    def started(self, stage):
        pass

    def progressed(self, stage, fraction, note):
        self.notes.append((stage, fraction, note))

    def ended(self, record):
        pass


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "store" / "cache"}):
        yield


def run(server, monkeypatch, judge=None, max_unjudged=0.01, key="k", journal=None, **settings):
    """Judge thirty answers in a flow; return the verdicts, the states of the stage and what was heard."""
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
    monkeypatch.setenv("GEMINI_API_KEY", key)
    store = Store.from_environment()
    questions = [Question(id=f"q{n}", text=f"What is {n}?", answers=("x",)) for n in range(30)]
    generations = [
        Generation(
            question_id=question.id,
            elicitation="plain",
            text="x",
            answer="x",
            token_ids=(),
            tokens=("x",),
            logprobs=(-0.1,),
            span=(0,),
            span_rule="s@1",
            finish="stop",
        )
        for question in questions
    ]
    inputs = (
        store.save_rows("questions", questions, Question),
        store.save_rows("generations", generations, Generation),
    )

    @flow
    async def around():
        return await judge_stage(*inputs, judge or Gemini(**settings), max_unjudged, "small")

    listener = Listener()
    with keeping(journal or Journal(listener=listener)) as journal:
        artifact = asyncio.run(around())
    return store.load_rows(artifact, Verdict), [r.state for r in journal.stages], listener.notes


def test_a_second_run_is_cached_also_with_other_limits(monkeypatch):
    with GeminiServer() as server:
        one, states, notes = run(server, monkeypatch)
        other, again, _ = run(server, monkeypatch, concurrency=3, max_usd=1.0)
        assert (states, again) == (["Completed"], ["Cached"])
        assert one == other
        assert {v.label for v in one} == {"correct"}
        assert server.count == 30
        assert notes[-1][:2] == ("judge small", 1.0)
        assert notes[-1][2].startswith("30 of 30")


def test_a_refreshed_judge_reads_its_ledger_again_and_pays_nothing(monkeypatch):
    with GeminiServer() as server:
        one, _, _ = run(server, monkeypatch, journal=(first := Journal()))
        other, states, _ = run(server, monkeypatch, journal=(again := Journal(refresh="judge")))
        assert states == ["Completed"]
        assert one == other
        assert server.count == 30
    # The figures are those of the built-in prices and of the replies of this server.
    assert first.spending().judge_usd == pytest.approx((30 * 600 * 0.30 + 30 * 20 * 2.50) / 1e6)
    assert again.spending().usd == 0


def test_a_run_knows_what_it_has_cost_while_it_judges(monkeypatch, tmp_path):
    (tmp_path / "run").mkdir()
    book = Run(tmp_path / "run")
    noted = []

    class Reader(Listener):
        def progressed(self, stage, fraction, note):
            noted.append(book.spending().judge_usd)

    monkeypatch.setattr("tasks.journal.SPENDING_SECONDS", 0.0)
    with GeminiServer() as server:
        journal = Journal(run=book, listener=Reader(), spent=Spending(judge_usd=1.0))
        run(server, monkeypatch, journal=journal, concurrency=1)
    assert noted == sorted(noted)
    assert noted[0] < noted[-1], "what a kill now would leave is told already"
    assert book.spending() == journal.spending()
    assert book.spending().judge_usd == pytest.approx(1 + (30 * 600 * 0.30 + 30 * 20 * 2.50) / 1e6)


OTHER = """
import asyncio, sys
from calibration.artifacts import Store
from calibration.judges.ledger import opened
from calibration.judges.provider import Usage

async def ask():
    async with opened(Store.from_environment().root) as ledger:
        print("held", flush=True)
        sys.stdin.readline()
        ledger.begin("k", "gemini", sys.argv[1], Usage(prompt=1000, output=100))

asyncio.run(ask())
"""


def test_what_another_process_asks_while_a_run_waits_for_its_turn_is_not_among_its_costs(monkeypatch):
    class Waiting(Listener):
        def progressed(self, stage, fraction, note):
            if f"waits for process {other.pid}" in note and not other.stdin.closed:
                other.stdin.close()

    Store.from_environment().root.mkdir(parents=True)
    command = [sys.executable, "-c", OTHER, Gemini().model]
    with GeminiServer() as server, subprocess.Popen(command, stdin=PIPE, stdout=PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        journal = Journal(listener=Waiting())
        run(server, monkeypatch, journal=journal)
        assert other.wait() == 0
    [here, total] = json.loads(artifacts("table")[-1].data)
    assert (here["requests"], here["requests of unknown cost"]) == (30, 0)
    assert (total["requests"], total["requests of unknown cost"]) == (31, 1)
    assert journal.spending().unpriced == 0


def artifacts(kind):
    """All artifacts of a kind that the server has, the oldest first."""

    async def read():
        async with get_client() as client:
            chosen = ArtifactFilter(type=ArtifactFilterType(any_=[kind]))
            return await every(client.read_artifacts, artifact_filter=chosen)

    return sorted(asyncio.run(read()), key=lambda artifact: (artifact.created, artifact.updated))


def test_the_ui_shows_how_far_judging_is_and_what_it_has_cost(monkeypatch):
    blocked = Say(block="SAFETY", latency=0.0)
    with GeminiServer(lambda seen: blocked if seen.case["question"] == "What is 7?" else None) as server:
        with pytest.raises(JudgeError):
            run(server, monkeypatch)
        note = artifacts("progress")[-1].description
        for said in ("judge small: 30 of 30", "0 kept", "/s", "window ", "1 unjudged", "$0.0", " of about $"):
            assert said in note
        [here, total] = json.loads(artifacts("table")[-1].data)
        asked = {"service": "gemini", "requests": 31, "tokens in": 31 * 600, "requests of unknown cost": 0}
        assert asked.items() <= here.items()
        assert here["dollars"] == pytest.approx((31 * 600 * 0.30 + 31 * 20 * 2.50) / 1e6)
        assert {**here, "in": "all runs"} == total
        run(server, monkeypatch, retry_unjudged=True, max_unjudged=1.0)
        [here, total] = json.loads(artifacts("table")[-1].data)
        assert (here["in"], here["requests"], total["requests"]) == ("this run", 2, 33)
        assert artifacts("table")[-1].key == "judging-costs"


def test_a_judge_that_asks_no_model_shows_no_costs(monkeypatch):
    before = len(artifacts("table"))
    with GeminiServer() as server:
        run(server, monkeypatch, judge=Exact())
    assert len(artifacts("table")) == before


def test_a_planted_key_is_in_no_file_log_artifact_or_state(monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    echo = f"the key {PLANTED} is bad"

    def plan(seen):
        if seen.number < 4:
            return error(503, "UNAVAILABLE", echo)
        if seen.number == 20:
            return error(403, "PERMISSION_DENIED", echo)
        return Say(text=json.dumps({"extracted": echo, "verdict": "CORRECT"}))

    with GeminiServer(plan) as server:
        with pytest.raises(JudgeError, match=r"the key \[key\] is bad") as caught:
            run(server, monkeypatch, key=PLANTED, concurrency=2, retry_seconds=0.01)
        run(server, monkeypatch, key=PLANTED)
    assert {seen.key for seen in server.seen} == {PLANTED}
    assert PLANTED not in "".join(traceback.format_exception(caught.value)) + caplog.text

    async def server_side():
        async with get_client() as client:
            return [
                await every(client.read_logs),
                await every(client.read_artifacts),
                await every(client.read_flow_runs),
                await every(client.read_task_runs),
            ]

    told = repr(asyncio.run(server_side()))
    assert "judging-costs" in told
    assert PLANTED not in told
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"judge.sqlite", "rows.parquet"} <= {path.name for path in files}
    assert any(b"[key] is bad" in content for content in files.values())
    assert [path for path, content in files.items() if PLANTED.encode() in content] == []


def test_an_outage_fails_the_stage_as_it_is_and_the_next_run_asks_the_rest(monkeypatch):
    with GeminiServer(lambda seen: error(403, "PERMISSION_DENIED") if seen.number > 10 else Say()) as server:
        with pytest.raises(JudgeError, match=r"403 PERMISSION_DENIED.*run it again"):
            run(server, monkeypatch, concurrency=2)
        server.plan = None
        verdicts, states, _ = run(server, monkeypatch)
        assert (len(verdicts), states) == (30, ["Completed"])
        assert server.count <= 32


def test_too_many_unjudged_fail_the_stage_and_cost_nothing_again(monkeypatch):
    with GeminiServer(
        lambda seen: Say(block="SAFETY") if seen.case["question"] == "What is 7?" else None
    ) as server:
        for _ in range(2):
            with pytest.raises(JudgeError, match=r"1 of 30 did, 1 of them: blocked: SAFETY"):
                run(server, monkeypatch)
        assert server.count == 31
