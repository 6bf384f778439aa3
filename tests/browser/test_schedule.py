"""The weekly re-measurement, switched on by a person."""

import pytest

from tests.browser.conftest import pressed
from tests.serving import Served

pytestmark = pytest.mark.slow


OF_ANOTHER = {
    "schedule": {"cron": "0 4 * * 2", "timezone": "UTC", "day_or": True},
    "active": True,
    "parameters": {"base": "another"},
    "slug": None,
}


def test_schedules_stay_as_a_person_left_them_when_everything_is_started_anew(page, tmp_path):
    assert switch(page, Served(tmp_path), turn_on=True) == "false"
    assert switch(page, Served(tmp_path)) == "true"


def switch(page, served, *, turn_on=False):
    """How the switch at the schedule is found; it is turned on, if it is to be, and all is ended."""
    try:
        identifier = served.deployments["remeasure"]
        page.goto(served.at(f"/v2/deployments/deployment/{identifier}"))
        page.get_by_text("At 03:00 AM, only on Monday").wait_for()
        toggle = page.get_by_role("switch").last
        found = toggle.get_attribute("aria-checked")
        if turn_on:
            pressed(page, toggle, "/schedules/")
            [own] = schedules(served, identifier)
            assert own["active"]
            served.call(f"/deployments/{identifier}/schedules", [OF_ANOTHER])
        own, other = sorted(schedules(served, identifier), key=lambda schedule: schedule["schedule"]["cron"])
        assert own["active"]
        assert {name: other[name] for name in OF_ANOTHER} == OF_ANOTHER
        assert served.interrupt() == 0
    finally:
        served.stop()
    return found


def schedules(served, identifier):
    return served.call(f"/deployments/{identifier}")["schedules"]
