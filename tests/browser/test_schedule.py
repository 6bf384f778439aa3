"""The weekly re-measurement, switched on by a person."""

import pytest

from tests.browser.conftest import pressed
from tests.serving import Served

pytestmark = pytest.mark.slow


def test_a_schedule_that_a_person_switched_on_stays_on_when_everything_is_started_anew(page, tmp_path):
    assert switch(page, Served(tmp_path), turn_on=True) == "false"
    assert switch(page, Served(tmp_path)) == "true"


def switch(page, served, *, turn_on=False):
    """How the switch at the schedule is found; it is turned on, if it is to be, and all is ended."""
    try:
        identifier = served.deployments["remeasure"]
        page.goto(f"{served.address}/v2/deployments/deployment/{identifier}")
        page.get_by_text("At 03:00 AM, only on Monday").wait_for()
        toggle = page.get_by_role("switch")
        found = toggle.get_attribute("aria-checked")
        if turn_on:
            pressed(page, toggle, "/schedules/")
        assert is_on(served, identifier) == (turn_on or found == "true")
        assert served.interrupt() == 0
    finally:
        served.stop()
    return found


def is_on(served, identifier):
    [schedule] = served.call(f"/deployments/{identifier}")["schedules"]
    return schedule["active"]
