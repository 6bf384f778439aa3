"""Backend `dask`: every job on some machine of a Dask cluster.

Dask says which machine, and gives the job to another one when that is lost. What a job needs and makes
travels through the place that all machines share. A job does not hang on whoever began it: who comes next
with the same work joins it while it runs, and afterwards finds what came of it.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, JsonValue, TypeAdapter, model_validator

from calibration import errors
from calibration.artifacts import Artifact, Store
from calibration.backends.arithmetic import refuse_threads
from calibration.backends.container import LIBRARIES
from calibration.backends.local import Local
from calibration.backends.worker import begin_anew, forget
from calibration.endpoints import Endpoint
from calibration.errors import CalibrationError, ConfigurationError, JobError
from calibration.fingerprint import library_versions, package_digest
from calibration.jobs import Job
from calibration.jobs.infer import Infer
from calibration.jobs.work import Progress
from calibration.schema import Schema
from calibration.shared import VARIABLE, Shared

if TYPE_CHECKING:
    from distributed import Client, Future, Worker

CODE = "the code"
STOP_SECONDS = 1.0
"""Time between two looks of a running job at whether anyone wants it still."""
POLL_SECONDS = 0.1


class Dask(Schema):
    """The machines of a Dask cluster, which share a store (see docs/scaling.md)."""

    kind: Literal["dask"] = "dask"
    scheduler: str = Field(default="tcp://127.0.0.1:8786", pattern=r"^(tcp|tls)://")
    """Address of its scheduler."""
    patience_seconds: float = Field(default=30.0, gt=0)
    """How long the scheduler may take to answer, and a cancelled job to end."""

    @model_validator(mode="before")
    @classmethod
    def _threads_decide_numbers(cls, settings: object) -> object:
        return refuse_threads(settings)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The cluster, whose workers do the work."""
        return (Endpoint(address=self.scheduler, receives="the settings of jobs"),)

    async def check(self, store: Store) -> None:
        """Every machine must share this store, run this very code, and compute with the versions here."""
        del store
        here = what_is_here()
        if here[VARIABLE] is None:
            raise ConfigurationError(
                f"backend dask must have a store that its machines share; {VARIABLE} is not set. "
                f"Set it to s3://bucket/prefix, here and there"
            )
        async with self._client() as client:
            found = await client.run(what_is_here)
        if not found:
            raise ConfigurationError(
                f"the cluster of {self.scheduler} must have workers; it has none. "
                f"Run on each machine: dask worker {self.scheduler}"
            )
        for worker, there in found.items():
            for name, wanted in here.items():
                if there.get(name) != wanted:
                    raise ConfigurationError(
                        f"{name} must be {wanted} at {worker} as it is here; got {there.get(name)}. "
                        "Install the same there, and start the worker anew"
                    )

    async def forget(self, key: str, store: Store) -> None:
        """Forget all that is left of this work, here and there."""
        await Local().forget(key, store)
        if shared := Shared.from_environment():
            await asyncio.to_thread(shared.forget, key)
        async with self._client() as client:
            await client.run(forget_here, key)

    async def run(self, job: Job, key: str, store: Store, progress: Progress) -> Artifact:
        """Join or begin the work, wait for it, and bring home what it made."""
        if isinstance(job, Infer) and job.model is None:
            # Answers that are there already need no cluster.
            return await Local().run(job, key, store, progress)
        shared = Shared.from_environment()
        if shared is None:
            raise ConfigurationError(f"backend dask must have a shared store; {VARIABLE} is not set")
        for artifact in [value for _, value in job if isinstance(value, Artifact)]:
            await asyncio.to_thread(shared.put, artifact, store)
        async with self._client() as client:
            answer = await self._answer(client, job, key, progress)
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["message"])
        artifact = Artifact.model_validate(answer["artifact"])
        return await asyncio.to_thread(shared.get, artifact, store)

    async def _answer(self, client: "Client", job: Job, key: str, progress: Progress) -> dict[str, Any]:
        from distributed import fire_and_forget, wait

        client.subscribe_topic(key, lambda event: progress(*event[1]))
        future = client.submit(do, job.model_dump(mode="json"), key, key=key)
        fire_and_forget(future)
        try:
            with client.as_current():
                await wait([future])
        except asyncio.CancelledError:
            # Out of reach: it ends by itself.
            with suppress(OSError):
                await self._end(client, future)
            raise
        return await self._outcome(future)

    async def _end(self, client: "Client", future: "Future") -> None:
        """Take the work back and wait until it is over, so that nobody begins it again beside itself."""
        async with asyncio.timeout(self.patience_seconds):
            await client.cancel([future], force=True)
            while True:
                has = await client.run(has_work, future.key, on_error="ignore")
                if not any(has.values()):
                    return
                await asyncio.sleep(POLL_SECONDS)

    async def _outcome(self, future: "Future") -> dict[str, Any]:
        if future.status == "finished":
            answer: dict[str, Any] = await future
            return answer
        error = await future.exception() if future.status == "error" else f"it was {future.status}"
        raise JobError(
            f"the job must end with a result; {' '.join(str(error).split())}. Look at the workers of "
            f"{self.scheduler}; the next run goes on with what is whole"
        )

    @asynccontextmanager
    async def _client(self) -> AsyncIterator["Client"]:
        """A connection to the scheduler.

        Raises:
            ConfigurationError: The package is not installed, or nobody answers there.
        """
        try:
            from distributed import Client
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                "backend dask must have the package distributed; it is not installed. "
                "Run: pip install 'slm-calibration[dask]'"
            ) from error
        try:
            client = await Client(
                self.scheduler, asynchronous=True, set_as_default=False, timeout=self.patience_seconds
            )
        except OSError as error:
            raise ConfigurationError(
                f"scheduler must be the address of a Dask scheduler; nobody answers at {self.scheduler}. "
                "Run: dask scheduler"
            ) from error
        try:
            yield client
        finally:
            await client.close()


