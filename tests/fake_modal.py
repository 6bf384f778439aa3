"""A small stand-in for Modal's control plane: the real client deploys to it, and real containers run in it.

A container is a process of Modal's own entry point. It sees the files that were mounted, the environment of
its image, and a copy of each volume as it was committed last: what it does not commit is lost with it. There
are no image builds and no GPUs. The protocol is Modal's internal one, so this goes with one release of it.
"""

# ruff: noqa: N802 - methods are named after the calls they answer

import asyncio
import hashlib
import inspect
import os
import shlex
import shutil
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

from aiohttp import web
from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from grpclib.server import Server
from modal_proto import api_grpc
from modal_proto import api_pb2 as pb

BUILDER = "2026.10"
RESULT = pb.GenericResult
MOUNT = pb.MountHandleMetadata(content_checksum_sha256_hex="0" * 64)
BLOCK = 8 << 20
ALWAYS = {
    "AppCreate": pb.AppCreateResponse(app_id="ap-1"),
    "AppHeartbeat": Empty(),
    "ClientHello": pb.ClientHelloResponse(),
    "ContainerHello": Empty(),
}
NOT_IN_IMAGE = ("prefect", "tasks", "flows")


def service(owner):
    """Answers every call that `owner` has a method for."""

    def make(name):
        async def answer(_, stream):
            request = await stream.recv_message()
            reply = ALWAYS.get(name)
            if reply is None and (method := getattr(owner, name, None)):
                reply = method(request)
            if reply is None:
                raise GRPCError(Status.UNIMPLEMENTED, name)
            await stream.send_message(await reply if inspect.isawaitable(reply) else reply)

        return answer

    rpcs = {name: make(name) for name in api_grpc.ModalClientBase.__abstractmethods__}
    return type("Service", (api_grpc.ModalClientBase,), rpcs)()


class Door(Server):
    """Where clients come in; it can be shut in the face of those who are inside."""

    protocols = ()

    def _protocol_factory(self):
        self.protocols = (*self.protocols, protocol := super()._protocol_factory())
        return protocol

    def shut(self):
        self.close()
        for protocol in self.protocols:
            protocol.connection.close()


@dataclass
class Call:
    """One call of a function, and the containers that tried."""

    id: str
    function_id: str
    function: pb.Function
    input: pb.FunctionInput
    retries: int
    containers: list = field(default_factory=list)
    output: pb.FunctionGetOutputsItem | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    expired: bool = False

    def end(self, status, **item):
        """Give the call its result, unless it has one."""
        if self.output is None:
            result = item.pop("result", None) or RESULT(status=status, exception=str(status))
            self.output = pb.FunctionGetOutputsItem(result=result, idx=0, input_id="in-0", **item)
            self.over.set()


