"""The Batch API on the loopback Gemini server: jobs that end when a test says so.

It also answers single requests, so that a test can compare the two ways.
"""

import json
from dataclasses import dataclass, field

from aiohttp import web

from tests.judges.gemini_server import GeminiServer, Say


@dataclass
class Batch:
    """A job on the server's side."""

    name: str
    label: str
    requests: list
    state: str = "BATCH_STATE_PENDING"
    responses: list = field(default_factory=list)
    looks: int = 0


class BatchServer(GeminiServer):
    """The server; a context manager. A plan's Say with a status is an error of one request."""

    def __init__(self, plan=None, *, looks=1, end=None, create=None, get=None, **settings):
        """Finish a job at its `looks`-th look, None for never.

        `end(number)` gives the state in which a job ends; `create(number)` and `get(number)` may return a Say
        in place of an answer. A create whose Say has `wire="reset"` takes the job and says nothing.
        """
        super().__init__(plan, **settings)
        self.looks, self.end, self.create, self.get = looks, end, create, get
        self.jobs: list[Batch] = []
        self.creates = self.gets = self.lists = self.singles = 0

    def _add_routes(self, app):
        app.router.add_post("/v1/models/{model}:batchGenerateContent", self._create)
        app.router.add_get("/v1/batches", self._list)
        app.router.add_get("/v1/batches/{id}", self._get)
        app.router.add_post("/v1/models/{model}:generateContent", self._single)

    async def _single(self, request):
        self.singles += 1
        return await self._handle(request)

    async def _create(self, request):
        batch = (await request.json())["batch"]
        self.creates += 1  # once it is here as a whole
        say = self.create(self.creates) if self.create else None
        if say and say.status != 200:
            return web.Response(status=say.status, body=say.raw, content_type="application/json")
        number = len(self.jobs) + 1
        requests = batch["inputConfig"]["requests"]["requests"]
        self.jobs.append(Batch(f"batches/b{number}", batch["displayName"], requests))
        if say and say.wire != "whole":
            return await self._answer(request, None, say)
        return web.json_response(self._told(self.jobs[-1]))

    async def _list(self, request):
        self.lists += 1
        # One job a page: whoever looks for a job must turn pages.
        at = int(request.query.get("pageToken") or 0)
        page = {"operations": [self._told(job) for job in self.jobs[at : at + 1]]}
        return web.json_response(page | ({"nextPageToken": str(at + 1)} if at + 1 < len(self.jobs) else {}))

    async def _get(self, request):
        self.gets += 1
        self._happened(self.gets)
        say = self.get(self.gets) if self.get else None
        if say:
            return web.Response(
                status=say.status, body=say.raw, content_type="application/json", headers=say.headers
            )
        job = next(job for job in self.jobs if job.name == f"batches/{request.match_info['id']}")
        job.looks += 1
        if self.looks is not None and job.looks >= self.looks and job.state == "BATCH_STATE_PENDING":
            self._finish(request, job)
        return web.json_response(self._told(job))

    def _finish(self, request, job):
        number = self.jobs.index(job) + 1
        job.state = (self.end and self.end(number)) or "BATCH_STATE_SUCCEEDED"
        for one in job.requests if job.state == "BATCH_STATE_SUCCEEDED" else []:
            seen = self._note(request, one["request"])
            say = (self.plan and self.plan(seen)) or Say()
            if say.status == 200:
                answer = {"response": json.loads(self._body(seen, say))}
            else:
                answer = {"error": {"code": say.status, "message": "one request failed"}}
            job.responses.append({**answer, "metadata": one["metadata"]})

    def _told(self, job):
        metadata = {"state": job.state, "displayName": job.label, "model": "models/m"}
        if job.responses:
            metadata["output"] = {"inlinedResponses": {"inlinedResponses": job.responses}}
        told = {"name": job.name, "metadata": metadata}
        if job.state == "BATCH_STATE_FAILED":
            told["error"] = {"code": 13, "message": "it broke"}
        return told
