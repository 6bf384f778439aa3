"""Backend `modal`: every job in a container on Modal, with a GPU where it needs one.

A job is a call of a function that was deployed beforehand, so it outlives whoever began it. Its id is on
the disk before it is waited for, and its result and checkpoints are on a volume under its key: after a
crash the call is found again, and finished work is never done, or paid for, twice.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from calibration import errors
from calibration.artifacts import Artifact, Store
from calibration.backends.container import LIBRARIES
from calibration.backends.exam import Exam
from calibration.backends.ledger import Call, Ledger
from calibration.backends.local import Local
from calibration.backends.volume import Remote
from calibration.backends.wire import APP, NoResultError, patiently, poll, sdk
from calibration.endpoints import Endpoint
from calibration.engines.vllm import Vllm
from calibration.errors import ArtifactError, CalibrationError, ConfigurationError
from calibration.fingerprint import library_versions, module_digest, package_digest
from calibration.jobs import Job
from calibration.jobs.infer import Infer
from calibration.jobs.obtain import Obtain
from calibration.jobs.work import Progress, work_key
from calibration.models.hub import Hub, pointed_at
from calibration.schema import Schema

T = TypeVar("T")

APP_MODULE = "deployments.modal_app"
ARTIFACTS, CACHE = f"{APP}-artifacts", f"{APP}-cache"
SECRET, TOKEN = "huggingface", "HF_TOKEN"
CODE = "code"
DOCTOR_MINUTES = 5
CPU = "CPU"

USD_PER_HOUR = {
    CPU: 2 * 0.0000131 * 3600,
    "T4": 0.5904,
    "L4": 0.7992,
    "L40S": 1.9512,
    "A100-40GB": 2.10,
    "A100-80GB": 2.4984,
    "H100": 3.9492,
    "B200": 6.25,
}
"""List prices as others quote them; "CPU" is the two cores that fetch models. Memory, and the cores beside
a GPU, are billed on top."""
PRICED = "2026-05-07"

Gpu = Annotated[str, Field(pattern=r"^[A-Z0-9-]+$")]


class Modal(Schema):
    """Containers on Modal; what runs there must have been deployed (see docs/modal.md)."""

    kind: Literal["modal"] = "modal"
    environment: str | None = None
    """Modal's environment; unset, the one of your profile."""
    infer_gpu: Gpu = "A100-40GB"
    """The GPU for answers."""
    train_gpu: Gpu = "A100-40GB"
    """The GPU for training."""
    obtain_minutes: int = Field(default=60, ge=1, le=1440)
    """Time limit for fetching a model."""
    infer_minutes: int = Field(default=60, ge=1, le=1440)
    """Time limit for one model's answers. One that exceeds it is begun again, twice at most."""
    train_minutes: int = Field(default=180, ge=1, le=1440)
    """Time limit for one training. One that exceeds it goes on from its checkpoints, three times at most."""
    max_usd: float = Field(default=25.0, gt=0)
    """Most that may be spent within 24 hours; open calls count up to their time limit."""
    usd_per_hour: dict[str, float] = Field(default_factory=dict)
    """Prices of GPUs, over or beside those that are known."""
    poll_seconds: float = Field(default=10.0, gt=0)
    """Time between two looks at the progress."""
    patience_minutes: float = Field(default=15.0, ge=0)
    """How long Modal may be out of reach before the run gives up; its jobs go on."""

    @model_validator(mode="after")
    def _has_prices(self) -> Self:
        prices = USD_PER_HOUR | self.usd_per_hour
        for setting in ("infer_gpu", "train_gpu"):
            gpu = getattr(self, setting)
            if gpu not in prices:
                known = ", ".join(name for name in prices if name != CPU)
                raise ValueError(
                    f"{setting} must be one of {known}; got {gpu!r}. "
                    f"Another one needs its price: --on usd_per_hour.{gpu}=..."
                )
        return self

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Modal, whose containers do the work."""
        return (Endpoint(address="https://modal.com", receives="questions, answers and training data"),)

    async def run(self, job: Job, key: str, store: Store, progress: Progress) -> Artifact:
        """Find or begin the call for this work, wait for it, and bring home what it made."""
        if isinstance(job, Infer) and job.model is None:
            # Answers that are there already need no container.
            return await Local().run(job, key, store, progress)
        ledger = Ledger(store)
        async with ledger.alone(key):
            try:
                return await self._find_or_begin(job, key, store, progress)
            except asyncio.CancelledError:
                if call := ledger.find(key):
                    with suppress(CalibrationError):
                        await _uninterrupted(self.cancel(call, store))
                raise

    async def forget(self, key: str, store: Store) -> None:
        """Forget all that is left of this work, here and there; a call that is open is the new work."""
        await Local().forget(key, store)
        remote = self._remote()
        holder = await self._patiently(lambda: remote.holder(key))
        is_open = Ledger(store).find(key) is not None
        held = self._call("obtain", key, holder)
        if not is_open and (not holder or await self.is_over(held, self.patience_minutes)):
            await self._patiently(lambda: remote.forget(key))

    async def check(self, store: Store) -> None:
        """Raise what would keep a job from running."""
        await self.check_deployment()
        await self.check_secret()
        self.check_budget(store)

    async def check_deployment(self) -> None:
        """The app must be there, run this very code, and compute with the versions that are here.

        The key of a result holds the versions that are here, wherever it was made.
        """
        tags = await patiently(self._tags)
        code = tags.get(CODE, "")
        if code != deployed_code():
            raise ConfigurationError(
                f"app {APP} must run the code that is here, {deployed_code()[:8]}; deployed is "
                f"{code[:8] or 'an unknown one'}. Run: {self._deploy}"
            )
        for name, version in library_versions(LIBRARIES).items():
            # A build such as +cpu is the same release.
            if (here := version.partition("+")[0]) != tags.get(name):
                raise ConfigurationError(
                    f"{name} must be {tags.get(name)} here as in the deployed image, since results are kept "
                    f"under the versions that are here; got {here}. Run: pip install {name}=={tags.get(name)}"
                )

    async def check_secret(self) -> None:
        """The token for gated models must be there."""
        modal = sdk()
        secret = modal.Secret.from_name(SECRET, required_keys=[TOKEN], environment_name=self.environment)
        try:
            await patiently(secret.hydrate.aio)
        except (modal.exception.NotFoundError, modal.exception.ConflictError) as error:
            raise ConfigurationError(
                f"secret {SECRET} must hold {TOKEN}; {error}. "
                f"Run: modal secret create {SECRET} {TOKEN}=hf_..."
            ) from error

    def check_budget(self, store: Store) -> None:
        """There must be money left for each kind of job."""
        for kind in ("infer", "train"):
            Ledger(store).check(self._call(kind, key=""), self.max_usd)

    def check_weights(self, weights: Hub) -> None:
        """A model must be where a container finds it."""
        if weights.is_folder:
            raise ConfigurationError(
                f"a model must be on the hub to be used on Modal; {weights.repo} is a folder here. "
                "Upload it there, or run with --backend local"
            )

    async def examine(self, exams: Sequence[Exam]) -> dict[str, Any]:
        """What a container without a GPU says is installed there, and what is wrong with the models.

        Raises:
            JobError: No container came up, or it broke.
        """
        doctor = sdk().Function.from_name(APP, "doctor", environment_name=self.environment)
        job = {"exams": [exam.model_dump(mode="json") for exam in exams]}
        spawned = await patiently(lambda: doctor.spawn.aio(job, ""))
        call = self._call("doctor", key="", call=spawned.object_id)
        while True:
            answer = await patiently(lambda: poll(spawned, call, self.poll_seconds))
            if answer is not None:
                return answer

    async def is_over(self, call: Call, patience_minutes: float = 0.0) -> bool:
        """Whether a call has ended, in whatever way."""
        handle = sdk().FunctionCall.from_id(call.call)
        try:
            return await patiently(lambda: poll(handle, call, 0), patience_minutes) is not None
        except NoResultError:
            return True

    async def cancel(self, call: Call, store: Store) -> None:
        """Stop a call, and book what it cost until now."""
        handle, remote = sdk().FunctionCall.from_id(call.call), self._remote()
        # One that Modal has forgotten by now is over.
        with suppress(sdk().exception.NotFoundError):
            await patiently(handle.cancel.aio)
        sign = await patiently(lambda: remote.sign(call.key))
        Ledger(store).close(call, "cancelled", sign.seconds)

    async def _find_or_begin(self, job: Job, key: str, store: Store, progress: Progress) -> Artifact:
        ledger, remote = Ledger(store), self._remote()
        if call := ledger.find(key):
            # One that ended while nobody was there goes on below, from its checkpoints.
            with suppress(NoResultError):
                return await self._follow(call, remote, store, progress)
        if done := await self._patiently(lambda: remote.finished(key, store)):
            return done
        holder = await self._patiently(lambda: remote.holder(key))
        call = self._call(job.kind, key, holder)
        if holder and not await self.is_over(call, self.patience_minutes):
            # Begun by another machine, or by somebody who died before its id was on the disk.
            ledger.note(call)
            with suppress(NoResultError):
                return await self._follow(call, remote, store, progress)
        await self._prepare(job, remote, store, progress)
        call = await _uninterrupted(self._begin(job, key, ledger, over=holder))
        return await self._follow(call, remote, store, progress)

    async def _prepare(self, job: Job, remote: Remote, store: Store, progress: Progress) -> None:
        """See that everything the job needs is on Modal."""
        await self._patiently(self.check_deployment)
        if isinstance(job, Obtain) and isinstance(job.weights, Hub):
            self.check_weights(job.weights)
        for artifact in _inputs(job):
            weights = pointed_at(store.folder(artifact)) if artifact.kind == "model" else None
            if weights is not None:
                # Fetched by a container without a GPU, so that no GPU waits for a download.
                fetch = Obtain(weights=weights)
                await self.run(fetch, work_key({"job": fetch}), store, progress)
            await self._patiently(partial(remote.put, artifact, store))

    async def _begin(self, job: Job, key: str, ledger: Ledger, over: str) -> Call:
        """Set money aside, begin the call, and write it down, in this order."""
        call = self._call(job.kind, key)
        ledger.reserve(call, self.max_usd)
        function = sdk().Function.from_name(APP, _function(job), environment_name=self.environment)
        function = function.with_options(gpu=None if call.gpu == CPU else call.gpu, timeout=60 * call.minutes)
        try:
            # Not again when the connection breaks: it may have been begun.
            spawned = await patiently(lambda: function.spawn.aio(job.model_dump(mode="json"), key, [over]))
        except BaseException:
            ledger.forget(call)
            raise
        call = call.model_copy(update={"call": spawned.object_id})
        ledger.note(call)
        return call

    async def _follow(self, call: Call, remote: Remote, store: Store, progress: Progress) -> Artifact:
        """Wait for a call, bring its result home, and close its entry."""
        ledger = Ledger(store)
        try:
            answer = await self._answer(call, remote, store, progress)
        except NoResultError:
            done = await self._patiently(lambda: remote.finished(call.key, store))
            sign = await self._patiently(lambda: remote.sign(call.key))
            ledger.close(call, "done" if done else "failed", sign.seconds)
            if done is None:
                raise
            return done
        seconds = float(answer["seconds"])
        if "elsewhere" in answer:
            # Two calls began at the same time; this one has done nothing.
            ledger.close(call, "elsewhere", seconds)
            first = call.model_copy(update={"call": answer["elsewhere"]})
            ledger.note(first)
            return await self._follow(first, remote, store, progress)
        if "error" in answer:
            ledger.close(call, "refused", seconds)
            raise getattr(errors, answer["error"])(answer["message"])
        artifact = Artifact.model_validate(answer["artifact"])
        try:
            await self._patiently(lambda: remote.get(artifact, store))
        except ArtifactError:
            ledger.close(call, "lost", seconds)
            raise
        ledger.close(call, "done", seconds)
        return artifact

    async def _answer(self, call: Call, remote: Remote, store: Store, progress: Progress) -> dict[str, Any]:
        """What the call returned, once it has; one that costs more than there is is stopped."""
        handle = sdk().FunctionCall.from_id(call.call)
        while True:
            answer = await self._patiently(lambda: poll(handle, call, self.poll_seconds))
            if answer is not None:
                return answer
            sign = await self._patiently(lambda: remote.sign(call.key))
            progress(sign.fraction, sign.note or f"waiting for {call.gpu}")
            if Ledger(store).has_outgrown(call, sign.seconds, self.max_usd):
                await _uninterrupted(self.cancel(call, store))
                raise ConfigurationError(
                    f"max_usd must leave room for the attempts of {call.kind} on {call.gpu}, which worked "
                    f"{sign.seconds / 60:.0f} minutes; of {self.max_usd:.2f} nothing is left, and it was "
                    "stopped. Its checkpoints are kept: resume with --on max_usd=..."
                )

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        return await patiently(work, self.patience_minutes)

    async def _tags(self) -> dict[str, str]:
        modal = sdk()
        try:
            app = await modal.App.lookup.aio(APP, environment_name=self.environment)
            tags: dict[str, str] = await app.get_tags.aio()
        except modal.exception.NotFoundError as error:
            raise ConfigurationError(f"app {APP} must be deployed; it is not. Run: {self._deploy}") from error
        return tags

    @property
    def _deploy(self) -> str:
        where = f" --env {self.environment}" if self.environment else ""
        return f"modal deploy{where} -m {APP_MODULE}"

    def _remote(self) -> Remote:
        return Remote(sdk().Volume.from_name(ARTIFACTS, environment_name=self.environment))

    def _call(self, kind: str, key: str, call: str = "") -> Call:
        gpu = {"infer": self.infer_gpu, "train": self.train_gpu}.get(kind, CPU)
        return Call(
            key=key,
            kind=kind,
            environment=self.environment,
            call=call,
            gpu=gpu,
            minutes=getattr(self, f"{kind}_minutes", DOCTOR_MINUTES),
            usd_per_hour=self.price(gpu),
            priced=PRICED,
            begun=datetime.now(UTC),
        )

    def price(self, gpu: str) -> float:
        """USD an hour."""
        return (USD_PER_HOUR | self.usd_per_hour)[gpu]


def deployed_code() -> str:
    """The digest of all that is deployed, which a deployment carries as a tag; a tag holds 63 characters.

    That is this library, the app (its GPUs, time limits and retries), and the packages of its images with
    the hashes of their files.
    """
    lines = [package_digest(), module_digest(APP_MODULE)]
    images = Path(str(files(APP_MODULE.partition(".")[0]) / "images"))
    for lock in sorted(images.glob("*.txt")):
        pins = lock.read_text(encoding="utf-8").splitlines()
        lines += [lock.name, *(pin for pin in pins if not pin.startswith("#"))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


async def _uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Finish what must not be left half done before a cancellation goes on.

    In a loop and a thread of its own: a signal cancels everything that runs in this loop. Meanwhile this
    loop goes on, so that the other jobs of a run are stopped, too.
    """
    thread = ThreadPoolExecutor(1)
    future = asyncio.wrap_future(thread.submit(asyncio.run, work))
    thread.shutdown(wait=False)
    stopped: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            stopped = error
    if stopped:
        raise stopped from future.exception()
    return future.result()


def _function(job: Job) -> str:
    """The deployed function for a job; vLLM has one of its own, in an image of its own."""
    return "infer_vllm" if isinstance(job, Infer) and isinstance(job.engine, Vllm) else job.kind


def _inputs(job: Job) -> list[Artifact]:
    values = [getattr(job, name) for name in type(job).model_fields]
    return [value for value in values if isinstance(value, Artifact)]
