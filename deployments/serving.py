"""Registers every deployment and runs what is asked of it, here, until it is stopped."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
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
        await runner.aadd_deployment(await deployed(entry, await schedules_of(entry))) for entry in ENTRIES
    ]
    print(f"Prefect UI: {address}")
    print(
        f"To run the experiment pocket, open {address}/v2/deployments/deployment/{forms[0]}/run and Submit."
    )
    print("Ctrl-C ends it. Whatever is finished by then is kept, and the next run goes on from there.")
    await runner.start()


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
