"""Two users on one machine: what one keeps the other cannot read, and neither can pass for the other."""

import os
import pwd
import signal
import socket
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import pytest

from tests.serving import COMMAND, Served, environment, free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users"),
]
OTHER = pwd.getpwnam("nobody").pw_uid


BECOME = f"""
import os, socket, sys, urllib.error, urllib.request
"localhost".encode("idna")
os.setgroups([])
os.setgid({OTHER})
os.setuid({OTHER})
"""
"""Imports first: the other user may not be able to read where Python lies."""


def program(code, *arguments):
    return [sys.executable, "-I", "-c", BECOME + code, *map(str, arguments)]


def as_other(code, *arguments):
    """What a program of the other user prints, and its error."""
    done = subprocess.run(
        program(code, *arguments),
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


READ = """
for folder in sys.argv[1:]:
    try:
        print("read", sorted(os.listdir(folder)))
    except OSError as error:
        print(type(error).__name__)
"""
ASK = """
for path in ("/api/flow_runs/filter", "/api/deployments/filter", "/api/artifacts/filter"):
    request = urllib.request.Request(sys.argv[1] + path, b"{}", {"Content-Type": "application/json"})
    try:
        print(urllib.request.urlopen(request).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""
SQUAT = """
listening = socket.socket()
listening.bind(("127.0.0.1", int(sys.argv[1])))
listening.listen(8)
print("listening", flush=True)
while True:
    peer, _ = listening.accept()
    asked = peer.recv(4000)
    print(asked, flush=True)
    body = "true" if b"/health" in asked else '"3.8.8"'
    peer.sendall(f"HTTP/1.1 200 OK\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n{body}".encode())
    peer.close()
"""


def test_the_other_user_reads_nothing_and_is_let_in_nowhere(tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)  # so that only what is ours decides
    served = Served(tmp_path)
    try:
        served.run("runs")
        ours = [tmp_path / ".prefect", tmp_path / ".calibration"]
        assert as_other(READ, *ours).split() == ["PermissionError"] * 2
        said = as_other(ASK, served.address)
        assert said.split() == ["401"] * 3, said
        commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
        assert not [words for words in commands if served.password.encode() in words]
    finally:
        served.stop()


@pytest.mark.parametrize("named", [False, True], ids=["the usual port", "PREFECT_API_URL"])
def test_who_was_first_on_the_port_is_not_told_the_password(tmp_path, named):
    first = Served(tmp_path)
    secrets = [first.password, b64encode(first.password.encode()).decode()]
    first.interrupt()
    port = free_port()
    with subprocess.Popen(program(SQUAT, port), cwd="/", stdout=subprocess.PIPE, text=True) as squatter:
        assert squatter.stdout.readline() == "listening\n"
        given = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"} if named else {}
        process = subprocess.Popen(
            [COMMAND, "ui", *([] if named else ["--port", str(port)])],
            cwd=tmp_path,
            env=environment(tmp_path, **given),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _, said = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            _, said = process.communicate()
        with socket.create_connection(("127.0.0.1", port)) as last:
            last.sendall(b"end")
        heard = "".join(iter(squatter.stdout.readline, "b'end'\n"))
        squatter.kill()
    assert not [secret for secret in secrets if secret in heard]
    assert named or "must be free, or have the server of" in said
