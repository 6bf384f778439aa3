"""What a language-model service must do to judge: send one prompt, and read one reply."""

import json
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

Trouble = Literal["throttled", "failed", "lost", "rejected", "fatal"]
"""Why no reply came. `throttled`: too many requests. `failed`: the service said that it could not, and
bills nothing. `lost`: a request went out and no whole reply came back; it may have been billed.
`rejected`: this request will never be accepted. `fatal`: no request will."""


MOST_BYTES = 1_000_000
"""The longest reply to one request that is read; a verdict takes a few thousand."""

SECRET = 16
"""Characters of the shortest key that is hidden. A dummy, such as "x", occurs in every reply."""


class SendError(Exception):
    """A request without a reply. It holds plain values only and never leaves the judge."""

    def __init__(
        self, trouble: Trouble, detail: str, status: int | None = None, retry_after: float | None = None
    ) -> None:
        """Say what went wrong.

        Args:
            trouble: Which kind.
            detail: A few words; must hold no key.
            status: The HTTP status, if there was one.
            retry_after: Seconds after which the service wants to be asked again, if it said so.
        """
        super().__init__(detail)
        self.trouble, self.detail, self.status = trouble, whole_text(detail), status
        self.retry_after = retry_after


@dataclass(frozen=True)
class Usage:
    """Tokens of one or many requests, as the service counted them."""

    prompt: int = 0
    """Cached ones included."""
    cached: int = 0
    output: int = 0
    """Without thoughts."""
    thoughts: int = 0


@dataclass(frozen=True)
class Reply:
    """What the service said, whichever it is."""

    text: str
    end: Literal["whole", "cut", "blocked"]
    """Whether the model ended by itself, ran into its token limit, or was stopped for the content."""
    why: str
    """The service's own word for the end."""
    usage: Usage | None
    """None when it was not told: the cost is then unknown, and not nothing."""
    model_version: str | None
    response_id: str | None


class Provider(Protocol):
    """An open connection to a service."""

    reader: str
    """Name and version of `read`; kept replies are read again when it changes."""

    async def send(self, prompt: str, max_output_tokens: int) -> str:
        """The body of the service's reply, as it came.

        Sends exactly one request. Takes as long as it takes: the caller sets the time limit.

        Raises:
            SendError: There is no reply.
        """

    def read(self, body: str) -> Reply:
        """What a body says.

        Raises:
            SendError: It is no reply; of the kind `lost`.
        """


Connection = AbstractAsyncContextManager[Provider]


def _or_nothing(value: object, read: ValidatorFunctionWrapHandler) -> Any:  # noqa: ANN401 - as pydantic has it
    try:
        return read(value)
    except ValidationError:
        return None


OrNothing = WrapValidator(_or_nothing)
"""Of a part of a reply that only the books need: None where it is not of its kind. It voids no verdict."""
Count = Annotated[int, Field(ge=0, le=10**12)]
"""Tokens, as a service counts them. More than that no request has used."""


def without_key(text: str, key: str) -> str:
    """The text without the key, should the service have echoed it.

    >>> without_key("bad key 0123456789abcdef", "0123456789abcdef"), without_key("an x", "x")
    ('bad key [key]', 'an x')
    """
    return text.replace(key, "[key]") if len(key) >= SECRET else text


def whole_text(text: str) -> str:
    """The text with a question mark for each half of a character, which can be kept nowhere.

    >>> whole_text("caf" + chr(0xD800)), whole_text("cafe")
    ('caf?', 'cafe')
    """
    return text.encode("utf-8", "replace").decode()


def whole_json(body: str) -> bytes:
    """The same JSON in UTF-8, made readable for those who take no half of a character.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        return json.dumps(json.loads(body), ensure_ascii=False).encode("utf-8", "replace")
    except RecursionError:
        raise ValueError("nested too deeply") from None


def seconds_until(text: str | None) -> float | None:
    """Seconds in a Retry-After header: a number, or a date; None for anything else.

    >>> seconds_until("2.5"), seconds_until("soon"), seconds_until(None)
    (2.5, None, None)
    """
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
