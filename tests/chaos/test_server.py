"""The Prefect server goes away in the middle of a run."""

import pytest

from tests.chaos.conftest import Server

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


@pytest.fixture
def mortal(tmp_path, monkeypatch):
    """A server of one test's own."""
    server = Server(tmp_path / "mortal")
    server.start()
    for name, value in server.there.items():
        monkeypatch.setenv(name, value)
    yield server
    server.kill()


@pytest.fixture
def slow_court(light, mortal):
    """What the run says undisturbed; the next one takes a while to judge."""
    light.run().done()
    numbers = light.numbers()
    light.begin_anew()
    light.court.latency = 0.4
    return numbers


def test_a_run_goes_on_when_its_server_is_killed_and_started_again(light, mortal, slow_court):
    attempt = light.run()
    attempt.wait_for("infer somebody plain")
    mortal.kill()
    mortal.start()
    attempt.done()

    assert light.numbers() == slow_court
    light.check_nothing_was_repeated()


def test_a_run_whose_server_never_comes_back_comes_to_its_report(light, mortal, slow_court, monkeypatch):
    attempt = light.run()
    attempt.wait_for("infer somebody plain")
    mortal.kill()
    attempt.done()

    assert "the Prefect server went out of reach" in attempt.words
    assert light.numbers() == slow_court
    monkeypatch.delenv("PREFECT_API_URL")
    assert set(light.run().done().stages().values()) == {"Cached"}
    light.check_nothing_was_repeated()
