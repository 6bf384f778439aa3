"""Stages `obtain`, `infer` and `train`: heavy work, done wherever the backend does it."""

from calibration.artifacts import Artifact, Store
from calibration.backends import BackendConfig
from calibration.jobs.infer import Infer
from calibration.jobs.obtain import Obtain
from calibration.jobs.train import Train
from calibration.jobs.work import work_key
from tasks.progress import reporting
from tasks.stage import stage


async def _send(job: Obtain | Infer | Train, title: str, on: BackendConfig) -> Artifact:
    key = work_key({"job": job})
    async with reporting(title) as progress:
        return await on.run(job, key, Store.from_environment(), progress)


@stage("calibration.jobs.obtain", name="obtain {label}")
async def obtain(job: Obtain, label: str, on: BackendConfig) -> Artifact:
    """A model's weights."""
    return await _send(job, f"obtain {label}", on)


@stage("calibration.jobs.infer", name="infer {label}")
async def infer(job: Infer, label: str, on: BackendConfig) -> Artifact:
    """A model's answers."""
    return await _send(job, f"infer {label}", on)


@stage("calibration.jobs.train", name="train {label}")
async def train(job: Train, label: str, on: BackendConfig) -> Artifact:
    """A method's adapter."""
    return await _send(job, f"train {label}", on)
