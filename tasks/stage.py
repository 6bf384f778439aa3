"""What turns a pure function into a cached, recorded, resumable Prefect task.

`@stage` sets, once for all stages: a cache key made of the inputs' content and of the code that really
runs; a record that is good only while the artifact it names is whole; a lock that dies with its holder;
and an entry in the run's journal.
"""

import inspect
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal, ParamSpec

from prefect import Task
from prefect.cache_policies import CachePolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.logging import get_run_logger
from prefect.serializers import Serializer
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH
from prefect.transactions import IsolationLevel

from calibration.artifacts import Artifact, Store, explaining_full_disk
from calibration.errors import ArtifactError, JobError
from calibration.jobs.work import work_key
from tasks.journal import current_journal
from tasks.locks import FlockManager

P = ParamSpec("P")

NOT_IDENTITY = frozenset({"on", "label"})
"""Parameters that change where or under what name work is done, never its result."""


class ByContent(CachePolicy):
    """A cache key from what the inputs hold and what the code does.

    Prefect's own policies hash the task's text but not what it calls, and leave out which task it is.
    """

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,  # noqa: ANN401 - Prefect's signature
    ) -> str:
        """`<stage>/<digest>.json`: also the record's path, so that the cache can be read by eye."""
        del flow_parameters, kwargs
        key = f"{task_ctx.task.name}/{stage_key(task_ctx.task.fn, inputs)}.json"
        if finding := _finding.get():
            finding.has_record = (PREFECT_LOCAL_STORAGE_PATH.value() / key).is_file()
        return key


def stage_key(function: Callable[..., object], inputs: dict[str, object]) -> str:
    """The digest that decides whether a stage's result can be used again."""
    modules, libraries = function.__calibration_stage__  # type: ignore[attr-defined]
    return work_key(
        {name: value for name, value in inputs.items() if name not in NOT_IDENTITY}, modules, libraries
    )


@dataclass
class Finding:
    """What is found of a stage's stored result. Prefect does not say why it runs a stage again."""

    has_record: bool = False
    is_read: bool = False
    damage: str = ""

    def note(self, state: str) -> str:
        """What was wrong, if anything was."""
        if state == "Cached":
            return ""
        is_garbled = self.has_record and not self.is_read
        return self.damage or ("its record in the cache could not be read" if is_garbled else "")


_finding: ContextVar[Finding | None] = ContextVar("finding", default=None)


class WholeArtifact(Serializer):
    """Stores a reference as JSON, and refuses to load one whose artifact is missing or altered.

    Prefect takes a record that cannot be loaded for no record, and runs the stage again.
    """

    type: Literal["whole-artifact"] = "whole-artifact"

    def dumps(self, obj: Artifact) -> bytes:
        """The reference as JSON."""
        return obj.model_dump_json().encode()

    def loads(self, blob: bytes) -> Artifact:
        """The reference, after reading every byte it refers to."""
        artifact = Artifact.model_validate_json(blob)
        damage = Store.from_environment().damage(artifact)
        if finding := _finding.get():
            finding.is_read, finding.damage = True, damage
        if damage:
            raise ArtifactError(damage)
        return artifact


@contextmanager
def _looking() -> Iterator[Finding]:
    """Take note of what is found of one stage's stored result."""
    finding = Finding()
    token = _finding.set(finding)
    try:
        yield finding
    finally:
        _finding.reset(token)


def has_died(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a job ended without a word, so that doing it again may help.

    One that refused its inputs would refuse them again. One that a backend itself has tried again, as Modal
    does, ends with an error of its own type: retries must not multiply.
    """
    return type(state.data) is JobError


def stage(
    *modules: str, libraries: tuple[str, ...] = (), name: str, retries: int = 0
) -> Callable[[Callable[P, Coroutine[Any, Any, Artifact]]], Callable[P, Coroutine[Any, Any, Artifact]]]:
    """Make a stage of an async function that returns an artifact.

    Args:
        modules: Where the code that decides the result starts; what it imports counts too.
        libraries: Distributions whose version decides the result.
        name: The name of one run, with the function's parameters in braces.
        retries: How often a job that has died is begun again.
    """

    def make(
        function: Callable[P, Coroutine[Any, Any, Artifact]],
    ) -> Callable[P, Coroutine[Any, Any, Artifact]]:
        function.__calibration_stage__ = (modules, libraries)  # type: ignore[attr-defined]
        task = Task(
            function,
            task_run_name=name,
            cache_policy=ByContent(),
            persist_result=True,
            result_serializer=WholeArtifact(),
            cache_result_in_memory=False,
            retries=retries,
            retry_condition_fn=has_died,
        )

        @wraps(function)
        async def run(*args: P.args, **kwargs: P.kwargs) -> Artifact:
            title = name.format(**inspect.signature(function).bind(*args, **kwargs).arguments)
            journal = current_journal()
            journal.start(title)
            locks = FlockManager(Store.from_environment().root / "locks")
            is_refreshed = journal.wants_refresh(title)
            once = task.with_options(
                cache_policy=ByContent(lock_manager=locks, isolation_level=IsolationLevel.SERIALIZABLE),
                refresh_cache=is_refreshed,
            )
            started = time.monotonic()
            with _looking() as finding:
                # Prefect's overload for `return_state` does not say that an async task's state is awaited.
                pending: Any = once(*args, return_state=True, **kwargs)
                state: State[Artifact] = await pending
            ended = state.name or str(state.type)
            note = "" if is_refreshed else finding.note(ended)
            if note:
                get_run_logger().warning("%s: %s; it is not used", title, note)
            journal.record(title, ended, time.monotonic() - started, note)
            with explaining_full_disk(Store.from_environment().root):
                artifact: Artifact = await state.aresult()
            return artifact

        return run

    return make