def what_is_here() -> dict[str, str | None]:
    """What must be the same on all machines."""
    versions = {name: version.partition("+")[0] for name, version in library_versions(LIBRARIES).items()}
    return {VARIABLE: os.environ.get(VARIABLE), CODE: package_digest()[:12], **versions}


def forget_here(key: str) -> None:
    """Forget all that is left of this work on the machine where this runs."""
    begin_anew(Store.from_environment(), key)


def has_work(key: str, dask_worker: "Worker") -> bool:
    """Whether this work is anywhere between its coming and its end on the machine where this runs."""
    return key in dask_worker.state.tasks


def do(job: dict[str, JsonValue], key: str) -> dict[str, JsonValue]:
    """Do a job on the machine where this runs, in a process of its own.

    Args:
        job: The job as JSON.
        key: Names the work.

    Returns:
        `artifact`, or `error` and `message` of a job that ended without one.
    """
    try:
        artifact = asyncio.run(_done(TypeAdapter(Job).validate_python(job), key))
    except CalibrationError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"artifact": artifact.model_dump()}


async def _done(job: Job, key: str) -> Artifact:
    from distributed import Reschedule, get_worker

    store, shared, worker = Store.from_environment(), Shared.from_environment(), get_worker()
    if shared is None:
        raise ConfigurationError(f"the workers of a cluster must share a store; {VARIABLE} is not set there")
    if done := shared.noted(key):
        return done
    # Whether it is done is noted in the shared place alone.
    forget(store, key)
    for artifact in [value for _, value in job if isinstance(value, Artifact)]:
        shared.get(artifact, store)
    work = asyncio.create_task(Local().run(job, key, store, lambda *told: worker.log_event(key, told)))
    while not (await asyncio.wait([work], timeout=STOP_SECONDS))[0]:
        # Dask forgets work that was taken back, but cannot stop it where it runs.
        if worker.state.tasks[key].state == "cancelled":
            work.cancel()
            await asyncio.wait([work])
            # For whoever may have asked for it again while it ended.
            raise Reschedule
    artifact = await work
    shared.put(artifact, store)
    shared.note(key, artifact)
    return artifact
