"""Who is let in to a Prefect server of ours, and who is not."""

import asyncio
import base64
import http.server
import json
import threading

import pytest

from calibration.errors import ConfigurationError
from deployments.door import Door, proof_of
from deployments.server import (
    PASSWORD,
    SECRET,
    Server,
    is_ours,
    known_password,
    lasting,
    look_at,
    temporary,
)

INSIDE = b"inside"


async def inside(scope, receive, send):
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": INSIDE})


def ask(path="/api/x", *, kind="http", method="GET", query="", **headers):
    """What the door answers: the status (or the close code), the headers and the body."""
    said = []

    async def send(message):
        said.append(message)

    scope = {
        "type": kind,
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(Door(inside, 4200, b"secret")(scope, None, send))
    body = b"".join(message.get("body", b"") for message in said)
    return said[0].get("status", said[0]), dict(said[0].get("headers", ())), body


OWN = ["127.0.0.1:4200", "localhost:4200", "[::1]:4200", "LOCALHOST:4200", "localhost", "localhost:8080"]


@pytest.mark.parametrize("host", OWN)
def test_a_request_for_this_machine_is_let_in(host):
    assert ask(host=host)[::2] == (200, INSIDE)


FOREIGN = ["evil.example", "evil.example:4200", "127.0.0.1.evil.example", "localhost.evil.example:4200", ""]
FOREIGN += ["127.0.0.1:4200@evil.example", "127.0.0.2:4200", "0.0.0.0:4200", "localhost:4200\n", "10.0.0.1"]


@pytest.mark.parametrize("host", FOREIGN)
def test_a_request_for_another_name_is_refused_whatever_leads_here(host):
    status, _, body = ask(host=host)
    assert (status, INSIDE in body) == (421, False)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://127.0.0.1:4200", "127.0.0.1:4200"),
        ("http://localhost:4200", "127.0.0.1:4200"),
        ("http://localhost:8080", "localhost:8080"),  # through a tunnel
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_page_of_its_own_is_let_in(origin, host, kind):
    assert ask(kind=kind, method="PATCH", origin=origin, host=host)[0] in (200, {"type": "websocket.accept"})


PAGES = ["http://evil.example", "https://127.0.0.1:4200", "http://127.0.0.1:4201", "http://localhost", "null"]
PAGES += ["http://127.0.0.1:4200.evil.example", "http://evil.example/http://127.0.0.1:4200", "file://", ""]


@pytest.mark.parametrize("origin", PAGES)
@pytest.mark.parametrize("method", ["OPTIONS", "GET", "POST", "PATCH", "DELETE"])
def test_a_page_of_another_origin_is_refused_and_told_nothing(origin, method):
    status, headers, body = ask(method=method, origin=origin, host="127.0.0.1:4200")
    assert (status, INSIDE in body) == (403, False)
    assert not [name for name in headers if name.startswith(b"access-control")]


@pytest.mark.parametrize("headers", [{"origin": "http://evil.example"}, {"host": "evil.example"}])
def test_a_socket_that_another_page_opens_is_closed(headers):
    assert ask(kind="websocket", **({"host": "localhost:4200"} | headers))[0]["code"] == 1008


def test_no_other_page_may_show_or_embed_an_answer():
    _, headers, _ = ask(host="localhost:4200")
    assert headers[b"x-frame-options"] == b"DENY"
    assert headers[b"content-security-policy"] == b"frame-ancestors 'none'"
    assert headers[b"cross-origin-resource-policy"] == b"same-origin"


def test_the_page_that_signs_in_runs_its_own_script_only_and_holds_no_password():
    status, headers, body = ask("/sign-in", host="localhost:4200")
    assert (status, b"<script src=" in body, INSIDE in body) == (200, True, False)
    assert headers[b"content-security-policy"].startswith(b"default-src 'none'; script-src 'self'")
    assert b"location.hash" in ask("/sign-in.js", host="localhost:4200")[2]


NONCE = "0123456789abcdef" * 2


@pytest.mark.parametrize("nonce", ["", "x", NONCE.upper(), NONCE[:-1], NONCE + "0", NONCE + "%0a"])
def test_a_proof_is_of_a_whole_nonce_only(nonce):
    assert ask("/proof", host="localhost:4200", query=f"nonce={nonce}")[2] == b"none"


def test_a_proof_is_for_one_port_and_one_secret():
    said = ask("/proof", host="localhost:4200", query=f"nonce={NONCE}")[2].decode()
    assert said == proof_of(b"secret", NONCE, 4200)
    assert said not in (proof_of(b"secret", NONCE, 4201), proof_of(b"other", NONCE, 4200))


def test_a_link_signs_in_where_there_is_a_password():
    url = "http://127.0.0.1:4200/api"
    assert Server(url, "").link("/v2/x") == "http://127.0.0.1:4200/v2/x"
    key = base64.b64encode(b"slm:p").decode()
    assert Server(url, "slm:p").link() == f"http://127.0.0.1:4200/sign-in#{key}"
    assert Server(url, "slm:p").link("/v2/x").endswith(f"#{key}&/v2/x")


class Answering(http.server.BaseHTTPRequestHandler):
    """Says what the test wants, and remembers what it was told."""

    def do_GET(self):
        self.server.heard.append((self.path, self.headers.get("Authorization")))
        status, body, headers = self.server.say(self.path)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@pytest.fixture
def answering():
    """A server that answers by a function of the path; its address and what it has heard."""
    started = []

    def start(say):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        server.say, server.heard = say, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return f"http://127.0.0.1:{server.server_port}/api", server.heard

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def version(text, status=200):
    def say(path):
        body = b"true" if path.endswith("/health") else json.dumps(text).encode()
        return (status if path.endswith("/version") else 200), body, {}

    return say


@pytest.mark.parametrize("found", ["3.7.0", "3.9.1", "3.8.8", "3.0.0rc1"])
def test_a_server_of_another_minor_version_is_used(answering, found):
    url, _ = answering(version(found))
    assert look_at(url, "") == found


@pytest.mark.parametrize(
    ("say", "words"),
    [
        (
            version("2.20.3"),
            r"must be of version 3, as .* here \(3\.\S+\); it is of version 2\.20\.3",
        ),
        (version("4.0.0"), "it is of version 4"),
        (version(5), "is something else"),
        (version("hello"), "is something else"),
        (version("3.8.8", status=500), "is not well"),
        (version("x", status=401), "PREFECT_API_AUTH_STRING must be what the server at"),
        (lambda path: (200, b"<html>", {}), "is something else"),
        (lambda path: (302, b"", {"Location": "http://evil.example"}), "is something else"),
    ],
    ids=["2", "4", "a number", "a word", "ill", "refused", "html", "a redirect"],
)
def test_what_is_no_server_of_ours_is_one_sentence(answering, say, words):
    url, _ = answering(say)
    with pytest.raises(ConfigurationError, match=words) as caught:
        look_at(url, "me:secret")
    assert "secret" not in str(caught.value)
    assert url in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", "http://nowhere.invalid/api", "junk", "http://"])
def test_where_nothing_answers_is_one_sentence(url):
    with pytest.raises(ConfigurationError, match="PREFECT_API_URL must be the address of a running Prefect"):
        look_at(url, "")


def test_a_password_follows_no_redirect(answering):
    elsewhere, heard = answering(version("3.8.8"))
    url, _ = answering(lambda path: (307, b"", {"Location": elsewhere + path.removeprefix("/api")}))
    with pytest.raises(ConfigurationError):
        look_at(url, "me:secret")
    assert heard == []


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_server_of_another_user_who_was_first_on_the_port_is_not_told_the_password(home, answering):
    home.mkdir()
    (home / PASSWORD).write_text("slm:secret")
    (home / SECRET).write_text("proof")
    url, heard = answering(lambda path: (200, b"0" * 64, {}))
    assert not is_ours(url)
    assert known_password(url) == ""
    with (
        pytest.raises(ConfigurationError, match=r"must be free, or have the server of .*home; something"),
        lasting(int(url.split(":")[2].removesuffix("/api")), is_open=False),
    ):
        pass
    assert {key for _, key in heard} == {None}


@pytest.mark.parametrize("url", ["https://prefect.example/api", "http://10.0.0.2:4200/api"])
def test_the_password_that_is_kept_is_for_this_machine_only(home, url):
    home.mkdir()
    (home / PASSWORD).write_text("slm:secret")
    (home / SECRET).write_text("proof")
    assert known_password(url) == ""


def test_a_temporary_server_lets_nobody_in_who_does_not_know_its_password_and_ends(tmp_path):
    with temporary(tmp_path / "home") as server:
        assert look_at(server.url, server.password)
        with pytest.raises(ConfigurationError, match="it refuses to be asked without one"):
            look_at(server.url, "")
        assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    with pytest.raises(ConfigurationError, match="does not answer"):
        look_at(server.url, server.password)
