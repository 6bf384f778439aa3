"""What the OpenAI-compatible judge makes of everything a server can do, counted on the server's side."""

import asyncio
import json
import logging
import pickle
import traceback

import pytest

from calibration.artifacts import Store
from calibration.errors import ConfigurationError, JudgeError
from calibration.judges import Gemini, Item, OpenAiCompatible
from calibration.judges.compatible import CompatibleWire
from calibration.judges.provider import Usage
from calibration.judges.replies import SCHEMA
from tests.judges.compatible_server import MODEL, CompatibleServer, Said, error

KEY = "sk-planted-4c1b77"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MINE_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai-planted")


@pytest.fixture
def serve():
    running = []

    def start(plan=None, **settings):
        running.append(CompatibleServer(plan, **settings).__enter__())
        return running[-1]

    yield start
    for server in running:
        server.__exit__()


def judge(server, items, **settings):
    quick = {"model": MODEL, "base_url": f"{server.url}/v1", "timeout_seconds": 5.0, "retry_seconds": 0.01}
    quick["key_variable"] = "MINE_API_KEY"
    return asyncio.run(OpenAiCompatible(**(quick | settings)).judge(items, progress=lambda f, n: None))


def item(answer="gold", key="q"):
    return Item(question_id=key, question="What?", golds=("gold",), answer=answer)


def first(*faults):
    return lambda seen: faults[seen.time - 1] if seen.time <= len(faults) else None


def always(fault):
    return lambda seen: fault


def labels(verdicts):
    return [verdict.label for verdict in verdicts]


def stored():
    return b"".join(path.read_bytes() for path in Store.from_environment().root.rglob("*") if path.is_file())


def test_a_verdict_names_judge_and_model_and_the_request_is_as_documented(serve):
    server = serve()
    verdicts = judge(server, [item(), item("other", "r"), item("dunno", "s")], service="mine")
    assert labels(verdicts) == ["correct", "incorrect", "not_attempted"]
    assert verdicts[0].judge == f"mine:{MODEL}:simpleqa@1"
    assert (verdicts[0].model_version, verdicts[0].extracted) == (MODEL, "gold")
    body = dict(server.seen[0].body)
    assert [message["role"] for message in body.pop("messages")] == ["user"]
    form = {"name": "verdict", "strict": True, "schema": SCHEMA}
    assert body == {
        "model": MODEL,
        "temperature": 0.0,
        "max_completion_tokens": 256,
        "response_format": {"type": "json_schema", "json_schema": form},
    }
    assert server.seen[0].key == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({"reply_format": "json_object"}, {"response_format": {"type": "json_object"}}),
        ({"reply_format": "none"}, {"response_format": None}),
        ({"temperature": "default"}, {"temperature": None}),
        ({"thinking": "low"}, {"reasoning_effort": "low"}),
        ({"limit_name": "max_tokens"}, {"max_tokens": 256, "max_completion_tokens": None}),
    ],
)
def test_what_a_server_lacks_can_be_left_out(serve, settings, sent):
    server = serve()
    assert labels(judge(server, [item()], **settings)) == ["correct"]
    assert {name: server.seen[0].body.get(name) for name in sent} == sent


