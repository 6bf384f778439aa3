"""Gemini, by Google's own client. Nothing of the client's leaves this module, least of all its errors."""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from calibration.endpoints import Endpoint, check_address, origin
from calibration.errors import ConfigurationError
from calibration.judges.language import LanguageJudge
from calibration.judges.provider import (
    MOST_BYTES,
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

_HARMS = ("HARASSMENT", "HATE_SPEECH", "SEXUALLY_EXPLICIT", "DANGEROUS_CONTENT")
_BLOCKED = frozenset(
    ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE", "IMAGE_SAFETY")
)
_CUT = frozenset(("MAX_TOKENS", "CONTINUATION"))


GOOGLE, GATEWAY = "https://generativelanguage.googleapis.com", "GOOGLE_GEMINI_BASE_URL"
API = "v1"
KEYS = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
"""Where Google's own client looks for the key, in this order."""
BATCH = "gemini-batch"
"""Whose requests those of the Batch API are in the ledger."""
BATCH_SHARE = 0.5
"""What they cost, as a share of the price."""


class Gemini(LanguageJudge):
    """Asks a Gemini model. The key comes from GEMINI_API_KEY or GOOGLE_API_KEY and is kept nowhere.

    GOOGLE_GEMINI_BASE_URL points it at a gateway.
    """

    provider: ClassVar[str] = "gemini"

    kind: Literal["gemini"] = "gemini"
    model: str = Field(default="gemini-3.5-flash-lite", min_length=1)
    """The model that judges."""

    def check(self, questions: Sequence[Question]) -> None:
        """As of every language-model judge, and that there is a key."""
        super().check(questions)
        check_address(_url(), GATEWAY)
        _key()

    @property
    def endpoint(self) -> Endpoint:
        """Google, or the gateway that GOOGLE_GEMINI_BASE_URL names."""
        return Endpoint(address=origin(_url()), receives=self.receives, key=_key_variable())

    @property
    def purse(self) -> Mapping[str, float]:
        """Single requests and those of batches: one account pays for both."""
        return {self.provider: 1.0, BATCH: BATCH_SHARE}

    def connect(self) -> Connection:
        """A connection that opens when something is sent."""
        return GeminiWire(self.model, self.protocol.thinking)


class GeminiWire:
    """One client, one connection pool, one request for each `send`."""

    reader = "gemini@1"
    most_bytes = MOST_BYTES
    """The longest reply that is read."""

    def __init__(self, model: str, thinking: str) -> None:
        """Remember what to ask; nothing is opened."""
        self._model, self._thinking = model, thinking
        self._url = ""
        self._client: Any = None
        self._http: Any = None
        self._configs: dict[int, Any] = {}
        self._key = ""

    async def __aenter__(self) -> Self:
        """Nothing to do before something is sent."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close what was opened."""
        if self._client:
            self._client.close()
            await self._http.aclose()

    def _open(self) -> None:
        from google import genai
        from google.genai import types

        from calibration.judges.guarded import client

        self._key, self._url = _key(), _url()
        self._http = client(self._url, self.most_bytes)
        # With retry options of our own, and one attempt, the client neither repeats nor hides a request.
        self._client = genai.Client(
            api_key=self._key,
            enterprise=False,
            http_options=types.HttpOptions(
                base_url=self._url,
                api_version=API,
                httpx_async_client=self._http,
                retry_options=types.HttpRetryOptions(attempts=1),
            ),
        )

    async def send(self, prompt: str, max_output_tokens: int) -> str:
        """The body of the reply, as it came."""
        if max_output_tokens not in self._configs:
            self._configs[max_output_tokens] = self._config(max_output_tokens)
        response = await self._call(
            lambda client: client.models.generate_content(
                model=self._model, contents=prompt, config=self._configs[max_output_tokens]
            )
        )
        return without_key(response.sdk_http_response.body or "", self._key)

    async def _call(self, call: Callable[[Any], Awaitable[Any]]) -> Any:  # noqa: ANN401 - the client's classes
        """What a call of the client returns, with the client's errors put in our words.

        Raises:
            SendError: It returns nothing.
        """
        if self._client is None:
            self._open()
        import httpx2
        from google.genai import errors

        from calibration.judges.guarded import trouble_of

        try:
            return await call(self._client.aio)
        except errors.APIError as error:
            failure = _refusal(error)
        except (httpx2.HTTPError, OSError, ValueError) as error:
            failure = trouble_of(error)
        # Raised here, it does not carry the client's error, which cannot leave the process, along.
        failure.detail = without_key(failure.detail, self._key)
        raise failure

    def read(self, body: str) -> Reply:
        """What a body says; `lost` when it is no reply."""
        try:
            wire = _Body.model_validate_json(whole_json(body))
        except ValueError:  # pydantic's own error is one
            raise SendError("lost", "a reply that is no JSON of the kind") from None
        if wire.prompt_feedback and wire.prompt_feedback.block_reason:
            text, finish, is_blocked = "", wire.prompt_feedback.block_reason, True
        elif wire.candidates:
            text, finish = wire.candidates[0].text, wire.candidates[0].finish_reason or "no reason"
            is_blocked = finish in _BLOCKED
        else:
            raise SendError("lost", "a reply without candidates")
        return Reply(
            text=text,
            end="blocked" if is_blocked else "cut" if finish in _CUT else "whole",
            why=finish,
            usage=wire.usage_metadata.usage if wire.usage_metadata else None,
            model_version=wire.model_version,
            response_id=wire.response_id,
        )

    def _config(self, max_output_tokens: int) -> Any:  # noqa: ANN401 - the client's class
        from google.genai import types

        thinking = None
        if self._thinking.isdigit():
            thinking = types.ThinkingConfig(thinking_budget=int(self._thinking))
        elif self._thinking != "default":
            thinking = types.ThinkingConfig(thinking_level=self._thinking)
        return types.GenerateContentConfig(
            max_output_tokens=max_output_tokens,
            thinking_config=thinking,
            response_mime_type="application/json",
            response_json_schema=SCHEMA,
            # Questions about weapons and drugs are questions.
            safety_settings=[
                types.SafetySetting(category=f"HARM_CATEGORY_{harm}", threshold="OFF") for harm in _HARMS
            ],
            automatic_continuation=False,
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            should_return_http_response=True,
        )


def _url() -> str:
    """Where requests go."""
    return os.environ.get(GATEWAY) or GOOGLE


def _key_variable() -> str:
    """The variable that holds the key; empty when none does."""
    return next((name for name in KEYS if os.environ.get(name, "").strip()), "")


def _key() -> str:
    """The key.

    Raises:
        ConfigurationError: There is none.
    """
    key = os.environ.get(_key_variable(), "").strip()
    if not key:
        raise ConfigurationError(
            "judge gemini must have a key; neither GEMINI_API_KEY nor GOOGLE_API_KEY is set. Set one of them"
        )
    return key


def _refusal(error: Any) -> SendError:  # noqa: ANN401 - the client's class, which is imported late
    """What an error of the service means for the request, and for all others."""
    code, status = error.code, str(error.status or "")
    details = _details(error.details)
    detail = f"{code} {status}: {str(error.message or '')[:300]}"
    reasons = {str(entry.get("reason")) for entry in details}
    if code == 429 or status == "RESOURCE_EXHAUSTED":
        if any("PerDay" in quota for quota in _quotas(details)):
            return SendError("fatal", f"{detail} The quota of the day is used up", code)
        return SendError("throttled", detail, code, _retry_after(details, error.response))
    if code in (401, 403, 404) or "API_KEY_INVALID" in reasons or "API key not valid" in detail:
        return SendError("fatal", detail, code)
    if code < 400:  # neither a whole reply nor a refusal
        return SendError("lost", detail, code)
    return SendError("failed" if code in (408, 409, 499) or code >= 500 else "rejected", detail, code)


def _details(body: object) -> list[dict[str, Any]]:
    """The details of an error, whatever else stands in its body."""
    error = body.get("error") if isinstance(body, dict) else None
    details = error.get("details") if isinstance(error, dict) else None
    return [entry for entry in details if isinstance(entry, dict)] if isinstance(details, list) else []


def _quotas(details: list[dict[str, Any]]) -> list[str]:
    return [str(v.get("quotaId")) for d in details for v in d.get("violations") or [] if isinstance(v, dict)]


def _retry_after(details: list[dict[str, Any]], response: Any) -> float | None:  # noqa: ANN401
    """Seconds to wait: the service's own word, else the header's; None when neither says."""
    delays = [str(entry["retryDelay"]) for entry in details if "retryDelay" in entry]
    header = response.headers.get("Retry-After") if response is not None else None
    return seconds_until(delays[0].removesuffix("s") if delays else header)


class _Wire(BaseModel):
    """A part of a reply as it is sent; what is not read here is let pass."""

    model_config = ConfigDict(alias_generator=to_camel, frozen=True, protected_namespaces=())


class _Part(_Wire):
    text: str = ""
    thought: bool = False


class _Content(_Wire):
    parts: tuple[_Part, ...] | None = None


class _Candidate(_Wire):
    content: _Content | None = None
    finish_reason: Annotated[str | None, OrNothing] = None

    @property
    def text(self) -> str:
        """The reply without thoughts, which may come first, in all its parts."""
        parts = (self.content.parts if self.content else None) or ()
        return "".join(part.text for part in parts if not part.thought)


class _Feedback(_Wire):
    block_reason: str | None = None


class _Usage(_Wire):
    prompt_token_count: Count = 0
    cached_content_token_count: Count = 0
    candidates_token_count: Count = 0
    thoughts_token_count: Count = 0

    @property
    def usage(self) -> Usage:
        return Usage(
            prompt=self.prompt_token_count,
            cached=self.cached_content_token_count,
            output=self.candidates_token_count,
            thoughts=self.thoughts_token_count,
        )


class _Body(_Wire):
    candidates: tuple[_Candidate, ...] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: Annotated[_Usage | None, OrNothing] = None
    model_version: str | None = None
    response_id: Annotated[str | None, OrNothing] = None
