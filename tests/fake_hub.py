"""A small stand-in for the Hugging Face hub, over HTTP on this machine."""

import asyncio
import hashlib
import threading

from aiohttp import web

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Models by name, None for one that breaks the hub; `gated` ones want the token, and downloads wait
    while `open` is not set."""

    def __init__(self):
        self.models, self.gated, self.asked = {}, set(), []
        self.token = "hf_good"  # noqa: S105 - of this hub only
        self.open = threading.Event()
        self.open.set()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.url = asyncio.run_coroutine_threadsafe(self._start(), self.loop).result(60)

    def close(self):
        """Let go of everyone who waits."""
        self.open.set()

    def is_downloading(self, name):
        """Whether somebody has asked for a file of a model."""
        return any(asked.startswith(f"GET /{name}/resolve/") for asked in self.asked)

    async def _start(self):
        routes = web.Application(middlewares=[self._guard])
        routes.router.add_get("/api/models/{owner}/{name}/auth-check", self._access)
        routes.router.add_get("/api/models/{owner}/{name}", self._info)
        routes.router.add_get("/api/models/{owner}/{name}/revision/{revision}", self._info)
        routes.router.add_get("/api/models/{owner}/{name}/tree/{revision}", self._tree)
        routes.router.add_get("/{owner}/{name}/resolve/{revision}/{file}", self._file)
        runner = web.AppRunner(routes)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

    @web.middleware
    async def _guard(self, request, handler):
        self.asked.append(f"{request.method} {request.path}")
        part = request.match_info
        if "owner" not in part:
            return web.Response(status=404)
        name = f"{part['owner']}/{part['name']}"
        if name not in self.models:
            return web.Response(status=404, headers={"X-Error-Code": "RepoNotFound"})
        if self.models[name] is None:
            return web.Response(status=500)
        if part.get("revision", "main") not in ("main", COMMIT):
            return web.Response(status=404, headers={"X-Error-Code": "RevisionNotFound"})
        public = request.path.startswith("/api/") and not request.path.endswith("auth-check")
        if (
            name in self.gated
            and not public
            and request.headers.get("authorization") != f"Bearer {self.token}"
        ):
            return web.Response(status=403, headers={"X-Error-Code": "GatedRepo"})
        return await handler(request, self.models[name])

    async def _access(self, request, files):
        return web.Response()

    async def _info(self, request, files):
        name = f"{request.match_info['owner']}/{request.match_info['name']}"
        siblings = [{"rfilename": file} for file in files]
        return web.json_response({"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings})

    async def _tree(self, request, files):
        listed = [
            {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}  # noqa: S324
            for file, data in files.items()
        ]
        return web.json_response(listed)

    async def _file(self, request, files):
        if request.method == "GET":
            await asyncio.to_thread(self.open.wait)
        data = files[request.match_info["file"]]
        etag = hashlib.sha1(data).hexdigest()  # noqa: S324 - as git names its files
        return web.Response(body=data, headers={"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
