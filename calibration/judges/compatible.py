"""Any server that speaks OpenAI's chat completions, by OpenAI's own client.

vLLM, llama.cpp, Ollama, OpenRouter and many more do. Nothing of the client's leaves this module.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from calibration.errors import ConfigurationError
from calibration.judges.cases import JudgeProtocol
from calibration.judges.language import LanguageJudge
from calibration.judges.provider import (
    LOOPBACK,
    Connection,
    Reply,
    SendError,
    Usage,
    seconds_until,
    without_key,
)
from calibration.judges.replies import SCHEMA
from calibration.records import Question

_OPENAI = "https://api.openai.com/v1"
_DUMMY = "none"
"""The client insists on a key; what a server without keys is sent."""
_NO_MONEY = frozenset(("insufficient_quota", "billing_hard_limit_reached", "billing_not_active"))
_FLAGGED = re.compile(r"content_filter|content_policy|flagged")
_THOUGHTS = re.compile(r"\A\s*<think>.*?(?:</think>|\Z)", re.DOTALL)
"""What a server without a parser for thoughts leaves before the reply."""

ReplyFormat = Literal["json_schema", "json_object", "none"]
Temperature = Annotated[float, Field(ge=0, le=2)] | Literal["default"]


class CompatibleProtocol(JudgeProtocol):
    """What decides a verdict, with what is left open by these servers only."""

    reply_format: ReplyFormat
    temperature: Temperature


class OpenAiCompatible(LanguageJudge):
    """Asks a model through OpenAI's chat completions, at OpenAI or at any server that speaks them.

    The key comes from the environment and is kept nowhere. A server on this machine needs none.
    """

    provider: ClassVar[str] = "openai"

    kind: Literal["openai"] = "openai"
    base_url: str | None = None
    """Where the server is, such as `http://localhost:8000/v1`; unset, OPENAI_BASE_URL or else OpenAI."""
    service: str | None = Field(default=None, min_length=1)
    """Name of the service in reports and in the keys of kept verdicts, so that equal model names of two
    services stay apart; unset, `openai`, or for another server its host. Give one to keep the verdicts of a
    server that moves."""
    key_variable: str = Field(default="OPENAI_API_KEY", pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")
    """Name of the environment variable that holds the key; empty for a server that asks for none."""
    reply_format: ReplyFormat = "json_schema"
    """How the server is told what to reply: by a JSON schema, as some JSON object, or by the prompt alone,
    for servers that lack the others. The reply is read just as strictly."""
    temperature: Temperature = 0.0
    """Sampling temperature; `default` sends none, for models that refuse one."""
    limit_name: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    """What the server calls the limit of the reply; older ones know `max_tokens` only."""
    served_as: tuple[str, ...] = ()
    """Other names under which the server reports this model, such as a path or an alias. A reply by any name
    that is neither among these nor the model's own stops the run."""

    @property
    def protocol(self) -> CompatibleProtocol:
        """All that decides a verdict."""
        shared = super().protocol.model_dump() | {"provider": self.service or _service(self.url)}
        return CompatibleProtocol(**shared, reply_format=self.reply_format, temperature=self.temperature)

    @property
    def url(self) -> str:
        """Where requests go."""
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI

    def check(self, questions: Sequence[Question]) -> None:
        """As of every language-model judge, and that there are an address and, where one is needed, a key.

        Raises:
            ConfigurationError: In one sentence, before anything is sent.
        """
        super().check(questions)
        if self.thinking and self.thinking.isdigit():
            raise ConfigurationError(
                f"judge.thinking of an OpenAI-compatible server must be a level, such as low; "
                f"got {self.thinking!r}"
            )
        place = urlsplit(self.url)
        if place.scheme not in ("http", "https") or not place.hostname or place.username:
            shown = self.url.replace(f"{place.username}:{place.password}@", "[user and password]@")
            raise ConfigurationError(
                "judge.base_url must be an http or https address with a host and without a password; "
                f"got {shown!r}"
            )
        if self.key_variable and not self._key() and place.hostname not in LOOPBACK:
            raise ConfigurationError(
                f"judge openai must have a key for {place.hostname}; {self.key_variable} is not set. Set it, "
                'or if the server asks for none give key_variable = ""'
            )

    def connect(self) -> Connection:
        """A connection that opens when something is sent."""
        return CompatibleWire(
            self.url, self._key(), self._fixed(), self.limit_name, self.served_as, self.model
        )

    def _key(self) -> str:
        return os.environ.get(self.key_variable, "").strip() if self.key_variable else ""

    def _fixed(self) -> dict[str, Any]:
        """What is the same in every request."""
        fixed: dict[str, Any] = {"model": self.model}
        if self.temperature != "default":
            fixed["temperature"] = self.temperature
        if self.protocol.thinking != "default":
            fixed["reasoning_effort"] = self.protocol.thinking
        if self.reply_format == "json_schema":
            schema = {"name": "verdict", "strict": True, "schema": SCHEMA}
            fixed["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self.reply_format == "json_object":
            fixed["response_format"] = {"type": "json_object"}
        return fixed


class CompatibleWire:
    """One client, one connection pool, one request for each `send`."""

    reader = "openai@1"

    def __init__(
        self,
        url: str,
        key: str,
        fixed: Mapping[str, Any],
        limit_name: str,
        served_as: Sequence[str],
        model: str,
    ) -> None:
        """Remember what to ask; nothing is opened.

        Args:
            url: Where the server is.
            key: Its key; empty when it asks for none.
            fixed: What is the same in every request.
            limit_name: What the server calls the limit of the reply.
            served_as: Other names of the model.
            model: The model's own name.
        """
        self._url, self._key, self._fixed, self._limit_name = url, key, fixed, limit_name
        self._served_as, self._model = frozenset(served_as), model
        self._client: Any = None

    async def __aenter__(self) -> Self:
        """Nothing to do before something is sent."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close what was opened."""
        if self._client:
            await self._client.close()

    def _open(self) -> None:
        import httpx2
        import openai

        # A proxy is for what lies outside. The window limits the connections, and the caller the time.
        http = httpx2.AsyncClient(
            timeout=None,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=urlsplit(self._url).hostname not in LOOPBACK,
            follow_redirects=True,
        )
        self._client = openai.AsyncOpenAI(
            api_key=self._key or _DUMMY, base_url=self._url, max_retries=0, timeout=None, http_client=http
        )

    async def send(self, prompt: str, max_output_tokens: int) -> str:
        """The body of the reply, as it came."""
        if self._client is None:
            self._open()
        import httpx2
        import openai

        try:
            response = await self._client.chat.completions.with_raw_response.create(
                messages=[{"role": "user", "content": prompt}],
                **self._fixed,
                **{self._limit_name: max_output_tokens},
            )
            return without_key(response.content.decode("utf-8", "replace"), self._key)
        except openai.APIStatusError as error:
            failure = _refusal(error.status_code, error.body, error.response.headers)
        except openai.APIConnectionError as error:
            cause = error.__cause__
            never_left = isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout)
            failure = SendError("failed" if never_left else "lost", f"no connection: {cause!r}")
        except (openai.OpenAIError, httpx2.HTTPError, OSError, ValueError) as error:
            failure = SendError("lost", f"{type(error).__name__}: {error}")
        # Raised here, it does not carry the client's error, which holds the key, along.
        failure.detail = without_key(failure.detail, self._key)
        raise failure

    def read(self, body: str) -> Reply:
        """What a body says; `lost` when it is no reply."""
        try:
            wire = _Body.model_validate_json(body)
        except ValidationError:
            raise SendError("lost", "a reply that is no JSON of the kind") from None
        if not wire.choices or wire.choices[0].finish_reason == "error":
            raise SendError("lost", "a reply without choices")
        message, finish = wire.choices[0].message, wire.choices[0].finish_reason or "no reason"
        is_blocked = finish == "content_filter" or bool(message.refusal)
        return Reply(
            text=_THOUGHTS.sub("", message.text),
            end="blocked" if is_blocked else "cut" if finish == "length" else "whole",
            why="refusal" if message.refusal else finish,
            usage=wire.usage.usage if wire.usage else None,
            model_version=self._model if wire.model in self._served_as else wire.model or None,
            response_id=wire.id,
        )


