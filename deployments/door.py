"""A Prefect server, and what stands before it: who may talk to it, and how a person signs in.

    python -m deployments.door FD

Prefect's own server answers every web page that a browser has open beside it, and every name that leads to
it. This one answers

- requests for a name of this machine only, so that no foreign name can be made to lead here;
- pages of its own only: a request that a page of another origin makes is refused before Prefect sees it, and
  no other page may show this one in a frame;
- who knows the password, where there is one. `/sign-in#PASSWORD` gives it to the UI; what stands behind the
  `#` is sent to nobody.

The socket comes from the process that starts this one, and with it this one ends.
"""

import hmac
import os
import re
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SIGN_IN, PROOF = "/sign-in", "/proof"
NAMES = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::\d{1,5})?")
"""What a request may call this machine. A tunnel may come in at another port."""
NONCE = re.compile(r"[0-9a-f]{32}")
GRACE_SECONDS = 5

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Sign in</title></head>
<body><noscript>Signing in needs JavaScript, as the Prefect UI does.</noscript>
<script src="/sign-in.js"></script></body></html>
"""
SCRIPT = """const [password, place] = location.hash.slice(1).split("&");
if (/^[A-Za-z0-9+/=]+$/.test(password)) localStorage.setItem("prefect-password", password);
location.replace(/^\\/v2\\/[\\w/-]*$/.test(place) ? place : "/v2/dashboard");
"""
HEADERS = {
    b"x-frame-options": b"DENY",
    b"content-security-policy": b"frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}


class Door:
    """Lets requests in to an ASGI application."""

    def __init__(self, app: App, port: int, proof: bytes | None) -> None:
        """Stand before an application.

        Args:
            app: What answers those that are let in.
            port: Where it listens.
            proof: A secret of its owner, who can thereby tell it from a server of somebody else.
        """
        self._app, self._port, self._proof = app, port, proof
        self._origins = set(origins(port))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif refusal := self._refusal(dict(scope["headers"])):
            await _refuse(scope, send, *refusal)
        elif scope["type"] == "http" and scope["path"] in (SIGN_IN, f"{SIGN_IN}.js", PROOF):
            await _answer(send, 200, *self._own(scope))
        else:
            await self._app(scope, receive, _with_headers(send))

    def _refusal(self, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        """Status and words, where a request is not to be let in."""
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if not NAMES.fullmatch(host):
            return 421, f"this server is for {' and '.join(origins(self._port))}; the request is for another"
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower() not in {f"http://{host}", *self._origins}:
            return 403, "this server answers its own pages only; the request is from another one"
        return None

    def _own(self, scope: Scope) -> tuple[str, str]:
        """Body and kind of a page of this door."""
        if scope["path"] == SIGN_IN:
            return PAGE, "text/html"
        if scope["path"] != PROOF:
            return SCRIPT, "text/javascript"
        asked = parse_qs(scope["query_string"].decode("latin-1")).get("nonce", [""])[0]
        is_fit = self._proof is not None and NONCE.fullmatch(asked)
        return (proof_of(self._proof or b"", asked, self._port) if is_fit else "none"), "text/plain"


def origins(port: int) -> list[str]:
    """What a browser calls the pages of a server on this port."""
    return [f"http://{host}:{port}" for host in ("127.0.0.1", "localhost", "[::1]")]


def proof_of(secret: bytes, nonce: str, port: int) -> str:
    """What only who knows the secret can say of a nonce; good for one port."""
    return hmac.digest(secret, f"{nonce} {port}".encode(), "sha256").hex()


def _with_headers(send: Send) -> Send:
    """Tells browsers what no page may do with an answer."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *HEADERS.items()]}
        await send(message)

    return sending


async def _refuse(scope: Scope, send: Send, status: int, words: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": words})
    else:
        await _answer(send, status, words, "text/plain")


async def _answer(send: Send, status: int, text: str, kind: str) -> None:
    body = text.encode()
    headers = [(b"content-type", f"{kind}; charset=utf-8".encode()), (b"content-length", b"%d" % len(body))]
    policy = b"default-src 'none'; script-src 'self'; frame-ancestors 'none'"
    headers += [*(HEADERS | {b"content-security-policy": policy}).items(), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Serve on a socket that was inherited, until the process that gave it ends."""
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import PREFECT_HOME

    opened = socket.socket(fileno=int(sys.argv[1]))
    secret = Path(PREFECT_HOME.value()) / "proof"
    door = Door(
        create_app(final=True),
        opened.getsockname()[1],
        secret.read_bytes() if secret.is_file() else None,
    )
    server = uvicorn.Server(
        uvicorn.Config(door, log_level="warning", timeout_graceful_shutdown=GRACE_SECONDS, lifespan="on")
    )
    threading.Thread(target=_end_with_parent, args=(server,), daemon=True).start()
    server.run(sockets=[opened])


def _end_with_parent(server: Any) -> None:  # noqa: ANN401 - uvicorn's class, which is imported late
    """Wait for the other end of standard input to be closed, which the death of its process does too."""
    while os.read(0, 1):
        pass
    server.should_exit = True
    threading.Timer(2 * GRACE_SECONDS, os._exit, (1,)).start()


if __name__ == "__main__":
    main()
