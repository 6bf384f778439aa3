"""A real browser in front of a real server. SCREENSHOTS=folder keeps what it saw."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.deployments.conftest import recorded_answers
from tests.serving import RECORDED, Served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
SWITCHES += ["--disable-background-networking", "--disable-component-update"]
SCRIPT = "<script>document.title='planted'</script><img src='x' onerror=\"document.title='planted'\">"


def planted(table):
    """The same answers, some of which would run in a browser that takes them for a page."""
    for row in range(0, 60, 2):
        table.loc[row, "response"] += SCRIPT
        table.loc[row, "tokens"] = json.dumps([table.loc[row, "response"], "<eos>"])
        table.loc[row, "question"] += SCRIPT
        table.loc[row, "topic"] = SCRIPT
    return table


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    planted(recorded_answers()).to_csv(folder / "answers.csv", index=False)
    (folder / "recorded.toml").write_text(RECORDED)
    served = Served(folder)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install -y chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs: pip install playwright==1.65.2")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=SWITCHES)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, request):
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    page.set_default_timeout(30_000)
    # As without a network: whatever is not here is not there.
    page.route(lambda url: not url.startswith(("http://127.0.0.1", "file:")), lambda route: route.abort())
    yield page
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{request.node.name}.png", full_page=True)
    page.close()


def pressed(page, button, part):
    """What the server answers, at an address with this part, when a person presses something.

    On SQLite a busy server may say that it can't now (503); a person presses again.
    """
    for _ in range(5):
        with page.expect_response(lambda answer: part in answer.url) as answered:
            button.click()
        if answered.value.status != 503:
            break
    assert answered.value.ok, answered.value.text()
    return answered.value