def _service(url: str) -> str:
    """What the service at an address is called.

    >>> _service("https://api.openai.com/v1"), _service("http://localhost:8000/v1")
    ('openai', 'localhost:8000')
    """
    host = urlsplit(url).netloc.rpartition("@")[2]
    return "openai" if host == urlsplit(_OPENAI).netloc else host


def _refusal(status: int, body: object, headers: Mapping[str, str]) -> SendError:
    """What an error of the server means for the request, and for all others."""
    told = body if isinstance(body, dict) else {"message": str(body or "")}
    code = str(told.get("code") or told.get("type") or "")
    detail = f"{status} {code}: {str(told.get('message') or '')[:300]}"
    retry_after = seconds_until(headers.get("Retry-After"))
    if status == 402 or code in _NO_MONEY:
        return SendError("fatal", f"{detail} There is no money left with the service", status)
    if status == 429 or (status in (503, 529) and retry_after is not None):
        return SendError("throttled", detail, status, retry_after)
    if status in (400, 403) and _FLAGGED.search(f"{code} {told}"):
        return SendError("rejected", detail, status)  # this text, and no other
    if status in (401, 403, 404):
        return SendError("fatal", detail, status)
    return SendError("failed" if status in (408, 409, 425) or status >= 500 else "rejected", detail, status)


class _Wire(BaseModel):
    """A part of a reply as it is sent; what is not read here is let pass."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


class _Part(_Wire):
    text: str = ""


class _Message(_Wire):
    content: str | tuple[_Part, ...] | None = None
    refusal: str | None = None

    @property
    def text(self) -> str:
        """The reply; some servers send it in parts."""
        if isinstance(self.content, tuple):
            return "".join(part.text for part in self.content)
        return self.content or ""


class _Choice(_Wire):
    message: _Message
    finish_reason: str | None = None


class _PromptDetails(_Wire):
    cached_tokens: NonNegativeInt | None = None


class _OutputDetails(_Wire):
    reasoning_tokens: NonNegativeInt | None = None


class _Usage(_Wire):
    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt = 0
    total_tokens: NonNegativeInt | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _OutputDetails | None = None

    @property
    def usage(self) -> Usage:
        """Tokens as billed. Most servers count thoughts within the completion, and some beside it."""
        cached = self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None
        details = self.completion_tokens_details
        thoughts = (details.reasoning_tokens if details else None) or 0
        billed = max(self.completion_tokens, (self.total_tokens or 0) - self.prompt_tokens)
        thoughts = min(thoughts, billed)
        return Usage(
            prompt=self.prompt_tokens,
            cached=min(cached or 0, self.prompt_tokens),
            output=billed - thoughts,
            thoughts=thoughts,
        )


class _Body(_Wire):
    id: str | None = None
    model: str | None = None
    choices: tuple[_Choice, ...] | None = None
    usage: _Usage | None = None
