"""What a model answered is text, whatever it says."""

import pytest

from tests.browser.conftest import SCRIPT

pytestmark = pytest.mark.slow


def test_a_script_in_an_answer_is_shown_and_never_run(page, served):
    state, _ = served.ended(served.started("baseline", file="recorded.toml"))
    assert state["name"] == "Completed", state["message"]
    report = served.folder / "runs" / "latest" / "report.html"
    assert "document.title" in report.read_text(), "the report quotes a planted answer"
    page.goto(f"file://{report.resolve()}")
    page.wait_for_load_state("networkidle")
    assert page.title() != "planted"
    assert (
        page.locator("script")
        .evaluate_all("all => all.map(one => one.text)")
        .count("document.title='planted'")
        == 0
    )
    assert page.get_by_text(SCRIPT, exact=False).count() > 0
