"""Cancel in the Prefect UI, wherever the run was started."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

LOOK_SECONDS = 3.0


@contextmanager
def heeding_cancellation() -> Iterator[None]:
    """Cancel the flow that runs here, and all its jobs with it, when its run is cancelled on the server.

    Prefect tells only a process that one of its runners or workers started, not a command line.
    """
    context, here = FlowRunContext.get(), asyncio.current_task()
    if context is None or context.flow_run is None or here is None:
        yield
        return
    watcher = asyncio.create_task(_watch(context.flow_run.id, here))
    try:
        yield
    finally:
        watcher.cancel()


async def _watch(run: UUID, flow: asyncio.Task[object]) -> None:
    async with get_client() as client:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            # A server that is out of reach has cancelled nothing.
            with suppress(httpx.HTTPError):
                state = (await client.read_flow_run(run)).state
                # A run that no runner started goes straight to Cancelled.
                if state is not None and (state.is_cancelling() or state.is_cancelled()):
                    flow.cancel()
                    return
