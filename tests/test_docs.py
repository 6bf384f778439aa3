"""What the documentation shows works: every Python block runs, every experiment in it loads."""

import re
from pathlib import Path

import pytest

from calibration.config import load_experiment

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]


def blocks(page, language):
    """The code blocks of a page; one marked `no-run` is only shown."""
    return re.findall(
        rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda page: page.name)
def test_every_python_block_of_a_page_runs(page):
    names = {"__name__": page.stem}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)  # noqa: S102 - our own documentation


EXPERIMENTS = [
    (page, block) for page in PAGES for block in blocks(page, "toml") if block.startswith("name =")
]


@pytest.mark.parametrize(("page", "block"), EXPERIMENTS)
def test_every_experiment_of_a_page_loads(page, block, tmp_path):
    (tmp_path / "shown.toml").write_text(block, encoding="utf-8")
    assert load_experiment(tmp_path / "shown.toml").name


def test_the_pages_hold_something_to_check():
    assert len(EXPERIMENTS) >= 2
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 5
