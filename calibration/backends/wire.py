"""Talking to Modal, and what its answers say about a job, or only about the way there."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from calibration.backends.ledger import Call
from calibration.errors import ConfigurationError, JobError

if TYPE_CHECKING:
    import modal

T = TypeVar("T")

APP = "slm-calibration"
RETRY_SECONDS = 2.0


def sdk() -> ModuleType:
    """Modal's own package.

    Raises:
        ConfigurationError: It is not installed.
    """
    try:
        import modal
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "backend modal must have the package modal; it is not installed. "
            "Run: pip install 'slm-calibration[modal]'"
        ) from error
    return modal


class OutOfReachError(JobError):
    """Modal could not be reached, which says nothing about a job: it may have been begun, and go on."""


async def patiently(work: Callable[[], Awaitable[T]], minutes: float = 0.0) -> T:
    """Try until a lost connection is back: that Modal is out of reach says nothing about a job.

    Raises:
        ConfigurationError: Modal does not know who asks.
        OutOfReachError: It was out of reach for so many minutes.
    """
    began = time.monotonic()
    while True:
        try:
            return await work()
        except sdk().exception.AuthError as error:
            words = str(error).rstrip(".")
            raise ConfigurationError(f"Modal must know who you are; {words}. Run: modal setup") from error
        except _lost() as error:
            if time.monotonic() - began >= 60 * minutes:
                words = str(error).rstrip(".")
                raise OutOfReachError(
                    f"Modal must be within reach; {type(error).__name__}: {words}. Jobs that were begun go "
                    "on there, and the next run finds them: slm-calibration resume latest"
                ) from error
        await asyncio.sleep(RETRY_SECONDS)


class NoResultError(JobError):
    """A call that is over and returned nothing."""


async def poll(
    handle: "modal.FunctionCall[dict[str, Any]]", call: Call, seconds: float
) -> dict[str, Any] | None:
    """What a call returned; None while it is running."""
    modal = sdk()
    ended = {
        modal.exception.FunctionTimeoutError: f"exceeded {call.minutes} minutes in every attempt",
        modal.exception.RemoteError: "was cancelled, or its app stopped",
        modal.exception.InternalFailure: "lost its container in every attempt",
        modal.exception.OutputExpiredError: "left nothing behind",
        modal.exception.NotFoundError: "left nothing behind",
        modal.exception.ExecutionError: "broke",
    }
    try:
        return await handle.get.aio(timeout=seconds)
    except TimeoutError:
        # Python's own; Modal's errors of that name mean other things.
        return None
    except Exception as error:
        how = ended.get(type(error))
        if how is None and isinstance(error, (modal.exception.Error, *_lost())):
            # About Modal or the way there, not about the job.
            raise
        words = " ".join(str(error).split()).rstrip(".")
        raise NoResultError(
            f"{call.kind} on {call.gpu} {how or 'broke'}: {words}. Its messages: modal app logs {APP} "
            f"--function-call {call.call}"
        ) from error


def _lost() -> tuple[type[Exception], ...]:
    """Errors that say that Modal is out of reach, and nothing else."""
    import aiohttp
    from grpclib.exceptions import ProtocolError, StreamTerminatedError

    modal = sdk().exception
    return (
        *(modal.ConnectionError, modal.ServiceError, modal.InternalError, modal.ResourceExhaustedError),
        *(ConnectionError, TimeoutError, aiohttp.ClientError, ProtocolError, StreamTerminatedError),
    )
