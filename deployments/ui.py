"""`slm-calibration ui`: a Prefect server on this machine, and every deployment served from here."""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from urllib.parse import urlsplit

from calibration.artifacts import Store
from calibration.endpoints import is_local
from calibration.errors import ConfigurationError
from calibration.runs import runs_root
from deployments.server import (
    CLIENT,
    PASSWORD,
    PORT,
    SERVER,
    Server,
    home,
    is_taken,
    known_password,
    lasting,
    look_at,
)

OPEN = (
    "no password is asked for: every program and every user of this machine can start runs, and so run any "
    "command as you"
)


def add_ui(command: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    command.set_defaults(command=ui)
    _add_server(command)


def add_server(command: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    command.set_defaults(command=server)
    _add_server(command)


def ui(options: argparse.Namespace) -> None:
    """Serve the deployments until Ctrl-C, with a server of our own where none answers."""
    with suppress(KeyboardInterrupt), _ending_politely(), _server(options) as there:
        # Prefect reads its settings when it is imported, so it is imported after they are made.
        from deployments.serving import serve_all

        serve_all(there)


def server(options: argparse.Namespace) -> None:
    """Run the server alone until Ctrl-C, for work pools and workers."""
    with suppress(KeyboardInterrupt), _ending_politely(), _server(options) as there:
        print(f"Prefect UI: {there.link()}")
        print(f"For workers: PREFECT_API_URL={there.url}, {CLIENT} as in {home() / PASSWORD}", flush=True)
        signal.pause()


def _add_server(command: argparse.ArgumentParser) -> None:
    command.add_argument("--port", type=int, help=f"of the server on this machine (default: {PORT})")
    command.add_argument("--no-password", action="store_true", help=OPEN)


@contextmanager
def _ending_politely() -> Iterator[None]:
    """End at a polite kill as at Ctrl-C, from the first moment on."""

    def end(*_: int | FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _server(options: argparse.Namespace) -> Iterator[Server]:
    """The server, which every run is told of: that of the environment, unless a port is named, or our own."""
    if options.no_password and os.environ.get(SERVER):
        raise ConfigurationError(f"--no-password must come without {SERVER}; it is set. Unset one of them")
    given = os.environ.get("PREFECT_API_URL", "").rstrip("/") if options.port is None else ""
    _set_environment()
    if given and (not is_local(given) or is_taken(given)):
        there = Server(given, known_password(given))
        look_at(there.url, there.password)
        _tell_runs(there)
        yield there
        return
    port = options.port or (given and urlsplit(given).port) or PORT
    with lasting(port, is_open=options.no_password) as there:
        if not there.password:
            print(f"slm-calibration: {OPEN}", file=sys.stderr)
        _tell_runs(there)
        yield there


def _set_environment() -> None:
    """What this process, the server and every run must agree on."""
    os.environ["PREFECT_HOME"] = str(home())
    Store.from_environment().check_writable()
    os.environ["SLM_CALIBRATION_STORE"] = str(Store.from_environment().root)
    os.environ["SLM_CALIBRATION_RUNS"] = str(runs_root())
    os.environ.setdefault("PREFECT_RUNNER_POLL_FREQUENCY", "2")
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")


def _tell_runs(there: Server) -> None:
    """Where the server is, and its password."""
    os.environ["PREFECT_API_URL"] = there.url
    if there.password:
        os.environ[CLIENT] = there.password
