"""Any server that speaks OpenAI's chat completions, by OpenAI's own client.

vLLM, llama.cpp, Ollama, OpenRouter and many more do. Nothing of the client's leaves this module.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from calibration.endpoints import Endpoint, check_address, is_local, origin
from calibration.errors import ConfigurationError
from calibration.judges.cases import JudgeProtocol
from calibration.judges.keys import check_name, check_owner
from calibration.judges.language import LanguageJudge
from calibration.judges.provider import (
    Connection,
    Count,
    OrNothing,
    Reply,
    SendError,
    Usage,
    seconds_until,
    whole_json,
    without_key,
)
from calibration.judges.replies import SCHEMA
from calibration.records import Question

_OPENAI, _OPENAI_KEY = "https://api.openai.com/v1", "OPENAI_API_KEY"
_DUMMY = "none"
"""The client insists on a key; what a server without keys is sent."""
_OF_OPENAI = ("openai-organization", "openai-project")
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
    key_variable: str | None = None
    """Name of the environment variable that holds the key, such as OPENROUTER_API_KEY; empty for a server
    that asks for none. Unset, OPENAI_API_KEY at OpenAI and where OPENAI_BASE_URL points, and none on this
    machine. The key of a service that is known is sent to that service only."""
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

    @field_validator("key_variable")
    @classmethod
    def _may_hold_a_key(cls, name: str | None) -> str | None:
        return check_name(name) if name else name

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
        check_address(self.url, "judge.base_url" if self.base_url else "OPENAI_BASE_URL")
        if self.base_url or self.key_variable not in (None, _OPENAI_KEY):
            check_owner(self._variable, self.url)
        if self.key_variable == "" or is_local(self.url) or self._key():
            return
        wants = (
            f"{self._variable} is not set. Set it"
            if self._variable
            else (
                'none is named. Put it in a variable and name it, as by judge.key_variable = "MINE_API_KEY"'
            )
        )
        raise ConfigurationError(
            f"judge openai must have a key for {urlsplit(self.url).hostname}; {wants}, or if the server asks "
            'for none give key_variable = ""'
        )

    @property
    def endpoint(self) -> Endpoint:
        """The server, and the variable of its key if there is one."""
        return Endpoint(
            address=origin(self.url),
            receives=self.receives,
            key=self._variable if self._key() else "",
            setting="judge.base_url" if self.base_url else "",
        )

    def connect(self) -> Connection:
        """A connection that opens when something is sent."""
        return CompatibleWire(
            self.url, self._key(), self._fixed(), self.limit_name, self.served_as, self.model
        )

    @property
    def _variable(self) -> str:
        """The variable of the key; empty where there is none to send."""
        if self.key_variable is not None:
            return self.key_variable
        is_theirs = not self.base_url or origin(self.base_url) == origin(_OPENAI)
        return _OPENAI_KEY if is_theirs else ""

    def _key(self) -> str:
        return os.environ.get(self._variable, "").strip() if self._variable else ""

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
        import openai

        from calibration.judges.guarded import client

        key, is_openai = self._key or _DUMMY, origin(self._url) == origin(_OPENAI)
        self._client = openai.AsyncOpenAI(
            api_key=key,
            base_url=self._url,
            max_retries=0,
            timeout=None,
            # Named here as well, so that no variable of the client's own replaces it.
            default_headers={"Authorization": f"Bearer {key}"},
            http_client=client(self._url, also=_OF_OPENAI if is_openai else ()),
        )

    async def send(self, prompt: str, max_output_tokens: int) -> str:
        """The body of the reply, as it came."""
        if self._client is None:
            self._open()
        import httpx2
        import openai

        from calibration.judges.guarded import trouble_of

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
            failure = trouble_of(error.__cause__ or error)
        except (openai.OpenAIError, httpx2.HTTPError, OSError, ValueError) as error:
            failure = trouble_of(error)
        # Raised here, it does not carry the client's error, which holds the key, along.
        failure.detail = without_key(failure.detail, self._key)
        raise failure

    def read(self, body: str) -> Reply:
        """What a body says; `lost` when it is no reply."""
        try:
            wire = _Body.model_validate_json(whole_json(body))
        except ValueError:  # pydantic's own error is one
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
    finish_reason: Annotated[str | None, OrNothing] = None


class _PromptDetails(_Wire):
    cached_tokens: Count | None = None


class _OutputDetails(_Wire):
    reasoning_tokens: Count | None = None


class _Usage(_Wire):
    prompt_tokens: Count
    completion_tokens: Count = 0
    total_tokens: Annotated[Count | None, OrNothing] = None
    prompt_tokens_details: Annotated[_PromptDetails | None, OrNothing] = None
    completion_tokens_details: Annotated[_OutputDetails | None, OrNothing] = None

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
    id: Annotated[str | None, OrNothing] = None
    model: str | None = None
    choices: tuple[_Choice, ...] | None = None
    usage: Annotated[_Usage | None, OrNothing] = None
