"""Registers every deployment and runs what is asked of it, here, until it is stopped."""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from deployments.entries import ENTRIES, Entry
from deployments.server import Server

STOP_SECONDS = 30.0


def serve_all(server: Server) -> None:
    """Say where to click, and serve until Ctrl-C or a polite kill."""
    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(_serve(server))


async def _serve(server: Server) -> None:
    runner = PoliteRunner(name="slm-calibration")
    forms = [
        await runner.aadd_deployment(await deployed(entry, await schedules_of(entry))) for entry in ENTRIES
    ]
    print(f"Prefect UI: {server.link()}")
    form = server.link(f"/v2/deployments/deployment/{forms[0]}/run")
    print(f"To run the experiment pocket, open {form} and Submit.")
    print("Ctrl-C ends it. Whatever is finished by then is kept, and the next run goes on from there.")
    runner.served_by = asyncio.current_task()
    serving = asyncio.create_task(runner.start())
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        # Prefect kills its runs when it ends, and leaves them on the server as Running.
        await asyncio.to_thread(end_runs)
        raise


class PoliteRunner(Runner):
    """Prefect's, ended by a polite kill as by Ctrl-C."""

    served_by: asyncio.Task[None] | None = None

    def handle_sigterm(self, *_: object) -> None:
        """End as at Ctrl-C, which a shell may have its background jobs ignore."""
        if self.served_by:
            self.served_by.get_loop().call_soon_threadsafe(self.served_by.cancel)


def end_runs() -> None:
    """Let the runs stop, and say that they did; those that take too long are killed afterwards."""
    runs = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # it may have ended since
            if os.getsid(child.pid) == os.getsid(0):  # the server has a session of its own
                child.terminate()
                runs.append(child)
    psutil.wait_procs(runs, timeout=STOP_SECONDS)


async def schedules_of(entry: Entry) -> list[DeploymentScheduleCreate]:
    """Its schedules as people have left them; registering it again would forget them."""
    async with get_client() as client:
        try:
            known = await client.read_deployment_by_name(f"{entry.name}/{entry.name}")
        except ObjectNotFound:
            return []
    kept = set(DeploymentScheduleCreate.model_fields) - {"replaces"}
    return [DeploymentScheduleCreate(**own.model_dump(include=kept)) for own in known.schedules]


async def deployed(entry: Entry, schedules: Sequence[DeploymentScheduleCreate] = ()) -> RunnerDeployment:
    """The deployment of an entry; without schedules, with the one that it is declared with."""
    made = await entry.flow.ato_deployment(
        name=entry.name,
        tags=list(entry.tags),
        schedule=Cron(entry.weekly, timezone="UTC", active=False) if entry.weekly else None,
        concurrency_limit=entry.at_once,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return made.model_copy(update={"schedules": [*schedules]}) if schedules else made
