"""Progress in the Prefect UI, which may fail without harm."""

import asyncio

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.runtime import flow_run

from tasks.journal import Journal, keeping
from tasks.progress import reporting


def test_a_progress_that_somebody_deletes_in_the_ui_ends_no_work_and_is_shown_anew(monkeypatch, caplog):
    monkeypatch.setattr("tasks.progress.UI_SECONDS", 0.01)

    @flow
    async def work():
        async with get_client() as client:

            async def shown():
                mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run.id]))
                return await client.read_artifacts(artifact_filter=mine)

            async with reporting("train") as progress:
                [first] = await shown()
                await client.delete_artifact(first.id)
                progress(0.5, "half")
                while not (again := await shown()):  # noqa: ASYNC110 - the server tells nobody
                    await asyncio.sleep(0.01)
            return first.id, again, await shown()

    journal = Journal()
    with keeping(journal):
        first, again, last = asyncio.run(work())
    assert [artifact.id for artifact in again] == [artifact.id for artifact in last] != [first]
    assert last[0].data == 100.0
    assert "the run goes on" in caplog.text
    assert not journal.is_server_lost
