"""`slm-calibration ui`: a Prefect server on this machine, and every deployment served from here."""

import argparse
import base64
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from calibration.artifacts import Store
from calibration.errors import ConfigurationError
from calibration.runs import runs_root

HOST, PORT = "127.0.0.1", 4200
START_SECONDS, STOP_SECONDS = 180.0, 15.0
"""How long a server may take to start; on a busy machine an empty database takes half a minute."""
LOG = "server.log"


def add_ui(command: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    command.set_defaults(command=ui)
    command.add_argument("--port", type=int, help=f"of the server on this machine (default: {PORT})")


def ui(options: argparse.Namespace) -> None:
    """Serve the deployments until Ctrl-C, with a server of our own where none answers."""
    url = _address(options.port)
    _set_prefect_environment(url)
    Store.from_environment().check_writable()
    with suppress(KeyboardInterrupt), _server(url):
        # Prefect reads its settings when it is imported, so it is imported after they are made.
        from deployments.serving import serve_all

        serve_all(url.removesuffix("/api"))


def _address(port: int | None) -> str:
    """The API of the server: that of the port, else that of the environment, else the usual one."""
    given = os.environ.get("PREFECT_API_URL", "")
    return given.rstrip("/") if given and port is None else f"http://{HOST}:{port or PORT}/api"


def _set_prefect_environment(url: str) -> None:
    """What this process, the server and every run must agree on."""
    home = Path(os.environ.setdefault("PREFECT_HOME", str(Path(".prefect").absolute())))
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["PREFECT_API_URL"] = url
    os.environ["SLM_CALIBRATION_STORE"] = str(Store.from_environment().root)
    os.environ["SLM_CALIBRATION_RUNS"] = str(runs_root())
    os.environ.setdefault("PREFECT_RUNNER_POLL_FREQUENCY", "2")
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")


@contextmanager
def _server(url: str) -> Iterator[None]:
    """A healthy server at the address while the body runs; one that was there before stays afterwards."""
    if _is_prefect(url):
        yield
        return
    place = urlsplit(url)
    if place.hostname not in {HOST, "localhost"}:
        raise ConfigurationError(
            f"PREFECT_API_URL must be the address of a running Prefect server; {url} does not answer. "
            "Start it, or unset the variable to have a server on this machine"
        )
    process = _start(url, place.port or PORT)
    try:
        yield
    finally:
        _stop(process)


def _start(url: str, port: int) -> subprocess.Popen[bytes]:
    """A server on this port, once it is healthy."""
    log = Path(os.environ["PREFECT_HOME"]) / LOG
    settings = {"API_HOST": HOST, "API_PORT": str(port), "UI_API_URL": url, "ANALYTICS_ENABLED": "false"}
    print(f"Starting a Prefect server on port {port}; its messages: {log}", file=sys.stderr)
    with log.open("ab") as messages:
        # In a session of its own: Ctrl-C is for this process, which ends the runs first and the server last.
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start"],
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=subprocess.STDOUT,
            env=os.environ | {f"PREFECT_SERVER_{name}": value for name, value in settings.items()},
            start_new_session=True,
        )
    try:
        _wait_for(url, process, log)
    except BaseException:
        _stop(process)
        raise
    return process


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _is_prefect(url):
        if process.poll() is not None:
            raise ConfigurationError(f"the Prefect server must start; it ended at once. It says why in {log}")
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"the Prefect server must answer within {START_SECONDS:.0f} s; it doesn't. Look into {log}"
            )
        time.sleep(0.25)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _is_prefect(url: str) -> bool:
    """Whether a server of Prefect answers; False when nothing does.

    Raises:
        ConfigurationError: Something else answers, or the server refuses us.
    """
    request = urllib.request.Request(f"{url}/admin/version")  # noqa: S310 - http, as Prefect speaks
    if secret := os.environ.get("PREFECT_API_AUTH_STRING"):
        request.add_header("Authorization", f"Basic {base64.b64encode(secret.encode()).decode()}")
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:  # noqa: S310
            if answer.read(100) != b"true":
                raise ConfigurationError(_taken(url))
        with urllib.request.urlopen(request, timeout=5):  # noqa: S310
            return True
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.UNAUTHORIZED:
            raise ConfigurationError(
                f"PREFECT_API_AUTH_STRING must be what the server at {url} was started with; it refuses us"
            ) from error
        raise ConfigurationError(_taken(url)) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionRefusedError | socket.gaierror):
            return False
        raise ConfigurationError(_taken(url)) from error
    except (OSError, HTTPException) as error:
        raise ConfigurationError(_taken(url)) from error


def _taken(url: str) -> str:
    return (
        f"{urlsplit(url).netloc} must be free or a Prefect server's; something else answers there. "
        "Take another port: slm-calibration ui --port 4201"
    )
