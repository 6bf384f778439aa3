"""Where keys and questions go: to the endpoint that was named and confirmed, and nowhere else."""

import asyncio
from functools import partial

import pytest
from pydantic import ValidationError

from calibration.artifacts import Store
from calibration.endpoints import CONFIRMED, Endpoint, check_confirmed, remember_confirmed
from calibration.errors import ConfigurationError, JudgeError
from calibration.judges import Cascade, Gemini, GeminiBatch, Item, OpenAiCompatible
from calibration.judges.keys import OWNERS
from tests.judges.batch_server import BatchServer
from tests.judges.compatible_server import MODEL, CompatibleServer, Said
from tests.judges.gemini_server import GeminiServer, Say

PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "planted-aws-2f6c0e51",
    "GEMINI_API_KEY": "planted-gemini-2f6c0e51",
    "HF_TOKEN": "planted-hf-2f6c0e51",
    "MINE_API_KEY": "planted-mine-2f6c0e51",
    "OPENAI_API_KEY": "planted-openai-2f6c0e51",
    "OPENAI_CUSTOM_HEADERS": "Authorization: planted-headers-2f6c0e51\nX-Secret: planted-headers-2f6c0e51",
    "OPENAI_ORG_ID": "planted-org-2f6c0e51",
    "PREFECT_API_KEY": "planted-prefect-2f6c0e51",
}
QUICK = {"timeout_seconds": 5.0, "retry_seconds": 0.001}


@pytest.fixture
def planted(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)


def judge(by, progress=lambda f, n: None):
    item = Item(question_id="q", question="What?", golds=("gold",), answer="gold")
    return asyncio.run(by.judge([item], progress=progress))


def compatible(server, **settings):
    return OpenAiCompatible(**QUICK, model=MODEL, base_url=f"{server.url}/v1", **settings)