class Container:
    """One process that tries one call."""

    def __init__(self, cloud, call):
        self.cloud, self.call = cloud, call
        self.folder = cloud.folder / f"ta-{next(cloud.numbers)}"
        self.stop, self.preempted, self.late, self.served = asyncio.Event(), False, False, False
        self.begun = False
        self.volumes, self.known = {}, {}
        self.process = None

    def __getattr__(self, name):
        return getattr(self.cloud, name)

    async def live(self):
        """Start, serve, and end."""
        server = Server([service(self)])
        self.folder.mkdir()
        await server.start(path=str(self.folder / "socket"))
        environment = self.prepare()
        with (self.folder / "log").open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "modal._container_entrypoint"),
                cwd=self.folder / "root",
                env=environment,
                stdout=log,
                stderr=log,
            )
            try:
                await asyncio.wait_for(self.process.wait(), self.call.function.timeout_secs)
            except TimeoutError:
                self.late = True
                self.stop.set()
                await self.process.wait()
        server.close()
        if self.call.output is None and not self.preempted and not self.late and not self.served:
            self.call.end(RESULT.GENERIC_STATUS_INTERNAL_FAILURE)

    def prepare(self):
        """Lay out the mounted files and the volumes; returns the environment."""
        function, cloud = self.call.function, self.cloud
        for mount in function.mount_ids:
            for name, digest in cloud.mounts.get(mount, {}).items():
                place = self.folder / name.lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(cloud.files[digest])
        for name in NOT_IN_IMAGE:
            (self.folder / "root" / f"{name}.py").write_text(
                f"raise ImportError('{name} is not in the image')"
            )
        variables = dict(cloud.images[function.image_id])
        for mount in function.volume_mounts:
            place = self.folder / "volumes" / mount.volume_id
            shutil.copytree(cloud.volumes[mount.volume_id], place)
            self.volumes[mount.volume_id] = place
            self.known[mount.volume_id] = listing(place)
            variables = {
                name: str(place) + value.removeprefix(mount.mount_path)
                if (value + "/").startswith(mount.mount_path + "/")
                else value
                for name, value in variables.items()
            }
        for secret in function.secret_ids:
            variables |= cloud.secrets[secret]
        arguments = self.folder / "arguments"
        arguments.write_bytes(cloud.arguments(self.call, self.folder.name).SerializeToString())
        return variables | {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "PYTHONPATH": str(self.folder / "root"),
            "HF_ENDPOINT": cloud.hub,
            "MODAL_SERVER_URL": f"unix://{self.folder / 'socket'}",
            "MODAL_IS_REMOTE": "1",
            "MODAL_TASK_ID": self.folder.name,
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(arguments),
        }

    async def ContainerHeartbeat(self, _):
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), 10)
        event = pb.CancelInputEvent(input_ids=["in-0"]) if self.stop.is_set() else None
        return pb.ContainerHeartbeatResponse(cancel_input_event=event)

    async def FunctionGetInputs(self, _):
        if self.call.over.is_set():
            return pb.FunctionGetInputsResponse(inputs=[pb.FunctionGetInputsItem(kill_switch=True)])
        self.begun = True
        item = pb.FunctionGetInputsItem(
            input_id="in-0",
            input=self.call.input,
            function_call_id=self.call.id,
            function_call_invocation_type=pb.FUNCTION_CALL_INVOCATION_TYPE_ASYNC,
            attempt_token=str(len(self.call.containers)),
        )
        return pb.FunctionGetInputsResponse(inputs=[item])

    def FunctionPutOutputs(self, request):
        self.served = True
        [item] = request.outputs
        if self.late:
            item.result.CopyFrom(RESULT(status=RESULT.GENERIC_STATUS_TIMEOUT, exception="timeout"))
        if item.result.status not in (RESULT.GENERIC_STATUS_SUCCESS, RESULT.GENERIC_STATUS_TERMINATED):
            self.call.retries -= 1
        if item.result.status == RESULT.GENERIC_STATUS_SUCCESS or self.call.retries < 0:
            self.call.end(None, result=item.result, data_format=item.data_format)
        return Empty()

    def TaskResult(self, request):
        self.call.end(None, result=request.result, data_format=pb.DATA_FORMAT_PICKLE)
        return Empty()

    def VolumeCommit(self, request):
        if self.served:
            # The commit on the way out. In the cloud it may come long after the result, so here never.
            return pb.VolumeCommitResponse(skip_reload=True)
        source, target = self.volumes[request.volume_id], self.cloud.volumes[request.volume_id]
        now, known = listing(source), self.known[request.volume_id]
        for path in now:
            if now[path] != known.get(path):
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source / path, target / path)
        for path in known.keys() - now.keys():
            (target / path).unlink(missing_ok=True)
        self.known[request.volume_id] = now
        return pb.VolumeCommitResponse(skip_reload=True)


