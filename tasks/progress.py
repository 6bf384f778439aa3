"""Progress of long work: to the journal at once, to the Prefect UI every few seconds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import UUID

from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact

from calibration.jobs.work import Progress
from tasks.journal import current_journal
from tasks.telling import tell

UI_SECONDS = 3.0


@asynccontextmanager
async def reporting(title: str) -> AsyncIterator[Progress]:
    """A callback that shows how far the work is, while the body runs."""
    latest = (0.0, title)
    journal = current_journal()

    def progress(fraction: float, note: str) -> None:
        nonlocal latest
        latest = (fraction, f"{title}: {note}" if note else title)
        journal.progress(title, fraction, note)

    shown: UUID | None = None

    async def show() -> None:
        nonlocal shown
        fraction, text = latest
        # What somebody has deleted is made anew.
        shown = await tell(
            lambda: (
                aupdate_progress_artifact(shown, progress=100 * fraction, description=text)
                if shown
                else acreate_progress_artifact(100 * fraction, description=text)
            )
        )

    await show()

    async def keep_up() -> None:
        while True:
            await asyncio.sleep(UI_SECONDS)
            await show()

    updater = asyncio.create_task(keep_up())
    try:
        yield progress
        latest = (1.0, latest[1])
    finally:
        updater.cancel()
        with suppress(asyncio.CancelledError):
            await updater
        await show()
