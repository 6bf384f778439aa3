"""The HTTP client of every judge that asks a service. What it is given to send goes to one address only.

- No redirect is followed: the key and the prompt are for the address that was named.
- No header is sent but those that a request needs: the services' clients add what they find in variables.
- No reply longer than a verdict can be is read, and none that was compressed, which a small one can be of
  gigabytes. Either would hold up all other requests.
- A server on this machine is asked directly. A proxy is for what lies outside.

Importing this module loads the client, so it is imported by what opens a connection.
"""

from collections.abc import AsyncIterator, Collection
from functools import partial

import httpx2

from calibration.endpoints import is_local
from calibration.judges.provider import MOST_BYTES, SendError, Trouble

HEADERS = frozenset(
    (
        *("host", "accept", "accept-encoding", "connection", "user-agent", "content-type", "content-length"),
        *("authorization", "x-goog-api-key"),
    )
)
OWN = "x-stainless-"
"""How OpenAI's client begins the headers by which it tells itself, and the server, what it is."""


class UnfitReplyError(httpx2.HTTPError):
    """A reply that is not read."""

    def __init__(self, trouble: Trouble, detail: str) -> None:
        """Say what is wrong with it.

        Args:
            trouble: What that means for the request.
            detail: A few words.
        """
        super().__init__(detail)
        self.trouble = trouble


def client(url: str, most_bytes: int = MOST_BYTES, also: Collection[str] = ()) -> httpx2.AsyncClient:
    """A client for one service; whoever uses it limits time and the number of connections.

    Args:
        url: Where the service is.
        most_bytes: The longest reply that is read.
        also: Further headers that may be sent to it, in lower case.
    """
    return httpx2.AsyncClient(
        timeout=None,
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        trust_env=not is_local(url),
        follow_redirects=False,
        headers={"Accept-Encoding": "identity"},
        event_hooks={
            "request": [partial(_strip, allowed=HEADERS.union(also))],
            "response": [partial(_check, most_bytes=most_bytes)],
        },
    )


def trouble_of(error: BaseException) -> SendError:
    """What went wrong on the way, in our words: the client's own error holds the request and its key."""
    if isinstance(error, UnfitReplyError):
        return SendError(error.trouble, str(error))
    never_left = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
    words = " ".join(f"{type(error).__name__} {error}".split())
    return SendError("failed", f"no connection: {words}") if never_left else SendError("lost", words[:300])


async def _strip(request: httpx2.Request, allowed: Collection[str]) -> None:
    for name in [name for name in request.headers if name not in allowed and not name.startswith(OWN)]:
        del request.headers[name]


async def _check(response: httpx2.Response, most_bytes: int) -> None:
    """Look at the head of a reply, before its body is read.

    Raises:
        UnfitReplyError: The body must not be read.
    """
    if 300 <= response.status_code < 400:
        raise UnfitReplyError("failed", f"{response.status_code}: a redirect, which is not followed")
    if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise UnfitReplyError("lost", f"a reply in the encoding {encoding[:20]!r}, which was not asked for")
    if not isinstance(response.stream, httpx2.AsyncByteStream):  # as an asynchronous client has it
        raise TypeError("the stream of a reply must be an AsyncByteStream")
    response.stream = _Short(response.stream, most_bytes)


class _Short(httpx2.AsyncByteStream):
    """The body of a reply, as far as it is no longer than it may be."""

    def __init__(self, stream: httpx2.AsyncByteStream, most_bytes: int) -> None:
        self._stream, self._most = stream, most_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._most
        async for chunk in self._stream:
            left -= len(chunk)
            if left < 0:
                raise UnfitReplyError("lost", f"a reply of more than {self._most:,} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
