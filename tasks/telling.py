"""What is told to the Prefect UI, on which nothing else hangs."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx
from prefect.logging import get_run_logger

from tasks.journal import current_journal

T = TypeVar("T")


async def tell(what: Callable[[], Awaitable[T]]) -> T | None:
    """Tell the server something; None when it cannot be told, which must not end work that goes well.

    Prefect's client has tried several times by then; to a server that stays out of reach nothing more is told
    in this run.
    """
    journal = current_journal()
    if journal.is_server_lost:
        return None
    try:
        return await what()
    except httpx.TransportError as error:
        journal.is_server_lost = True
        get_run_logger().warning("the Prefect server is out of reach (%s); the run goes on", error)
    except httpx.HTTPStatusError as error:
        get_run_logger().warning("the Prefect server would not hear of it (%s); the run goes on", error)
    return None