def test_a_second_run_asks_nothing_and_another_service_or_setting_does(serve):
    server = serve()
    base = judge(server, [item()])
    assert judge(server, [item()], timeout_seconds=9.0, limit_name="max_tokens") == base
    assert server.count == 1
    for settings in ({"service": "other"}, {"reply_format": "none"}, {"temperature": 0.5}):
        judge(server, [item()], **settings)
    assert server.count == 4


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(error(503), id="503"),
        pytest.param(error(500), id="500"),
        pytest.param(error(408), id="408"),
        pytest.param(Said(status=502, raw=b"<html>", content_type="text/html"), id="502 html"),
        pytest.param(Said(status=502, raw=b"Bad Gateway"), id="502 text that says it is json"),
        pytest.param(Said(status=503, raw=b""), id="503 empty"),
        pytest.param(Said(raw=b"{}"), id="200 {}"),
        pytest.param(Said(raw=b""), id="200 empty"),
        pytest.param(Said(raw=b"[]"), id="200 list"),
        pytest.param(Said(raw=b'{"error": {"code": 500}}'), id="200 error"),
        pytest.param(Said(raw=b'{"choices": []}'), id="200 no choices"),
        pytest.param(Said(raw=b'{"choices": [{"mess'), id="200 malformed"),
        pytest.param(Said(raw='{"caf\u00e9"'.encode("latin-1")), id="200 latin-1"),
        pytest.param(Said(finish="error"), id="finish error"),
        pytest.param(Said(wire="reset"), id="reset before the reply"),
        pytest.param(Said(wire="torn"), id="reset in the reply"),
    ],
)
def test_an_outage_is_asked_again_and_never_a_label(serve, ledger, fault):
    server = serve(first(fault, fault))
    assert labels(judge(server, [item()])) == ["correct"]
    # The client sends nothing on its own: what the server saw is what the ledger says.
    assert server.count == 3 == sum(ledger().outcomes().values())


@pytest.mark.parametrize("wire", ["stall", "drip"])
def test_a_reply_that_does_not_come_is_not_waited_for(serve, wire):
    server = serve(first(Said(wire=wire)))
    assert labels(judge(server, [item()], timeout_seconds=0.5)) == ["correct"]
    assert server.count == 2


@pytest.mark.parametrize("status", [429, 503])
def test_nobody_sends_while_the_server_wants_to_be_left_alone(serve, items, status):
    fault = error(status, headers={"Retry-After": "0.6"})
    server = serve(lambda seen: fault if seen.number == 8 else None)
    assert len(judge(server, items(60), concurrency=8)) == 60
    later = [seen.at - server.seen[7].at for seen in server.seen if seen.at - server.seen[7].at > 0.2]
    assert min(later) > 0.58
    assert server.count == 61


@pytest.mark.parametrize(
    "fault",
    [
        error(401, "invalid_api_key", f"Incorrect API key provided: {KEY}"),
        error(403, None, KEY),
        error(404, "model_not_found", f"no such model for {KEY}"),
        error(402, None, f"no credits for {KEY}"),
        error(429, "insufficient_quota", f"You exceeded your current quota {KEY}"),
    ],
)
def test_what_no_request_will_survive_stops_at_once_and_shows_no_key(serve, items, caplog, fault):
    caplog.set_level(logging.DEBUG)
    server = serve(always(fault))
    with pytest.raises(JudgeError, match=r"must accept requests.*\[key\]") as caught:
        judge(server, items(500))
    assert server.count <= 20
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert KEY not in shown
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - our own bytes
    assert KEY.encode() not in stored() != b""


def test_a_reply_that_echoes_the_key_is_kept_without_it(serve):
    server = serve(always(Said(text=json.dumps({"extracted": KEY, "verdict": "CORRECT"}))))
    (verdict,) = judge(server, [item()])
    assert verdict.extracted == "[key]"
    assert KEY.encode() not in stored()


@pytest.mark.parametrize(
    "fault",
    [
        error(400, "context_length_exceeded"),
        error(422),
        error(400, "content_filter"),
        error(403, None, "Your chosen model requires moderation and your input was flagged"),
    ],
)
def test_a_text_that_is_never_accepted_is_unjudged_and_the_others_go_on(serve, items, fault):
    server = serve(lambda seen: fault if seen.case["answer"] == "gold 7" else None)
    verdicts = judge(server, items(40))
    assert [verdict.question_id for verdict in verdicts if verdict.label == "unjudged"] == ["q7"]
    assert server.count == 40


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Said(finish="content_filter", text=""), "blocked: content_filter"),
        (Said(message={"content": None, "refusal": "I cannot help"}), "blocked: refusal"),
    ],
)
def test_a_blocked_reply_is_asked_once_more_and_then_unjudged(serve, fault, reason):
    server = serve(always(fault))
    (verdict,) = judge(server, [item()])
    assert (verdict.label, verdict.reason, server.count) == ("unjudged", reason, 2)
    assert judge(server, [item()]) == [verdict]
    assert server.count == 2


