"""What several machines share of Prefect's own: the records of its cache, and the locks around them."""

import hashlib
from pathlib import Path

from prefect.filesystems import RemoteFileSystem
from prefect.utilities.annotations import NotSet

from calibration.artifacts import Store
from calibration.shared import Shared
from tasks.leases import LeaseManager
from tasks.locks import FlockManager

_known: dict[str, RemoteFileSystem] = {}


async def records_of(shared: Shared | None) -> RemoteFileSystem | Path | type[NotSet]:
    """Where Prefect keeps its records; unset, in its own folder on this machine."""
    if shared is None:
        return NotSet
    if shared.folder is not None:
        return shared.folder / "cache"
    url = f"{shared.url}/cache"
    if url not in _known:
        # Prefect takes a storage that its server knows by name. No secret is in it.
        block = RemoteFileSystem(basepath=url)
        await block.asave(f"slm-calibration-{hashlib.sha256(url.encode()).hexdigest()[:12]}", overwrite=True)
        _known[url] = block
    return _known[url]


def locks_of(store: Store, shared: Shared | None) -> FlockManager:
    """The locks of those who share records: processes of one machine, or several machines."""
    if shared is None:
        return FlockManager(store.root / "locks")
    if shared.folder is not None:
        return FlockManager(shared.folder / "locks")
    return LeaseManager(store.root / "locks", shared)
