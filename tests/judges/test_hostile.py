"""Whatever a service sends: no label is turned to incorrect, no call is unaccounted for, there is an end.

The replies are generated, and each goes to one answer for as often as it is asked. The others are answered as
they should be.
"""

import asyncio
import itertools
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibration.errors import JudgeError
from calibration.judges import Gemini, GeminiBatch, Item, OpenAiCompatible
from tests.judges import compatible_server, gemini_server
from tests.judges.batch_server import BatchServer
from tests.judges.compatible_server import CompatibleServer, Said
from tests.judges.gemini_server import GeminiServer, Say, tokens
from tests.judges.hostile import Odd, odd_bodies, odd_replies

GOOD, ODD, ROUNDS = 6, 10, 12
QUICK = {"timeout_seconds": 5.0, "retry_seconds": 0.001, "patience_seconds": 0.3}
SAID = json.dumps({"extracted": "gold", "verdict": "CORRECT"})
OF_GEMINI = {
    "candidates": [{"content": {"parts": [{"text": SAID}], "role": "model"}, "finishReason": "STOP"}],
    "usageMetadata": tokens(),
    "modelVersion": gemini_server.MODEL,
    "responseId": "r",
}
OF_COMPATIBLE = {
    "id": "c",
    "model": compatible_server.MODEL,
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": SAID}}],
    "usage": {
        "prompt_tokens": 600,
        "completion_tokens": 20,
        "total_tokens": 620,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 3},
    },
}
JUDGES = {
    "gemini": (GeminiServer, Say, OF_GEMINI, lambda url: Gemini(**QUICK)),
    "gemini-batch": (BatchServer, Say, OF_GEMINI, lambda url: GeminiBatch(**QUICK, poll_seconds=0.001)),
    "openai": (
        CompatibleServer,
        Said,
        OF_COMPATIBLE,
        lambda url: OpenAiCompatible(**QUICK, model=compatible_server.MODEL, base_url=f"{url}/v1"),
    ),
}
_example = itertools.count()


def strategy(kind):
    """What to answer of each odd case."""
    right = JUDGES[kind][2]
    if kind != "gemini-batch":
        return st.lists(odd_replies(right), min_size=ODD, max_size=ODD)
    # A reply in a job is a part of the answer that tells of the job: JSON, or an error with a code.
    whole = odd_bodies(right).map(lambda body: Odd(json.dumps(body).encode()))
    errors = st.builds(Odd, st.just(b""), st.integers(-5, 600).filter(lambda code: code != 200))
    return st.lists(st.one_of(whole, whole, errors), min_size=ODD, max_size=ODD)


def judged(judge, items):
    """The verdicts, after as many rounds as it takes, and how many those were."""
    for rounds in range(1, ROUNDS + 1):
        try:
            return asyncio.run(judge.judge(items, progress=lambda f, n: None)), rounds
        except JudgeError as error:
            last = error
    raise last


def check(kind, odd, ledger, monkeypatch, tmp_path):
    server_of, say, _, judge_of = JUDGES[kind]
    batch = next(_example)
    items = [
        Item(question_id=f"q{n}", question=f"{kind} {batch} {n}?", golds=("gold",), answer="gold")
        for n in range(GOOD + ODD)
    ]
    places = {
        f"{kind} {batch} {GOOD + n}?": say(status=reply.status, raw=reply.body, headers=reply.headers)
        for n, reply in enumerate(odd)
    }
    monkeypatch.setenv("SLM_CALIBRATION_STORE", str(tmp_path / f"store-{batch}"))
    with server_of(lambda seen: places.get(seen.case["question"])) as server:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
        verdicts, rounds = judged(judge_of(server.url), items)
        outcomes = ledger().outcomes()
    assert [verdict.label for verdict in verdicts[:GOOD]] == ["correct"] * GOOD
    assert {verdict.label for verdict in verdicts} <= {"correct", "unjudged"}
    assert all(verdict.reason for verdict in verdicts if verdict.label == "unjudged")
    # Every call that the server has seen is one in the ledger, and none is left open.
    assert sum(outcomes.values()) == server.count
    assert not [key for key in outcomes if key[2] is None]
    # A second look asks again only what has no verdict that was paid for.
    assert rounds <= ODD + 1


@pytest.mark.parametrize("kind", JUDGES)
def test_whatever_a_service_sends_no_label_is_wrong_no_call_is_lost_and_there_is_an_end(
    kind, ledger, monkeypatch, tmp_path
):
    @settings(max_examples=5, suppress_health_check=list(HealthCheck))
    @given(strategy(kind))
    def run(odd):
        check(kind, odd, ledger, monkeypatch, tmp_path)

    run()


@pytest.mark.slow
@pytest.mark.parametrize("kind", JUDGES)
def test_five_hundred_replies_of_any_kind(kind, ledger, monkeypatch, tmp_path):
    @settings(max_examples=50, suppress_health_check=list(HealthCheck))
    @given(strategy(kind))
    def run(odd):
        check(kind, odd, ledger, monkeypatch, tmp_path)

    run()