def test_a_reply_that_was_cut_off_gets_four_times_the_room_once(serve):
    server = serve(first(Said(finish="length", text="<think>Well")))
    assert labels(judge(server, [item()])) == ["correct"]
    assert [seen.body["max_completion_tokens"] for seen in server.seen] == [256, 1024]


WHOLE = '{"extracted": "gold", "verdict": "CORRECT"}'


@pytest.mark.parametrize(
    ("say", "label"),
    [
        (Said(text=WHOLE, finish=None), "correct"),
        (Said(text=f"```json\n{WHOLE}\n```"), "correct"),
        (Said(text=f'<think>{{"verdict": "INCORRECT"}}</think>\n{WHOLE}'), "correct"),
        (Said(message={"content": [{"type": "text", "text": WHOLE[:9]}, {"text": WHOLE[9:]}]}), "correct"),
        (Said(text=WHOLE, message={"reasoning_content": "INCORRECT"}), "correct"),
        (Said(text="CORRECT"), "unjudged"),
        (Said(text="A"), "unjudged"),
        (Said(text=f"Sure! {WHOLE}"), "unjudged"),
        (Said(message={"content": None}), "unjudged"),
    ],
)
def test_a_label_is_read_letter_by_letter_or_not_at_all(serve, say, label):
    server = serve(always(say))
    assert labels(judge(server, [item()])) == [label]
    assert server.count == (1 if label == "correct" else 3)


def usage(**counts):
    body = {"choices": [{"message": {"content": "x"}}], "usage": counts}
    return CompatibleWire("http://localhost/v1", "", {}, "max_tokens", (), MODEL).read(json.dumps(body)).usage


@pytest.mark.parametrize("half", ["\ud800", r"\ud800"], ids=["in the whole reply", "in what was read"])
def test_half_a_character_in_a_reply_costs_no_verdict_and_is_paid_once(serve, half):
    server = serve(lambda seen: Said(text=f'{{"extracted": "gold{half}", "verdict": "CORRECT"}}'))
    verdicts = judge(server, [item()])
    assert [(verdict.label, verdict.extracted) for verdict in verdicts] == [("correct", "gold?")]
    assert judge(server, [item()]) == verdicts
    assert server.count == 1


def test_thoughts_are_paid_once_whether_counted_in_the_completion_or_beside_it():
    thoughts = {"completion_tokens_details": {"reasoning_tokens": 30}, "prompt_tokens": 100}
    cached = {"prompt_tokens_details": {"cached_tokens": 64}}
    within = usage(**thoughts, **cached, completion_tokens=50, total_tokens=150)
    assert within == Usage(prompt=100, cached=64, output=20, thoughts=30)
    beside = usage(**thoughts, completion_tokens=20, total_tokens=150, prompt_tokens_details=None)
    assert beside == Usage(prompt=100, output=20, thoughts=30)


def test_tokens_that_nobody_told_are_unknown_and_not_nothing(serve, ledger):
    server = serve(always(Said(usage=None)))
    judge(server, [item()], service="mine")
    spent = ledger().spent("mine", MODEL)
    assert (spent.used, spent.unknown, spent.at_most.output) == (Usage(), 1, 256)


def test_with_prices_no_dollar_beyond_the_limit_is_spent(serve, items):
    server = serve()
    facts = {MODEL: {"as_of": "2026-11-01", "source": "bill", "input_usd": 1.0, "output_usd": 2.0}}
    with pytest.raises(ConfigurationError, match="max_usd must have prices"):
        judge(server, items(5), max_usd=0.05)
    with pytest.raises(JudgeError, match=r"max_usd = 0\.05"):
        judge(server, items(500), max_usd=0.05, facts=facts)
    each = (600 * 1.0 + 20 * 2.0) / 1e6
    assert 0.05 - 0.008 < server.count * each <= 0.05


