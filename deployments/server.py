"""A Prefect server of our own on this machine, spoken to by its owner alone; and a look at any other."""

import base64
import hmac
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from calibration.endpoints import is_local
from calibration.errors import ConfigurationError
from deployments.door import PROOF, SIGN_IN, origins, proof_of

HOST, PORT = "127.0.0.1", 4200
START_SECONDS, STOP_SECONDS = 180.0, 15.0
"""How long a server may take to start; on a busy machine an empty database takes half a minute."""
LOOK_SECONDS = 5.0
LOG, PASSWORD, SECRET = "server.log", "password", "proof"
CLIENT, SERVER = "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"
TEMPORARY = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
"""How Prefect makes a server that shows nothing and has no schedules."""


class Server(NamedTuple):
    """A server that answers, and what opens it."""

    url: str
    """Of its API."""
    password: str
    """Empty where it asks for none."""

    @property
    def address(self) -> str:
        """Of its pages."""
        return self.url.removesuffix("/api")

    def link(self, place: str = "") -> str:
        """The address of a page, which signs in a person who follows it."""
        if not self.password:
            return f"{self.address}{place}"
        key = base64.b64encode(self.password.encode()).decode()
        return f"{self.address}{SIGN_IN}#{key}{f'&{place}' if place else ''}"


def home() -> Path:
    """Prefect's folder, with its database, our password and the server's messages; for its owner only."""
    folder = Path(os.environ.setdefault("PREFECT_HOME", str(Path(".prefect").absolute())))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@contextmanager
def lasting(port: int, *, is_open: bool) -> Iterator[Server]:
    """The server of this folder on a port: the one that is there, which stays, or one while the body runs.

    Args:
        port: Where it listens.
        is_open: Whether it asks for no password.

    Raises:
        ConfigurationError: Something else is there, or the server does not start.
    """
    url, place = f"http://{HOST}:{port}/api", home()
    password = os.environ.get(SERVER) or ("" if is_open else _kept(place / PASSWORD, prefix="slm:"))
    _kept(place / SECRET)
    opened = _opened(port)
    if opened is None:
        if not is_ours(url):
            raise ConfigurationError(
                f"{HOST}:{port} must be free, or have the server of {place}; something else answers there. "
                "Take another port: slm-calibration ui --port 4201. For a server that you trust, set "
                f"PREFECT_API_URL={url}"
            )
        look_at(url, password)
        yield Server(url, password)
        return
    print(f"Starting a Prefect server on port {port}; its messages: {place / LOG}", file=sys.stderr)
    with _started(opened, url, password, {}, place / LOG):
        yield Server(url, password)


