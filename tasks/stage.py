"""What turns a pure function into a cached, recorded, resumable Prefect task.

`@stage` sets, once for all stages: a cache key made of the inputs' content and of the code that really
runs; a record that is good only while the artifact it names is whole; a lock that dies with its holder;
and an entry in the run's journal.
"""

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import wraps
from typing import Any, ParamSpec

from prefect import Task
from prefect.cache_policies import CachePolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.logging import get_run_logger
from prefect.transactions import IsolationLevel

from calibration.artifacts import Artifact, Store, explaining_full_disk
from calibration.errors import JobError
from calibration.jobs.work import work_key
from calibration.schema import Schema
from calibration.shared import Shared
from tasks.cached import WholeArtifact, check_record, looking
from tasks.journal import current_journal
from tasks.shared import locks_of, records_of

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
        check_record(key)
        return key


def stage_key(function: Callable[..., object], inputs: dict[str, object]) -> str:
    """The digest that decides whether a stage's result can be used again."""
    modules, libraries = function.__calibration_stage__  # type: ignore[attr-defined]
    return work_key(
        {name: value for name, value in inputs.items() if name not in NOT_IDENTITY}, modules, libraries
    )


def artifacts_in(value: object) -> list[Artifact]:
    """The references found in a value, however deep."""
    if isinstance(value, Artifact):
        return [value]
    if isinstance(value, Schema):
        return artifacts_in([getattr(value, name) for name in type(value).model_fields])
    if isinstance(value, Mapping):
        return artifacts_in([*value.values()])
    if isinstance(value, list | tuple):
        return [artifact for item in value for artifact in artifacts_in(item)]
    return []


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

        @wraps(function)
        async def put(*args: P.args, **kwargs: P.kwargs) -> Artifact:
            artifact = await function(*args, **kwargs)
            if (shared := Shared.from_environment()) is not None:
                await asyncio.to_thread(shared.put, artifact, Store.from_environment())
            return artifact

        task = Task(
            put,
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
            bound = inspect.signature(function).bind(*args, **kwargs)
            bound.apply_defaults()
            title = name.format(**bound.arguments)
            journal = current_journal()
            journal.start(title)
            shared, is_refreshed = Shared.from_environment(), journal.wants_refresh(title)
            locks = locks_of(Store.from_environment(), shared)
            once = task.with_options(
                cache_policy=ByContent(lock_manager=locks, isolation_level=IsolationLevel.SERIALIZABLE),
                refresh_cache=is_refreshed,
                result_storage=await records_of(shared),
            )
            started = time.monotonic()
            with looking() as finding:
                # Prefect's overload for `return_state` does not say that an async task's state is awaited.
                pending: Any = once(*args, return_state=True, **kwargs)
                state: State[Artifact] = await pending
            seconds, made = time.monotonic() - started, await state.aresult(raise_on_failure=False)
            ended = state.name or str(state.type)
            note = "" if is_refreshed or ended == "Cached" else finding.damage
            if note:
                get_run_logger().warning("%s: %s; it is not used", title, note)
            if isinstance(made, Artifact):
                journal.use(*artifacts_in([made, bound.arguments]), record=finding.record)
            journal.record(title, ended, seconds, note)
            with explaining_full_disk(Store.from_environment().root):
                return made if isinstance(made, Artifact) else await state.aresult()

        return run

    return make
