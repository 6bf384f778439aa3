"""What the documents say is so: their code runs and prints what they show, and what they name exists."""

import contextlib
import io
import pkgutil
import re
import sys
import tomllib
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

from calibration.config import load_experiment
from calibration.maps import FITS
from calibration.report.words import CRITERIA, FIGURES
from calibration.results import CostQualityRow, Value
from calibration.routing.rates import Figures

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TOP = "calibration|tasks|flows|deployments|tests|docs|benchmarks|tools"
SHOWN = "python no-run"
"""The fence of Python that is only shown."""


@dataclass(frozen=True)
class Block:
    fence: str
    text: str
    line: int
    """Lines of the page before the text."""
    follows: str | None
    """The fence of the block that it stands right below, with nothing but white space between."""


def blocks(page):
    text = page.read_text(encoding="utf-8")
    found = []
    end, fence = 0, None
    for match in re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE):
        is_adjacent = not text[end : match.start()].strip()
        line = text.count("\n", 0, match.start(2))
        found.append(Block(match[1], match[2], line, fence if is_adjacent else None))
        end, fence = match.end(), match[1]
    return found


def name(page):
    return str(page.relative_to(ROOT))


WITH_CODE = [page for page in PAGES if any(block.fence == "python" for block in blocks(page))]
TOML = [(page, block) for page in PAGES for block in blocks(page) if block.fence == "toml"]


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_the_python_of_a_page_runs_and_prints_what_the_page_shows(page, monkeypatch, tmp_path):
    module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    monkeypatch.chdir(tmp_path)
    printed = ""
    for block in blocks(page):
        if block.fence == "python":
            output = io.StringIO()
            code = compile("\n" * block.line + block.text, page, "exec")  # errors name the page's line
            with contextlib.redirect_stdout(output):
                exec(code, module.__dict__)  # noqa: S102 - our own documents
            printed = output.getvalue()
        elif block.fence == "text" and block.follows == "python":
            assert printed == block.text, f"{name(page)}, line {block.line}"


def test_there_are_pages_with_code_and_with_experiments():
    assert {name(page) for page in WITH_CODE} >= {"docs/metrics.md", "docs/router-policy.md"}
    assert sum("data" in tomllib.loads(block.text) for _, block in TOML) >= 2


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_is_either_run_or_said_not_to_be(page):
    fences = {block.fence for block in blocks(page) if block.fence.startswith("py")}
    assert fences <= {"python", SHOWN}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_fence_of_a_page_is_closed(page):
    fences = re.findall(r"^\s*```", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == 2 * len(blocks(page))


@pytest.mark.parametrize(("page", "block"), TOML, ids=[f"{name(page)}:{block.line}" for page, block in TOML])
def test_toml_of_a_page_is_toml_and_a_whole_experiment_loads(page, block, tmp_path):
    if "data" not in tomllib.loads(block.text):
        return  # a part of one
    (tmp_path / "shown.toml").write_text(block.text, encoding="utf-8")
    load_experiment(tmp_path / "shown.toml")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_everything_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / target).exists(), f"no {target}"
    for path in re.findall(rf"`((?:{TOP})/[\w./-]*)`", text):
        assert (ROOT / path).exists(), f"no {path}"
    for dotted in re.findall(rf"`((?:{TOP})(?:\.\w+)+)`", text):
        assert pkgutil.resolve_name(dotted) is not None
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {*re.findall(r"(?:^|`)make (\w[\w-]*)", text, re.MULTILINE)} <= targets


def test_the_page_on_metrics_explains_every_figure_line_and_map():
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    curve = {field for field, about in CostQualityRow.model_fields.items() if about.annotation is Value}
    wanted = {*FIGURES, *CRITERIA, *Figures.model_fields, *curve}
    assert sorted(word for word in wanted if f"`{word}`" not in text) == []
    assert sorted(kind for kind in FITS if kind not in text.casefold()) == []
