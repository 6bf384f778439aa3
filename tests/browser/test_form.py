"""A person's way through the Prefect UI: open the form, change a field, run, watch, read the report."""

import json
import re

import pytest

from tests.browser.conftest import pressed

pytestmark = pytest.mark.slow


def open_form(page, served, deployment="calibrate"):
    page.goto(served.at(f"/v2/deployments/deployment/{served.deployments[deployment]}/run"))
    page.get_by_text("Changes (Optional)").wait_for()


def field(page, title):
    """What is filled in below a title."""
    return page.locator(
        f'xpath=//*[text()="{title} (Optional)"]/following::*[self::input or self::textarea][1]'
    )


def submit(page):
    page.get_by_role("button", name="Submit").click()


def run(page):
    """Submit the form and open the run that came of it, as a person does; the run's id."""
    identifier = pressed(page, page.get_by_role("button", name="Submit"), "create_flow_run").json()["id"]
    page.locator(f'a[href*="/runs/flow-run/{identifier}"]').first.click()
    page.wait_for_url(re.compile(identifier))
    return identifier


def count(served):
    return served.call("/flow_runs/count", {})


def test_a_person_changes_a_field_runs_it_watches_it_finish_and_reads_the_report(page, served):
    open_form(page, served)
    field(page, "Seed").fill("7")
    field(page, "Experiment file").fill("recorded.toml")
    run(page)
    page.get_by_text("Completed", exact=True).first.wait_for(timeout=180_000)
    record = json.loads((served.folder / "runs" / "latest" / "run.json").read_text())
    assert (record["experiment"]["seed"], record["state"]) == (7, "Completed")
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("calibration-report").first.click()
    page.locator('a[href*="/artifacts/artifact/"]').first.click()
    page.get_by_text("RMS").first.wait_for()
    assert page.title() != "planted"


def test_what_is_impossible_is_refused_in_the_form_with_its_sentence(page, served):
    before = count(served)
    open_form(page, served)
    page.get_by_text("World", exact=True).click()
    entities = field(page, "Entities per topic")
    entities.fill("1")
    submit(page)
    assert entities.evaluate("box => box.validationMessage") == "Value must be greater than or equal to 4."
    entities.fill("24")
    skew = field(page, "Mean exposures")
    skew.fill("0")  # a browser knows "at least", the server knows "more than"
    submit(page)
    page.get_by_text("0 is less than or equal to the minimum of 0", exact=True).wait_for()  # beside it
    assert count(served) == before


def test_a_shipped_experiment_is_chosen_and_what_it_lacks_is_said(page, served):
    open_form(page, served)
    page.get_by_label("Select Experiment").click()
    page.get_by_role("option", name="gemma2-nq").click()
    run(page)
    page.get_by_text("Failed", exact=True).first.wait_for(timeout=120_000)
    page.reload()  # what it said comes a moment later
    page.get_by_text(re.compile(r"nq_gemma2_0_shot_test\.csv\.gz must be a data file")).first.wait_for()
    assert page.get_by_text("calibrate gemma2-nq").count() > 0


def test_a_failed_run_goes_on_where_it_failed_when_a_person_retries_it(page, served):
    figures = served.folder / ".calibration" / "artifacts" / "figures"
    aside = figures.with_name("aside")
    if figures.exists():
        figures.rename(aside)
    figures.write_text("in the way")
    flow_run = served.started("calibrate", file="recorded.toml", changes={"seed": 11})
    state, stages = served.ended(flow_run)
    assert (state["name"], stages["draw"]) == ("Failed", "Failed")
    book = (served.folder / "runs" / "latest").resolve()

    figures.unlink()
    if aside.exists():
        aside.rename(figures)
    page.goto(served.at(f"/v2/runs/flow-run/{flow_run}"))
    page.get_by_text("Failed", exact=True).first.wait_for()
    page.get_by_role("button", name="Open menu").click()
    page.get_by_role("menuitem", name="Retry").click()
    page.get_by_role("button", name="Retry").click()
    page.get_by_text("Completed", exact=True).first.wait_for(timeout=180_000)

    assert (served.folder / "runs" / "latest").resolve() == book
    assert json.loads((book / "run.json").read_text())["state"] == "Completed"
    stages = map(json.loads, (book / "stages.jsonl").read_text().splitlines())
    ended = {stage["name"]: stage["state"] for stage in stages if stage["state"] != "Running"}
    assert ended.pop("draw") == "Completed"
    assert set(ended.values()) == {"Cached"}


@pytest.mark.parametrize("deployment", ["calibrate", "compare", "sweep"])
def test_a_method_is_chosen_by_tabs_and_its_settings_are_read_without_help(page, served, deployment):
    open_form(page, served, deployment)
    page.locator('xpath=//*[text()="Methods (Optional)"]/following::button[text()="Add item"][1]').click()
    page.get_by_text("DPO", exact=True).click()
    page.get_by_text("How strongly the model is held to the base model; higher is stronger.").wait_for()
    assert field(page, "Name").nth(0).input_value() == ""
    assert "dpo" in page.locator("textarea").evaluate_all("all => all.map(one => one.value)")
    for word in ("Experiment", "Where it runs", "Seed", "Splits", "Judge", "Router"):
        assert page.get_by_text(f"{word} (Optional)", exact=True).count() == 1, word
