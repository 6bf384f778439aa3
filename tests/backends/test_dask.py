"""A Dask cluster inside this process: real messages, and jobs in processes of their own."""

import asyncio
from pathlib import Path

import pytest
from distributed import LocalCluster

from calibration.artifacts import Store
from calibration.backends.dask import Dask


@pytest.fixture
def waiting(hub, fetching, monkeypatch, tmp_path):
    """A job that waits for the hub."""
    (tmp_path / "mounted").mkdir()
    monkeypatch.setenv("SLM_CALIBRATION_SHARED", f"file://{tmp_path}/mounted")
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    hub.open.clear()
    yield fetching("somebody/model")
    hub.open.set()


def processes(key):
    """The processes of a job."""
    store = str(Store.from_environment().root).encode()
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            said = place.read_bytes().split(b"\0")
        except OSError:
            continue
        if store in said and key.encode() in said:
            found.append(int(place.parent.name))
    return found


def test_when_a_cancelled_run_is_over_so_is_its_job_and_the_next_begins_it_once(hub, waiting, until):
    store, key = Store.from_environment(), "work"

    async def cancelled_and_begun_again():
        # Two workers share this machine's store, as with `dask worker --nworkers 2`.
        async with LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            protocol="tcp",
            dashboard_address=None,
            asynchronous=True,
        ) as cluster:
            on = Dask(scheduler=cluster.scheduler_address)

            def begin():
                return asyncio.create_task(on.run(waiting, key, store, lambda *_: None))

            one = begin()
            await asyncio.to_thread(until, lambda: hub.is_downloading("somebody/model"))
            [first] = processes(key)
            one.cancel()
            with pytest.raises(asyncio.CancelledError):
                await one
            assert processes(key) == [], "nothing of it is left for the next to run into"
            other = begin()
            [second] = await asyncio.to_thread(until, lambda: processes(key))
            assert second != first
            hub.open.set()
            return await other

    assert store.is_whole(asyncio.run(cancelled_and_begun_again()))