def test_another_model_in_its_place_stops_the_run_unless_the_name_is_known(serve, items):
    server = serve(always(Said(model="models/judge.gguf")))
    with pytest.raises(JudgeError, match=r"another model answered in its place \(models/judge\.gguf\)"):
        judge(server, items(100))
    assert server.count <= 20
    verdicts = judge(server, items(4), served_as=["models/judge.gguf"])
    assert {verdict.model_version for verdict in verdicts} == {MODEL}
    server.plan = always(Said(model=f"{MODEL}-2026-08-01"))
    assert judge(server, [item()])[0].model_version == f"{MODEL}-2026-08-01"
    server.plan = always(Said(model=None))
    assert judge(server, [item("other")])[0].model_version is None


def test_a_server_on_this_machine_needs_no_key_and_is_asked_past_any_proxy(serve, monkeypatch):
    server = serve()
    monkeypatch.delenv("OPENAI_API_KEY")
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert labels(judge(server, [item()])) == ["correct"]


def test_the_key_comes_from_the_variable_that_is_named(serve, monkeypatch):
    server = serve()
    monkeypatch.setenv("ROUTER_API_KEY", "from-another-variable")
    judge(server, [item()], key_variable="ROUTER_API_KEY")
    judge(server, [item("other")], key_variable="")
    judge(server, [item("third")], key_variable=None)
    assert [seen.key for seen in server.seen] == ["Bearer from-another-variable", *["Bearer none"] * 2]


def test_a_missing_key_and_an_odd_thinking_are_known_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigurationError, match=r"key for api\.openai\.com; OPENAI_API_KEY is not set"):
        OpenAiCompatible(model="m").check([])
    with pytest.raises(ConfigurationError, match=r"key for judge\.org; none is named"):
        OpenAiCompatible(model="m", base_url="https://judge.org/v1").check([])
    OpenAiCompatible(model="m", key_variable="", base_url="https://judge.org/v1").check([])
    with pytest.raises(ConfigurationError, match="must be a level"):
        OpenAiCompatible(model="m", thinking="512").check([])


def test_a_server_that_is_not_there_stops_the_run(items):
    nowhere = OpenAiCompatible(model=MODEL, base_url="http://127.0.0.1:9/v1", retry_seconds=0.01)
    with pytest.raises(JudgeError, match=r"requests in a row failed \(no connection"):
        asyncio.run(nowhere.judge(items(1000), progress=lambda f, n: None))


def test_how_it_runs_is_no_part_of_what_it_is_and_services_stay_apart(monkeypatch):
    plain = OpenAiCompatible(model="m", base_url="http://localhost:1/v1")
    assert (
        plain.identity()
        == OpenAiCompatible(
            **(
                plain.model_dump()
                | {"concurrency": 3, "max_usd": 1.0, "key_variable": "", "served_as": ["x"]}
            )
        ).identity()
    )
    others = [
        OpenAiCompatible(model="m"),
        OpenAiCompatible(model="m", base_url="http://localhost:2/v1"),
        OpenAiCompatible(model="m", base_url="http://localhost:1/v1", temperature="default"),
        Gemini(model="m"),
    ]
    identities = [json.dumps(judge.identity(), sort_keys=True) for judge in [plain, *others]]
    assert len(set(identities)) == 5
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    assert OpenAiCompatible(model="m").identity() == plain.identity()


def test_a_hostile_server_costs_no_verdict(serve, items):
    def plan(seen):
        faults = {
            0: error(503),
            1: Said(wire="reset"),
            2: Said(raw=b"{"),
            3: Said(wire="torn"),
            4: Said(finish="length", text=""),
            5: Said(finish="content_filter", text=""),
            6: error(429, headers={"Retry-After": "0.01"}),
            7: Said(text="CORRECT"),
        }
        return faults.get(int(seen.case["question"].split()[-1][:-1]) % 60) if seen.time == 1 else None

    server = serve(plan)
    verdicts = judge(server, items(300), concurrency=40)
    assert labels(verdicts) == ["correct" if n % 2 else "incorrect" for n in range(300)]
    assert server.count == 340