class FakeModal:
    """The control plane, in a thread of its own."""

    def __init__(self, folder, hub):
        self.folder, self.hub, self.numbers = folder, hub, count(1)
        self.files, self.blobs, self.mounts, self.images = {}, {}, {}, {"": {}}
        self.built = []
        self.volumes, self.secrets, self.tags = {}, {}, None
        self.functions, self.names, self.calls = {}, {}, {}
        self.loop, self.runs = asyncio.new_event_loop(), set()
        # While it is not set, calls are taken, and nobody is told.
        self.answers = threading.Event()
        self.answers.set()
        # While it is not set, no container starts.
        self.room = threading.Event()
        self.room.set()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.do(self._start())

    def do(self, work):
        """Run something in the thread of the control plane."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    async def _start(self):
        routes = web.Application(client_max_size=1 << 30)
        routes.router.add_get("/volume/{volume}/{path:.+}", self._read)
        routes.router.add_put("/blob/{blob}", self._put)
        routes.router.add_get("/blob/{blob}", self._blob)
        runner = web.AppRunner(routes)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.http = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        self.port = None
        await self._listen()

    async def _listen(self):
        self.door = Door([service(self)])
        await self.door.start("127.0.0.1", self.port)
        self.port = self.door._server.sockets[0].getsockname()[1]

    @property
    def environment(self):
        """What a client needs to find this cloud and no other."""
        return {
            "MODAL_SERVER_URL": f"http://127.0.0.1:{self.port}",
            "MODAL_TOKEN_ID": "ak-test",
            "MODAL_TOKEN_SECRET": "as-test",
            "MODAL_CONFIG_PATH": str(self.folder / "modal.toml"),
        }

    def vanish(self):
        """Cut every connection, and take no new one."""

        async def cut():
            self.door.shut()

        self.do(cut())

    def appear(self):
        """Be there again."""
        self.do(self._listen())

    def preempt(self, call):
        """Take the container of a call away, as the cloud does: politely, and without a result."""
        call.containers[-1].preempted = True
        call.containers[-1].process.send_signal(signal.SIGINT)

    def time_out(self, call):
        """Behave as if the time limit of the running attempt were reached."""
        call.containers[-1].late = True
        self.loop.call_soon_threadsafe(call.containers[-1].stop.set)

    def close(self):
        """End every container."""
        for call in self.calls.values():
            for container in call.containers:
                with suppress(ProcessLookupError, AttributeError):
                    container.process.kill()

    # Deploying

    def EnvironmentGetOrCreate(self, _):
        settings = pb.EnvironmentSettings(image_builder_version=BUILDER)
        metadata = pb.EnvironmentMetadata(name="main", settings=settings)
        return pb.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    def AppGetByDeploymentName(self, _):
        return pb.AppGetByDeploymentNameResponse()

    def AppPublish(self, request):
        self.tags, self.names = dict(request.tags), dict(request.function_ids)
        return pb.AppPublishResponse(url="http://127.0.0.1", deployed_at=1.0)

    def FunctionPrecreate(self, request):
        identifier = request.existing_function_id or f"fu-{next(self.numbers)}"
        return pb.FunctionPrecreateResponse(
            function_id=identifier, handle_metadata=self._handle(identifier, request)
        )

    def FunctionCreate(self, request):
        identifier, function = request.existing_function_id, request.function
        self.functions[identifier] = function
        data = pb.FunctionData(
            module_name=function.module_name,
            function_name=function.function_name,
            ranked_functions=[pb.FunctionData.RankedFunction(rank=0, function=function)],
        )
        handle = self._handle(identifier, function)
        return pb.FunctionCreateResponse(
            function_id=identifier, function=function, handle_metadata=handle, function_data=data
        )

    def _handle(self, identifier, function):
        return pb.FunctionHandleMetadata(
            function_name=function.function_name,
            function_type=function.function_type,
            definition_id=f"de-{identifier}",
            function_schema=function.function_schema,
            supported_input_formats=function.supported_input_formats,
            supported_output_formats=function.supported_output_formats,
            app_id="ap-1",
        )

    def MountGetOrCreate(self, request):
        identifier = f"mo-{next(self.numbers)}"
        self.mounts[identifier] = {file.filename: file.sha256_hex for file in request.files}
        return pb.MountGetOrCreateResponse(mount_id=identifier, handle_metadata=MOUNT)

    def MountBatchedCheckExistence(self, request):
        missing = [digest for digest in request.sha256_hex_hashes if digest not in self.files]
        return pb.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    def MountPutFile(self, request):
        if request.WhichOneof("data_oneof"):
            data = self.blobs[request.data_blob_id] if request.data_blob_id else request.data
            assert hashlib.sha256(data).hexdigest() == request.sha256_hex
            self.files[request.sha256_hex] = data
        return pb.MountPutFileResponse(exists=request.sha256_hex in self.files)

    def ImageGetOrCreate(self, request):
        identifier = f"im-{next(self.numbers)}"
        bases = [self.images[base.image_id] for base in request.image.base_images]
        self.built += request.image.dockerfile_commands
        lines = [shlex.split(line) for line in request.image.dockerfile_commands if line.startswith("ENV ")]
        own = dict(word.split("=", 1) for line in lines for word in line[1:])
        self.images[identifier] = {name: value for each in [*bases, own] for name, value in each.items()}
        return pb.ImageGetOrCreateResponse(
            image_id=identifier,
            result=RESULT(status=RESULT.GENERIC_STATUS_SUCCESS),
            metadata=pb.ImageMetadata(image_builder_version=BUILDER),
        )

    def SecretGetOrCreate(self, request):
        identifier = f"st-{request.deployment_name}"
        if identifier not in self.secrets:
            raise GRPCError(Status.NOT_FOUND, f"Secret '{request.deployment_name}' not found")
        if missing := set(request.required_keys) - set(self.secrets[identifier]):
            raise GRPCError(Status.FAILED_PRECONDITION, f"Secret is missing key(s) {', '.join(missing)}")
        metadata = pb.SecretMetadata(name=request.deployment_name)
        return pb.SecretGetOrCreateResponse(secret_id=identifier, metadata=metadata)

    # Calling

    def AppGetOrCreate(self, request):
        if self.tags is None:
            raise GRPCError(Status.NOT_FOUND, f"App '{request.app_name}' not found")
        return pb.AppGetOrCreateResponse(app_id="ap-1")

    def AppGetTags(self, _):
        return pb.AppGetTagsResponse(tags=self.tags)

    def FunctionGet(self, request):
        if self.tags is None or request.object_tag not in self.names:
            raise GRPCError(Status.NOT_FOUND, f"no function {request.object_tag}")
        identifier = self.names[request.object_tag]
        function = self.functions[identifier]
        data = pb.FunctionData(ranked_functions=[pb.FunctionData.RankedFunction(rank=0, function=function)])
        return pb.FunctionGetResponse(
            function_id=identifier, handle_metadata=self._handle(identifier, function), function=data
        )

    def FunctionBindParams(self, request):
        identifier = f"fu-{next(self.numbers)}"
        function = pb.Function()
        function.CopyFrom(self.functions[request.function_id])
        if request.function_options.timeout_secs:
            function.timeout_secs = request.function_options.timeout_secs
        function.resources.MergeFrom(request.function_options.resources)
        self.functions[identifier] = function
        return pb.FunctionBindParamsResponse(
            bound_function_id=identifier, handle_metadata=self._handle(identifier, function)
        )

    async def FunctionMap(self, request):
        function = self.functions[request.function_id]
        [item] = request.pipelined_inputs
        call = Call(
            id=f"fc-{next(self.numbers)}",
            function_id=request.function_id,
            function=function,
            input=item.input,
            retries=function.retry_policy.retries,
        )
        self.calls[call.id] = call
        run = self.loop.create_task(self._run(call))
        self.runs.add(run)
        run.add_done_callback(self.runs.discard)
        await asyncio.to_thread(self.answers.wait)
        reply = pb.FunctionPutInputsResponseItem(idx=0, input_id="in-0", input_jwt="jwt")
        return pb.FunctionMapResponse(function_call_id=call.id, pipelined_inputs=[reply])

    async def _run(self, call):
        while call.output is None:
            await asyncio.to_thread(self.room.wait)
            call.containers.append(Container(self, call))
            await call.containers[-1].live()

    async def FunctionGetOutputs(self, request):
        call = self.calls.get(request.function_call_id)
        if call is None:
            raise GRPCError(Status.NOT_FOUND, "no such call")
        with suppress(TimeoutError):
            await asyncio.wait_for(call.over.wait(), request.timeout)
        outputs = [call.output] if call.output and not call.expired else []
        return pb.FunctionGetOutputsResponse(outputs=outputs, num_unfinished_inputs=int(call.output is None))

    def FunctionCallCancel(self, request):
        call = self.calls.get(request.function_call_id)
        if call is None:
            raise GRPCError(Status.NOT_FOUND, "no such call")
        call.end(RESULT.GENERIC_STATUS_TERMINATED)
        for container in call.containers:
            container.stop.set()
        return Empty()

    def arguments(self, call, task):
        """What a container is told about itself."""
        layout = pb.AppLayout(function_ids=self.names)
        for dependency in call.function.object_dependencies:
            entry = layout.objects.add(object_id=dependency.object_id)
            if dependency.object_id.startswith("vo-"):
                entry.volume_metadata.CopyFrom(self._volume(dependency.object_id))
            elif dependency.object_id.startswith("mo-"):
                entry.mount_handle_metadata.CopyFrom(MOUNT)
        for identifier in self.names.values():
            handle = self._handle(identifier, self.functions[identifier])
            layout.objects.add(object_id=identifier, function_handle_metadata=handle)
        return pb.ContainerArguments(
            task_id=task,
            function_id=call.function_id,
            app_id="ap-1",
            function_def=call.function,
            app_layout=layout,
            environment_name="main",
        )

    # Volumes

    def _volume(self, identifier):
        return pb.VolumeMetadata(version=pb.VOLUME_FS_VERSION_V1, name=identifier.removeprefix("vo-"))

    def VolumeGetOrCreate(self, request):
        identifier = f"vo-{request.deployment_name}"
        if identifier not in self.volumes:
            if request.object_creation_type == pb.OBJECT_CREATION_TYPE_UNSPECIFIED:
                raise GRPCError(Status.NOT_FOUND, f"no volume {request.deployment_name}")
            self.volumes[identifier] = self.folder / identifier
            self.volumes[identifier].mkdir()
        return pb.VolumeGetOrCreateResponse(volume_id=identifier, metadata=self._volume(identifier))

    def VolumePutFiles(self, request):
        for file in request.files:
            place = self.volumes[request.volume_id] / file.filename
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(self.files[file.sha256_hex])
        return Empty()

    def VolumeGetFile2(self, request):
        place = self.volumes[request.volume_id] / request.path
        if not place.is_file():
            raise GRPCError(Status.NOT_FOUND, f"no file {request.path}")
        size = place.stat().st_size
        urls = [
            f"{self.http}/volume/{request.volume_id}/{request.path}?from={start}&size={BLOCK}"
            for start in range(0, size, BLOCK)
        ]
        return pb.VolumeGetFile2Response(get_urls=urls, size=size, start=0, len=size)

    def VolumeRemoveFile(self, request):
        place = self.volumes[request.volume_id] / request.path
        if not place.exists():
            raise GRPCError(Status.NOT_FOUND, f"no file {request.path}")
        if place.is_dir() and not request.recursive:
            raise GRPCError(Status.INVALID_ARGUMENT, f"{request.path} is a folder")
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        return Empty()

    def BlobCreate(self, _):
        identifier = f"bl-{next(self.numbers)}"
        urls = pb.UploadUrlList(items=[f"{self.http}/blob/{identifier}"])
        return pb.BlobCreateResponse(blob_ids=[identifier], upload_urls=urls)

    def BlobGet(self, request):
        return pb.BlobGetResponse(download_url=f"{self.http}/blob/{request.blob_id}")

    async def _read(self, request):
        data = (self.volumes[request.match_info["volume"]] / request.match_info["path"]).read_bytes()
        start = int(request.query["from"])
        return web.Response(body=data[start : start + int(request.query["size"])])

    async def _put(self, request):
        data = self.blobs[request.match_info["blob"]] = await request.read()
        return web.Response(headers={"ETag": f'"{hashlib.md5(data).hexdigest()}"'})  # noqa: S324 - as S3 does

    async def _blob(self, request):
        return web.Response(body=self.blobs[request.match_info["blob"]])


def listing(folder):
    """Every file with what tells whether it was changed."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.stat().st_size, path.stat().st_ino)
        for path in files
    }
