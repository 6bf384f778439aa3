"""Registers every deployment and runs what is asked of it, here, until it is stopped."""

import asyncio
from contextlib import suppress

from prefect.client.orchestration import get_client
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound, TerminationSignal
from prefect.runner import Runner
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from deployments.entries import ENTRIES, Entry


def serve_all(address: str) -> None:
    """Say where to click, and serve until Ctrl-C or a polite kill."""
    with suppress(KeyboardInterrupt, TerminationSignal):
        asyncio.run(_serve(address))


async def _serve(address: str) -> None:
    runner = Runner(name="slm-calibration")
    forms = [
        await runner.aadd_deployment(await deployed(entry, is_on=await is_on(entry))) for entry in ENTRIES
    ]
    print(f"Prefect UI: {address}")
    print(
        f"To run the experiment pocket, open {address}/v2/deployments/deployment/{forms[0]}/run and Submit."
    )
    print("Ctrl-C ends it. Whatever is finished by then is kept, and the next run goes on from there.")
    await runner.start()


async def is_on(entry: Entry) -> bool:
    """Whether somebody has switched its schedule on, which registering it again would switch off."""
    async with get_client() as client:
        try:
            known = await client.read_deployment_by_name(f"{entry.name}/{entry.name}")
        except ObjectNotFound:
            return False
    return any(schedule.active for schedule in known.schedules)


async def deployed(entry: Entry, *, is_on: bool = False) -> RunnerDeployment:
    """The deployment of an entry."""
    return await entry.flow.ato_deployment(
        name=entry.name,
        tags=list(entry.tags),
        schedule=Cron(entry.weekly, timezone="UTC", active=is_on) if entry.weekly else None,
        concurrency_limit=entry.at_once,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
