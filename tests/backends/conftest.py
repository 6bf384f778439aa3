"""A cloud and a hub on this machine, to which the app was deployed with the real command."""

import os
import shutil
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from calibration.artifacts import Store
from calibration.backends.ledger import Ledger
from calibration.jobs.obtain import Obtain
from calibration.models.hub import Hub

ROOT = Path(__file__).parent.parent.parent
FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 20}
ORCHESTRATOR = """
import asyncio, sys
from pathlib import Path
from pydantic import TypeAdapter
from calibration.artifacts import Store
from calibration.backends.modal import Modal
from calibration.jobs import Job
job = TypeAdapter(Job).validate_json(sys.argv[1])
asyncio.run(Modal(poll_seconds=0.2).run(job, sys.argv[2], Store(Path(sys.argv[3])), print))
"""


def load(name):
    """A module that lies in the folder of the tests."""
    spec = spec_from_file_location(name, ROOT / "tests" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def hub():
    hub = load("fake_hub").FakeHub()
    yield hub
    hub.close()


@pytest.fixture(scope="session")
def deployed(tmp_path_factory, hub):
    """The cloud as `modal deploy` leaves it."""
    cloud = load("fake_modal").FakeModal(tmp_path_factory.mktemp("cloud"), hub.url)
    cloud.secrets["st-huggingface"] = {"HF_TOKEN": hub.token}
    os.environ.update(cloud.environment)
    deploy(cloud)
    yield cloud
    cloud.close()


def deploy(cloud):
    """Run the command of docs/modal.md."""
    command = [Path(sys.executable).with_name("modal"), "deploy", "-m", "deployments.modal_app"]
    environment = {**os.environ, **cloud.environment, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=cloud.folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def cloud(deployed, hub):
    """The cloud with nothing on it; what a test changes of app and secret is put back."""
    tags, secrets = deployed.tags, dict(deployed.secrets)
    deployed.calls.clear()
    for volume in deployed.volumes.values():
        shutil.rmtree(volume)
        volume.mkdir()
    hub.asked.clear()
    hub.models.clear()
    hub.gated.clear()
    yield deployed
    hub.open.set()
    deployed.answers.set()
    deployed.room.set()
    deployed.tags, deployed.secrets = tags, secrets
    deployed.close()


@pytest.fixture
def until():
    """Waits for something that another process does."""

    def wait(true, seconds=300):
        deadline = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.01)
        return found

    return wait


@pytest.fixture
def fetching(hub):
    """A job that downloads a small model of this name."""

    def make(name):
        hub.models[name] = FILES
        return Obtain(weights=Hub(repo=name))

    return make


@pytest.fixture
def begun(cloud, hub, until, fetching):
    """Begins a job and kills with -9 who began it, while the container waits for the hub."""

    def begin(name, key):
        job, store = fetching(name), Store.from_environment()
        hub.open.clear()
        arguments = [job.model_dump_json(), key, str(store.root)]
        somebody = subprocess.Popen(
            [sys.executable, "-c", ORCHESTRATOR, *arguments], stdout=subprocess.DEVNULL
        )
        try:
            until(lambda: hub.is_downloading(name) and Ledger(store).find(key))
        finally:
            somebody.kill()
            somebody.wait()
        [call] = cloud.calls.values()
        return job, call

    return begin