@contextmanager
def temporary(folder: Path) -> Iterator[Server]:
    """A server for this process alone, with a password that nobody else hears of.

    Args:
        folder: Prefect's, with its database.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    opened = _opened(0)
    if opened is None:
        raise ConfigurationError(f"a port of {HOST} must be free for a Prefect server; none is")
    url, password = f"http://{HOST}:{opened.getsockname()[1]}/api", secrets.token_urlsafe(32)
    more = TEMPORARY | {"PREFECT_HOME": str(folder)}
    with _started(opened, url, password, more, folder / LOG):
        yield Server(url, password)


def look_at(url: str, password: str) -> str:
    """The version of the Prefect server at an address that a person has named.

    Raises:
        ConfigurationError: None answers, it refuses the password, or it is of another major version.
    """
    from importlib.metadata import version

    who = f"PREFECT_API_URL must be the address of a running Prefect server; {url}"
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ConfigurationError(f"{who} is no address. Set it to one, such as http://{HOST}:{PORT}/api")
    remedy = "Start it, or unset the variable to have a server on this machine"
    try:
        health, _ = _get(f"{url}/health", "")
        status, body = _get(f"{url}/admin/version", password)
    except (OSError, HTTPException, ValueError) as error:
        words = str(error) or type(error).__name__
        raise ConfigurationError(f"{who} does not answer ({words}). {remedy}") from error
    if status in (401, 403):
        raise ConfigurationError(
            f"{CLIENT} must be what the server at {url} was started with; it refuses "
            f"{'that' if password else 'to be asked without one'}"
        )
    try:
        found = json.loads(body)
        major = int(found.partition(".")[0])
    except (ValueError, AttributeError):
        raise ConfigurationError(f"{who} is something else. {remedy}") from None
    if health != 200 or status != 200:
        raise ConfigurationError(f"{who} is not well ({health}, {status}). {remedy}")
    here = version("prefect")
    if major != int(here.partition(".")[0]):
        raise ConfigurationError(
            f"the Prefect server at {url} must be of version {here.partition('.')[0]}, as Prefect is here "
            f"({here}); it is of version {found}. Use another server, or unset PREFECT_API_URL"
        )
    return str(found)


def is_ours(url: str) -> bool:
    """Whether a server on this machine knows the secret of this folder, so that its password may be told it.

    On a machine with several users anybody can listen on the port first.
    """
    secret = Path(os.environ.get("PREFECT_HOME", ".prefect")) / SECRET
    if not is_local(url) or not secret.is_file():
        return False
    nonce, place = secrets.token_hex(16), urlsplit(url)
    try:
        _, said = _get(f"{place.scheme}://{place.netloc}{PROOF}?nonce={nonce}", "")
    except (OSError, HTTPException, ValueError):
        return False
    expected = proof_of(secret.read_bytes(), nonce, place.port or 80)
    return hmac.compare_digest(said, expected.encode())


def is_taken(url: str) -> bool:
    """Whether anything listens at an address of this machine."""
    place = urlsplit(url)
    try:
        socket.create_connection((place.hostname or "", place.port or 80), LOOK_SECONDS).close()
    except OSError:
        return False
    return True


def known_password(url: str) -> str:
    """The password for a server: that of the environment, else, for our own, the one that is kept."""
    if given := os.environ.get(CLIENT) or os.environ.get(SERVER):
        return given
    kept = Path(os.environ.get("PREFECT_HOME", ".prefect")) / PASSWORD
    return kept.read_text(encoding="utf-8") if kept.is_file() and is_ours(url) else ""


def _kept(path: Path, prefix: str = "") -> str:
    """A secret that is made once and kept for its owner only."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{prefix}{secrets.token_urlsafe(32)}")
    except FileExistsError:
        path.chmod(0o600)
    return path.read_text(encoding="utf-8")


def _opened(port: int) -> socket.socket | None:
    """A socket that listens there; None where something does already."""
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((HOST, port))
        opened.listen(1024)
    except OSError:
        opened.close()
        return None
    return opened


@contextmanager
def _started(
    opened: socket.socket, url: str, password: str, more: Mapping[str, str], log: Path
) -> Iterator[None]:
    """A healthy server on an open socket while the body runs; it ends with this process, in any case."""
    names = ",".join(origins(opened.getsockname()[1]))
    settings = {
        "PREFECT_SERVER_UI_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": names,
        "PREFECT_API_URL": url,
        **({SERVER: password} if password else {}),
        **more,
    }
    environment = {name: value for name, value in os.environ.items() if name not in (SERVER, CLIENT)}
    with opened, log.open("ab") as messages:
        # In a session of its own: Ctrl-C is for this process, which ends the runs first and the server last.
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.door", str(opened.fileno())],
            stdin=subprocess.PIPE,
            stdout=messages,
            stderr=subprocess.STDOUT,
            env=environment | settings,
            pass_fds=[opened.fileno()],
            start_new_session=True,
        )
    try:
        _wait_for(url, process, log)
        yield
    finally:
        _stop(process)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _is_healthy(url):
        if process.poll() is not None:
            raise ConfigurationError(f"the Prefect server must start; it ended at once. It says why in {log}")
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"the Prefect server must answer within {START_SECONDS:.0f} s; it doesn't. Look into {log}"
            )
        time.sleep(0.1)


def _is_healthy(url: str) -> bool:
    try:
        return _get(f"{url}/health", "") == (200, b"true")
    except (OSError, HTTPException):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin:
        process.stdin.close()


def _get(url: str, password: str) -> tuple[int, bytes]:
    """Status and the beginning of an answer; no redirect is followed."""
    place = urlsplit(url)
    kind = HTTPSConnection if place.scheme == "https" else HTTPConnection
    connection = kind(place.hostname or "", place.port, timeout=LOOK_SECONDS)
    key = base64.b64encode(password.encode()).decode()
    try:
        connection.request(
            "GET",
            f"{place.path}{f'?{place.query}' if place.query else ''}",
            headers={"Authorization": f"Basic {key}"} if password else {},
        )
        answer = connection.getresponse()
        return answer.status, answer.read(10_000)
    finally:
        connection.close()
