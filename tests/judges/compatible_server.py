"""A server of our own that speaks chat completions on a loopback port, with whatever fault a test asks for.

It judges by the rule of `gemini_server`, and counts on its side what arrived.
"""

import json
from dataclasses import dataclass, field, replace

from tests.judges.gemini_server import GeminiServer, verdict_of

MODEL = "judge-7b"


@dataclass(frozen=True)
class Said:
    """What to answer. Everything can be left as it is."""

    status: int = 200
    latency: float | None = None
    text: str | None = None
    """The model's reply, instead of the rule's."""
    message: dict = field(default_factory=dict)
    """More for the message."""
    finish: str | None = "stop"
    model: str | None = MODEL
    usage: dict | None = field(
        default_factory=lambda: {"prompt_tokens": 600, "completion_tokens": 20, "total_tokens": 620}
    )
    raw: bytes | None = None
    """The whole body, instead of one of the right shape."""
    content_type: str = "application/json"
    headers: dict = field(default_factory=dict)
    wire: str = "whole"


def error(status, code=None, message="no", **say):
    body = {"error": {"message": message, "type": "an_error", "code": code, "param": None}}
    return Said(status=status, raw=json.dumps(body).encode(), **say)


class CompatibleServer(GeminiServer):
    """The server; a context manager."""

    def _add_routes(self, app):
        app.router.add_post("/v1/chat/completions", self._handle)

    async def _handle(self, request):
        body = await request.json()
        seen = self._note(request, {"contents": [{"parts": [{"text": body["messages"][0]["content"]}]}]})
        seen = replace(seen, body=body, key=request.headers.get("Authorization", ""))
        self.seen[-1] = seen
        say = (self.plan and self.plan(seen)) or Said()
        return await self._answer(request, seen, say)

    def _body(self, seen, say):
        if say.raw is not None:
            return say.raw
        text = say.text
        if text is None:
            text = json.dumps({"extracted": seen.case["answer"][:20], "verdict": verdict_of(seen.case)})
        choice = {
            "index": 0,
            "finish_reason": say.finish,
            "message": {"role": "assistant", "content": text, **say.message},
        }
        body = {"id": f"c{seen.number}", "object": "chat.completion", "created": 0, "choices": [choice]}
        body |= {"model": say.model} if say.model else {}
        return json.dumps(body | ({"usage": say.usage} if say.usage else {})).encode()
