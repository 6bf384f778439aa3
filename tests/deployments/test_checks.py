"""What is checked before a run, wherever it was asked for: endpoints are named, and confirmed once."""

import asyncio

import pytest

from calibration.backends.local import Local
from calibration.config import load_experiment
from calibration.errors import ConfigurationError
from deployments.checks import check_before
from tests.judges.compatible_server import CompatibleServer

FOREIGN = """
[judge]
kind = "openai"
model = "m"
base_url = "{url}"
key_variable = "MINE_API_KEY"
"""


@pytest.fixture
def foreign(recorded, monkeypatch, tmp_path):
    """An experiment of somebody else's, and the server that it sends questions to."""
    monkeypatch.setenv("MINE_API_KEY", "planted-2f6c0e51")
    monkeypatch.chdir(tmp_path)
    with CompatibleServer() as server:
        text = recorded().read_text()
        path = recorded()
        path.write_text(text[: text.index("[judge]")] + FOREIGN.format(url=f"{server.url}/v1"))
        yield path, server


def check(path, confirmed=(), changes=()):
    said = []
    experiment = load_experiment(path, changes)
    asyncio.run(check_before(experiment, Local(), is_new=True, confirmed=confirmed, say=said.append))
    return said


def test_an_endpoint_of_a_file_is_refused_until_it_is_confirmed_and_then_named_each_time(foreign, tmp_path):
    path, server = foreign
    with pytest.raises(ConfigurationError, match="must be an endpoint that somebody has confirmed") as caught:
        check(path)
    assert f"go to {server.url}, with the key in MINE_API_KEY" in str(caught.value)
    assert not (tmp_path / "store").exists()
    sentence = f"questions, accepted answers and answers go to {server.url}, with the key in MINE_API_KEY"
    assert check(path, confirmed=[server.url]) == [sentence]
    assert check(path) == [sentence]
    assert server.count == 0


def test_the_command_refuses_it_in_one_line_and_says_what_to_type(foreign, cli):
    path, server = foreign
    done = cli("run", path)
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert f"--confirm-endpoint {server.url}" in line
    assert "planted" not in done.stderr
    assert server.count == 0


def test_an_address_that_is_typed_is_agreed_to(recorded, cli, tmp_path):
    # The key is missing, which is found out after the endpoint was let pass.
    changes = ["judge.kind=openai", "judge.model=m", "judge.base_url=https://h.example/v1"]
    text = recorded().read_text()
    path = recorded()
    path.write_text(text[: text.index("[judge]")] + "[judge]\n")
    done = cli("run", path, *(word for change in changes for word in ("--set", change)))
    assert done.returncode == 2
    named, problem = done.stderr.strip().splitlines()
    assert named == "questions, accepted answers and answers go to https://h.example"
    assert "judge openai must have a key for h.example" in problem


def test_a_dry_run_names_the_endpoints(cli, recorded):
    done = cli("run", recorded(), "--dry-run", "--backend", "modal")
    assert "questions, answers and training data go to https://modal.com" in done.stderr
