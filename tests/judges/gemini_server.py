"""A Gemini of our own on a loopback port: real HTTP, real sockets, and whatever fault a test asks for.

It answers as the service does (wire shapes of the Gemini API, version v1) and by a rule that a test can
repeat: an answer that equals an accepted one is CORRECT, one that says "dunno" is NOT_ATTEMPTED. It runs in
a thread with a loop of its own, and counts on its side what arrived.
"""

import asyncio
import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from aiohttp import web

MODEL = "gemini-3.5-flash-lite"


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    number: int
    """Counted from 1."""
    time: int
    """How often this case had been asked, this time included."""
    case: dict
    body: dict
    at: float
    key: str


@dataclass(frozen=True)
class Say:
    """What to answer. Everything can be left as it is."""

    status: int = 200
    latency: float | None = None
    text: str | None = None
    """The model's reply, instead of the rule's."""
    parts: list | None = None
    finish: str = "STOP"
    block: str | None = None
    version: str | None = MODEL
    usage: dict | None = field(default_factory=lambda: tokens())
    extra: dict = field(default_factory=dict)
    """More for the candidate."""
    raw: bytes | None = None
    """The whole body, instead of one of the right shape."""
    content_type: str = "application/json"
    headers: dict = field(default_factory=dict)
    wire: str = "whole"
    """whole, reset (no byte of a reply), torn (half a body), stall (nothing), drip (a byte now and then)."""


def tokens(prompt=600, output=20, thoughts=0, cached=0):
    return {
        "promptTokenCount": prompt,
        "candidatesTokenCount": output,
        "thoughtsTokenCount": thoughts,
        "cachedContentTokenCount": cached,
        "totalTokenCount": prompt + output + thoughts,
    }


def error(code, status, message="no", details=(), **say):
    body = {"error": {"code": code, "status": status, "message": message, "details": list(details)}}
    return Say(status=code, raw=json.dumps(body).encode(), **say)


def throttle(delay=None, quota="GenerateRequestsPerMinutePerProjectPerModel", **say):
    """429, with the delay that RetryInfo names."""
    failure = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": quota}]}
    retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{delay}s"}
    details = [failure] if delay is None else [failure, retry]
    return error(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota", details, **say)


def verdict_of(case):
    if "dunno" in case["answer"]:
        return "NOT_ATTEMPTED"
    return "CORRECT" if case["answer"] in case["accepted_answers"] else "INCORRECT"


class GeminiServer:
    """The server; a context manager."""

    def __init__(self, plan=None, latency=0.0, requests_per_second=None):
        """Answer by `plan(seen) -> Say | None`; without one, or with None, as a healthy service does."""
        self.plan, self.latency, self.quota = plan, latency, requests_per_second
        self.seen: list[Seen] = []
        self.taken = 0
        self.refused = 0
        self.peak = 0
        self._inside = 0
        self._times = Counter()
        self._events = {}
        self._tokens, self._filled = float(requests_per_second or 0) / 4, time.monotonic()

    @property
    def count(self):
        """Requests that arrived."""
        return len(self.seen)

    @property
    def cases(self):
        """How often each case was asked."""
        return self._times

    def event_at(self, number):
        """An event of the running loop, set when so many requests have arrived."""
        event = asyncio.Event()
        self._events[number] = (asyncio.get_running_loop(), event)
        return event

    def __enter__(self):
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(20)
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *error):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    def _serve(self, started):
        async def serve():
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            app = web.Application(client_max_size=2**24)
            self._add_routes(app)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
            await site.start()
            self.port = site._server.sockets[0].getsockname()[1]
            started.set()
            await self._stop.wait()
            await runner.cleanup()

        asyncio.run(serve())

    def _add_routes(self, app):
        app.router.add_post("/{version}/models/{call}", self._handle)

    async def _handle(self, request):
        body = await request.json()
        seen = self._note(request, body)
        self._inside += 1
        self.peak = max(self.peak, self._inside)
        try:
            say = self._over_quota() or (self.plan and self.plan(seen)) or Say()
            await asyncio.sleep(self.latency if say.latency is None else say.latency)
            return await self._answer(request, seen, say)
        finally:
            self._inside -= 1

    def _note(self, request, body):
        prompt = "".join(part["text"] for part in body["contents"][0]["parts"])
        block = re.search(r"<data>\n(.*)\n</data>\Z", prompt)
        text = block.group(1) if block else json.dumps({"accepted_answers": [], "answer": prompt})
        self._times[text] += 1
        seen = Seen(
            number=len(self.seen) + 1,
            time=self._times[text],
            case=json.loads(text),
            body=body,
            at=time.monotonic(),
            key=request.headers.get("x-goog-api-key", ""),
        )
        self.seen.append(seen)
        self._happened(seen.number)
        return seen

    def _happened(self, number):
        if number in self._events:
            loop, event = self._events.pop(number)
            loop.call_soon_threadsafe(event.set)

    def _over_quota(self):
        """A bucket of a quarter of a second of requests."""
        if self.quota is None:
            return None
        now = time.monotonic()
        self._tokens = min(self.quota / 4, self._tokens + (now - self._filled) * self.quota)
        self._filled = now
        if self._tokens >= 1:
            self._tokens -= 1
            self.taken += 1
            return None
        self.refused += 1
        return throttle(round((1 - self._tokens) / self.quota, 3), latency=0.0)

    async def _answer(self, request, seen, say):
        if say.wire == "reset":
            request.transport.abort()
            return web.Response()
        if say.wire == "stall":
            await asyncio.sleep(30)
        payload = self._body(seen, say)
        if say.wire not in ("torn", "drip"):
            return web.Response(
                status=say.status, body=payload, content_type=say.content_type, headers=say.headers
            )
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = len(payload)
        await response.prepare(request)
        if say.wire == "torn":
            await response.write(payload[: len(payload) // 2])
            request.transport.abort()
            return response
        for byte in payload:
            await response.write(bytes([byte]))
            await asyncio.sleep(0.05)
        return response

    def _body(self, seen, say):
        if say.raw is not None:
            return say.raw
        body = {} if say.usage is None else {"usageMetadata": say.usage}
        if say.version is not None:
            body["modelVersion"] = say.version
        body["responseId"] = f"r{seen.number}"
        if say.block:
            return json.dumps({**body, "promptFeedback": {"blockReason": say.block}}).encode()
        text = say.text
        if text is None:
            said = {"extracted": seen.case["answer"][:20], "verdict": verdict_of(seen.case)}
            text = json.dumps(said)
        parts = [{"text": text}] if say.parts is None else say.parts
        candidate = {"finishReason": say.finish, "index": 0, **say.extra}
        if parts:
            candidate["content"] = {"parts": parts, "role": "model"}
        return json.dumps({**body, "candidates": [candidate]}).encode()
