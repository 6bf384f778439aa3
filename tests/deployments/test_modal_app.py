"""What would be deployed, read without a network."""

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

from calibration.backends.modal import Modal, deployed_code
from calibration.engines.vllm import RELEASE
from deployments import modal_app

ROOT = Path(__file__).parent.parent.parent
IMAGES = ROOT / "deployments" / "images"


def pins(name):
    lines = (IMAGES / name).read_text().splitlines()
    return dict(line.removesuffix(" \\").split("==") for line in lines if line[0] not in "# ")


def unhashed(lock):
    """The pins of a lock for which no file is named by its hash."""
    pins = re.split(r"^(?=[^\s#])", lock, flags=re.MULTILINE)[1:]
    return [pin.split()[0] for pin in pins if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", pin)]


@pytest.mark.parametrize(
    ("function", "gpus", "minutes", "retries"),
    [
        (modal_app.obtain, [], 60, 2),
        (modal_app.infer, [("A100-40GB", 1)], 60, 2),
        (modal_app.infer_vllm, [("A100-40GB", 1)], 60, 2),
        (modal_app.train, [("A100-40GB", 1)], 180, 3),
        (modal_app.doctor, [], 5, None),
    ],
)
def test_functions_are_what_the_documents_say(function, gpus, minutes, retries):
    info = function.info()
    assert (info.gpus, info.timeout, info.max_retries) == (gpus, 60 * minutes, retries)
    assert info.single_use_containers
    assert {path: volume.name for path, volume in info.volumes.items()} == {
        "/artifacts": "slm-calibration-artifacts",
        "/cache": "slm-calibration-cache",
    }
    assert "huggingface" in str(info.secrets)


IMPORTS = """
import sys
class Closed:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"prefect", "tasks", "flows"}:
            raise ImportError(name)
sys.meta_path.insert(0, Closed())
import deployments.modal_app
print(" ".join(sorted(sys.modules)))
"""


def imported_at_once(path):
    """Top-level packages that a module imports when it is imported itself."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


def test_importing_it_loads_nothing_heavy_no_prefect_and_nothing_that_the_images_lack():
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "vllm", "transformers", "trl", "peft", "datasets"}
    ours = [find_spec(name).origin for name in loaded if name.split(".")[0] in {"calibration", "deployments"}]
    packages = {package for origin in ours for package in imported_at_once(Path(origin))}
    packages -= {*sys.stdlib_module_names, "calibration", "deployments", "modal"}
    assert {"numpy", "pandas", "pydantic"} <= packages
    names = {re.sub(r"[-_.]+", "-", name).lower() for p in packages for name in packages_distributions()[p]}
    for lock in ("vllm.txt", "train.txt"):
        assert not {"prefect", "modal"} & pins(lock).keys()
        assert names <= pins(lock).keys(), lock


def test_training_runs_there_on_the_versions_it_was_tested_with_here():
    here = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"
    )
    there = pins("train.txt")
    for name in ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy"):
        assert there[name] == here[name]
    assert pins("vllm.txt")["torch"] == here["torch"]


def test_vllm_answers_there_with_the_release_that_the_cache_keys_name():
    assert pins("vllm.txt")["vllm"] == RELEASE


def test_an_image_is_the_same_tomorrow():
    for lock in ("vllm.txt", "train.txt"):
        assert all(re.fullmatch(r"[\w.+!-]+", version) for version in pins(lock).values())
    assert modal_app.PYTHON.count(".") == 2
    assert modal_app.UV.count(".") == 2


@pytest.mark.parametrize("name", ["vllm.txt", "train.txt"])
def test_every_package_of_an_image_has_a_hash_and_one_without_is_found(name):
    lock = (IMAGES / name).read_text()
    assert unhashed(lock) == []
    without = re.sub(r"^ +--hash=.*\n", "", lock, flags=re.MULTILINE)
    assert unhashed(without) == ["==".join(pin) for pin in pins(name).items()]
    assert unhashed(f"{lock}late==1.0\n") == ["late==1.0"]


CHANGES = {
    "a time limit": ("modal_app.py", "60 * DEFAULTS.infer_minutes", "61 * DEFAULTS.infer_minutes"),
    "a package of an image": ("images/vllm.txt", "vllm==", "vllm==1"),
    "a file of a package": ("images/vllm.txt", "--hash=sha256:0", "--hash=sha256:1"),
    "words": ("modal_app.py", '"""Teach a model."""', '"""Teach."""  # so'),
    "words about an image": ("images/train.txt", "# This file", "# This lock"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_deployment_is_old_when_what_is_deployed_was_changed_and_not_when_words_were(change, tmp_path):
    name, old, new = CHANGES[change]
    shutil.copytree(ROOT / "deployments", tmp_path / "deployments")
    changed = tmp_path / "deployments" / name
    assert old in changed.read_text()
    changed.write_text(changed.read_text().replace(old, new))
    code = "from calibration.backends.modal import deployed_code; print(deployed_code())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.strip() == deployed_code()) == change.startswith("words")


def test_defaults_of_backend_and_deployment_are_one_thing():
    on = Modal()
    assert modal_app.train.info().timeout == 60 * on.train_minutes
