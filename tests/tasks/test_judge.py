"""The judge as a stage: cached, told from outside how far it is, and honest when it fails."""

import asyncio

import pytest
from prefect import flow
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from calibration.artifacts import Store
from calibration.errors import JudgeError
from calibration.judges import Gemini
from calibration.records import Generation, Question, Verdict
from tasks.journal import Journal, keeping
from tasks.judge import judge
from tests.judges.gemini_server import GeminiServer, Say, error


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
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "store" / "cache"}):
        yield


def run(server, monkeypatch, **settings):
    """Judge thirty answers in a flow; return the verdicts, the states of the stage and what was heard."""
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
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
        return await judge(*inputs, Gemini(**settings), 0.01, "small")

    listener = Listener()
    with keeping(Journal(listener=listener)) as journal:
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