class Listening(CompatibleServer):
    """Keeps all headers of all requests."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.headers = []

    async def _handle(self, request):
        self.headers.append(str(request.raw_headers))
        return await super()._handle(request)


@pytest.mark.parametrize(
    ("variable", "sent"),
    [(None, set()), ("", set()), ("MINE_API_KEY", {"planted-mine-2f6c0e51"})],
)
def test_of_all_that_is_in_the_environment_only_the_named_key_is_sent(planted, variable, sent):
    with Listening() as server:
        judge(compatible(server, key_variable=variable))
    heard = "".join(server.headers)
    assert {value for value in PLANTED.values() if value in heard} == sent
    assert heard.count("2f6c0e51") == len(sent)
    stored = b"".join(p.read_bytes() for p in Store.from_environment().root.rglob("*") if p.is_file())
    assert b"2f6c0e51" not in stored


@pytest.mark.parametrize("name", sorted(set(OWNERS) | set(PLANTED) - {"MINE_API_KEY", "OPENAI_ORG_ID"}))
def test_no_variable_of_another_service_is_sent_to_a_server(planted, monkeypatch, name):
    monkeypatch.setenv(name, PLANTED.get(name, "planted-2f6c0e51"))
    with Listening() as server, pytest.raises((ConfigurationError, ValidationError)) as caught:
        judge(compatible(server, key_variable=name))
    assert name in str(caught.value)
    assert "2f6c0e51" not in str(caught.value)
    assert server.headers == []


@pytest.mark.parametrize("name", ["PATH", "mine_api_key", "HF_TOKEN", "X_API_KEY ", "API_KEY", "A B_API_KEY"])
def test_a_key_is_in_a_variable_whose_name_says_so(name):
    with pytest.raises(ValidationError, match="whose name ends in _API_KEY"):
        OpenAiCompatible(model="m", key_variable=name)


def test_the_key_of_a_service_is_for_its_own_hosts_and_those_below_them(planted, monkeypatch):
    judge_at = partial(OpenAiCompatible, model="m", key_variable="AZURE_OPENAI_API_KEY")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "x")
    judge_at(base_url="https://mine.openai.azure.com/v1").check([])
    for host in ("openai.azure.com.evil.example", "notopenai.azure.com", "evil.example"):
        with pytest.raises(ConfigurationError, match=r"AZURE_OPENAI_API_KEY is for openai\.azure\.com and"):
            judge_at(base_url=f"https://{host}/v1").check([])


def test_the_key_that_goes_with_the_address_in_the_environment_is_sent_there(planted, monkeypatch):
    with Listening() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        judge(OpenAiCompatible(**QUICK, model=MODEL))
    assert "planted-openai" in server.headers[0]
    assert server.headers[0].count("2f6c0e51") == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://judge.example/v1", r"must be https, or on this machine.*ssh -N -L 80:localhost:80 judge"),
        ("http://10.0.0.3:8000/v1", "must be https"),
        ("http://127.0.0.1.example/v1", "must be https"),
        (
            "https://me:secret@host/v1",
            r"must be .* without a password; got 'https://\[user and password\]@host/v1'",
        ),
        ("http://me:secret@host:99999/v1", "must be an address"),
        ("localhost:8000", "must be an http or https address"),
        ("ftp://host/v1", "must be an http or https address"),
        ("https:///v1", "must be an http or https address"),
        ("http://127.0.0.1:99999/v1", "must be an address; Port out of range"),
        ("http://127.0.0.1:0/v1", "must be an http or https address"),
        ("http://[::1/v1", "must be an address; Invalid IPv6"),
    ],
)
def test_an_address_to_which_nothing_should_go_is_refused_before_anything_is_sent(monkeypatch, url, words):
    with pytest.raises(ConfigurationError, match=words) as caught:
        OpenAiCompatible(model="m", base_url=url, key_variable="").check([])
    assert "judge.base_url" in str(caught.value)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
    with pytest.raises(ConfigurationError, match=f"GOOGLE_GEMINI_BASE_URL {words}"):
        Gemini().check([])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("kind", ["gemini", "gemini-batch", "openai"])
def test_no_redirect_is_followed_with_a_key_or_a_prompt(planted, monkeypatch, kind, status):
    elsewhere = Listening()
    with elsewhere, pytest.MonkeyPatch.context():
        away = {"Location": f"{elsewhere.url.replace('127.0.0.1', 'localhost')}/v1/chat/completions"}
        if kind == "openai":
            server = CompatibleServer(lambda seen: Said(status=status, raw=b"{}", headers=away))
        elif kind == "gemini":
            server = GeminiServer(lambda seen: Say(status=status, raw=b"{}", headers=away))
        else:
            server = BatchServer(create=lambda number: Say(status=status, raw=b"{}"))
        with server:
            monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
            if kind == "openai":
                (verdict,) = judge(compatible(server, key_variable="MINE_API_KEY"))
            elif kind == "gemini":
                (verdict,) = judge(Gemini(**QUICK))
            else:
                with pytest.raises(JudgeError, match=f"{status}: a redirect, which is not followed"):
                    judge(GeminiBatch(**QUICK, patience_seconds=0.05))
        assert elsewhere.headers == []
        if kind != "gemini-batch":
            assert (verdict.label, server.count) == ("unjudged", 6)
            assert verdict.reason == f"failed: {status}: a redirect, which is not followed"


def test_every_judge_names_its_endpoint_and_the_variable_of_its_key(planted, monkeypatch):
    mine = OpenAiCompatible(model="m", base_url="https://Host.example:8443/v1", key_variable="MINE_API_KEY")
    assert str(mine.endpoint) == (
        f"{mine.receives} go to https://host.example:8443, with the key in MINE_API_KEY"
    )
    assert mine.endpoint.setting == "judge.base_url"
    assert str(Gemini().endpoint).endswith(
        "go to https://generativelanguage.googleapis.com, with the key in GEMINI_API_KEY"
    )
    assert Gemini().endpoint.setting == ""
    assert GeminiBatch().endpoint == Cascade(model=Gemini()).model.endpoint == Gemini().endpoint
    local = OpenAiCompatible(model="m", base_url="http://localhost:8000/v1")
    assert (local.endpoint.address, local.endpoint.key) == ("http://localhost:8000", "")
    assert OpenAiCompatible(model="m").endpoint.setting == ""
    monkeypatch.setenv("OPENAI_BASE_URL", "https://mine.example/v1")
    assert OpenAiCompatible(model="m").endpoint == Endpoint(
        address="https://mine.example", receives=Gemini.receives, key="OPENAI_API_KEY"
    )


def end(address="https://a.example", key="", setting="judge.base_url"):
    return Endpoint(address=address, receives="questions", key=key, setting=setting)


def test_an_endpoint_of_a_setting_is_confirmed_once_with_its_key(tmp_path):
    store = Store(tmp_path / "store")
    store.check_writable()
    check_confirmed([end(setting=""), end("https://other.example", setting="")], [], store)
    with pytest.raises(
        ConfigurationError, match=r"judge\.base_url must be .*--confirm-endpoint https://a\.ex"
    ):
        check_confirmed([end()], ["https://other.example"], store)
    check_confirmed([end()], ["https://A.example/v1/anything"], store)
    remember_confirmed([end(), end("https://other.example", setting="")], store)
    check_confirmed([end()], [], store)
    assert (store.root / CONFIRMED).stat().st_mode & 0o777 == 0o600
    # Who has agreed to questions has not agreed to a key.
    with pytest.raises(
        ConfigurationError, match=r"questions go to https://a\.example, with the key in MINE_API"
    ):
        check_confirmed([end(key="MINE_API_KEY")], [], store)
    for other in ("https://a.example:8443", "http://a.example", "https://b.a.example"):
        with pytest.raises(ConfigurationError):
            check_confirmed([end(other)], [], store)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": "b"}', "[[1, 2]]"])
def test_a_damaged_list_of_consent_is_none(tmp_path, content):
    store = Store(tmp_path)
    (tmp_path / CONFIRMED).write_text(content)
    with pytest.raises(ConfigurationError, match="confirmed here"):
        check_confirmed([end()], [], store)
    remember_confirmed([end()], store)
    check_confirmed([end()], [], store)
