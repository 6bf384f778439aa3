"""Stages `obtain`, `infer` and `train`: heavy work, done wherever the backend does it."""

import asyncio

from calibration import shards
from calibration.artifacts import Artifact, Store
from calibration.backends import BackendConfig
from calibration.checkpoints import SET_ASIDE
from calibration.jobs.infer import Infer
from calibration.jobs.obtain import Obtain
from calibration.jobs.train import Train
from calibration.jobs.work import work_key
from tasks.cached import note
from tasks.journal import current_journal
from tasks.progress import reporting
from tasks.stage import stage


async def _send(job: Obtain | Infer | Train, title: str, on: BackendConfig) -> Artifact:
    key, store = work_key({"job": job}), Store.from_environment()
    current_journal().use(work=key)
    if current_journal().wants_refresh(title):
        await on.forget(key, store)
    async with reporting(title) as progress:

        def heed(fraction: float, words: str) -> None:
            if words.startswith(SET_ASIDE):
                note(words.removeprefix(SET_ASIDE))
            progress(fraction, words)

        return await on.run(job, key, store, heed)


@stage("calibration.jobs.obtain", name="obtain {label}")
async def obtain(job: Obtain, label: str, on: BackendConfig) -> Artifact:
    """A model's weights."""
    return await _send(job, f"obtain {label}", on)


async def cut(job: Infer, label: str, size: int) -> list[tuple[Infer, str]]:
    """The job for each shard of the questions, and what it is called; answers that are there stay in one.

    No stage: it is done in moments, and makes the same artifacts every time.
    """
    if job.model is None:
        return [(job, label)]
    cuts = await asyncio.to_thread(shards.cut, job.questions, size, Store.from_environment())
    jobs = [job.model_copy(update={"questions": questions}) for questions in cuts]
    if len(jobs) == 1:
        return [(jobs[0], label)]
    return [(part, f"{label} {number}/{len(jobs)}") for number, part in enumerate(jobs, start=1)]


@stage("calibration.jobs.infer", name="infer {label}", retries=1)
async def infer(job: Infer, label: str, on: BackendConfig) -> Artifact:
    """A model's answers."""
    return await _send(job, f"infer {label}", on)


@stage("calibration.shards", name="merge {label}")
async def merge(questions: tuple[Artifact, ...], answers: tuple[Artifact, ...], label: str) -> Artifact:
    """The answers to all shards as those of one job."""
    return await asyncio.to_thread(shards.merge, questions, answers, Store.from_environment())


@stage("calibration.jobs.train", name="train {label}")
async def train(job: Train, label: str, on: BackendConfig) -> Artifact:
    """A method's adapter."""
    return await _send(job, f"train {label}", on)
