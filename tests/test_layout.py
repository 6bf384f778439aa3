"""The shape of the project, as promises that can be broken."""

import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import calibration
from calibration.reference import experiment_reference

ROOT = Path(__file__).parent.parent
HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "vllm",
    "modal",
    "google.genai",
    "prefect",
    "matplotlib",
)


def test_the_top_level_is_what_people_were_promised():
    for name in ("pyproject.toml", "README.md", "flows", "tasks", "calibration", "tests", "deployments"):
        assert (ROOT / name).exists(), name


def test_importing_the_whole_library_loads_no_heavy_package():
    modules = [module.name for module in pkgutil.walk_packages(calibration.__path__, "calibration.")]
    assert len(modules) > 30
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_layers_only_look_down():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("package", ["flows", "tasks", "deployments"])
def test_no_module_hides_one_that_others_import(package):
    # A path put first on sys.path would make `import datasets` find flows/datasets.py.
    for path in (ROOT / package).glob("*.py"):
        if path.stem not in {"__init__", "__main__"}:
            assert importlib.util.find_spec(path.stem) is None, f"{path} hides {path.stem}"


def test_the_reference_of_settings_is_the_settings():
    assert (ROOT / "docs" / "experiment.md").read_text() == experiment_reference()
