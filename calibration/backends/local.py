"""Backend `local`: every job in a process of its own on this machine.

A process of its own keeps the random numbers of two trainings apart, gives its memory back, can be
stopped at once, and does not outlive the run: it ends when the pipe to its parent closes, also after
kill -9.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Literal
from weakref import WeakKeyDictionary

from pydantic import Field, model_validator

from calibration import errors
from calibration.artifacts import Artifact, Store
from calibration.backends.arithmetic import refuse_threads
from calibration.backends.worker import begin_anew
from calibration.errors import JobError
from calibration.jobs.work import Progress
from calibration.schema import Schema

_places: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, asyncio.Semaphore]] = WeakKeyDictionary()


QUIET = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}


class Local(Schema):
    """Processes on this machine."""

    kind: Literal["local"] = "local"
    at_once: int = Field(default=2, ge=1)
    """Jobs that run side by side; the others wait. Each holds its model in memory."""

    @model_validator(mode="before")
    @classmethod
    def _threads_decide_numbers(cls, settings: object) -> object:
        return refuse_threads(settings)

    async def check(self, store: Store) -> None:
        """This machine is there."""

    async def forget(self, key: str, store: Store) -> None:
        """Forget all that is left of this work."""
        begin_anew(store, key)

    async def run(self, job: Schema, key: str, store: Store, progress: Progress) -> Artifact:
        """Start a worker process when there is room, pass its progress on, and return what it stored."""
        log = store.log(key)
        async with self._place():
            return await self._work(job, key, store, log, progress)

    async def _work(self, job: Schema, key: str, store: Store, log: Path, progress: Progress) -> Artifact:
        with log.open("ab") as messages:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "calibration.backends.worker", str(store.root), key),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=messages,
                env={**os.environ, **QUIET},
            )
            try:
                return await self._converse(process, job, str(log), progress)
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    async def _converse(
        self, process: asyncio.subprocess.Process, job: Schema, log: str, progress: Progress
    ) -> Artifact:
        assert process.stdin is not None  # noqa: S101 - both were asked for with PIPE
        assert process.stdout is not None  # noqa: S101
        process.stdin.write(job.model_dump_json().encode() + b"\n")
        await process.stdin.drain()
        async for line in process.stdout:
            message = json.loads(line)
            if "fraction" in message:
                progress(message["fraction"], message["note"])
            elif "artifact" in message:
                return Artifact.model_validate(message["artifact"])
            else:
                raise getattr(errors, message["error"])(message["message"])
        code = await process.wait()
        raise JobError(
            f"the job must end with a result; its process ended with code {code}. Its messages: {log}"
        )

    def _place(self) -> asyncio.Semaphore:
        """A place among the jobs of this process that run side by side."""
        places = _places.setdefault(asyncio.get_running_loop(), {})
        return places.setdefault(self.at_once, asyncio.Semaphore(self.at_once))
