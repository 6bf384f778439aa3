"""What several machines share of Prefect's own: the records of its cache, and the locks around them."""

import asyncio
import hashlib
import json
from typing import ClassVar

from prefect.filesystems import WritableFileSystem
from prefect.logging import get_run_logger
from prefect.utilities.annotations import NotSet

from calibration.artifacts import Artifact, Store
from calibration.errors import ArtifactError
from calibration.shared import Shared
from tasks.cached import UNREADABLE, is_ours, note, reference
from tasks.leases import LeaseManager
from tasks.locks import FlockManager


class Records(WritableFileSystem):
    """Records of stages in the shared place; each is read together with the artifact that it names."""

    _block_type_name: ClassVar[str] = "SLM Calibration Records"
    _block_type_slug: ClassVar[str] = "slm-calibration-records"

    url: str
    """The address of the place. Whoever reads it brings an own right to enter."""

    async def read_path(self, path: str) -> bytes:
        """A record, once its artifact is whole on this machine. Prefect takes an error for no record."""
        return await asyncio.to_thread(self._read, path)

    async def write_path(self, path: str, content: bytes) -> None:
        """Keep a record."""
        await asyncio.to_thread(Shared(self.url).save, f"cache/{path}", content)

    def _read(self, path: str) -> bytes:
        shared = Shared(self.url)
        content = shared.load(f"cache/{path}")
        if content is None:
            raise ArtifactError(f"{path} must be a record in {self.url}; there is none")
        if not is_ours(content):
            note(UNREADABLE)
            raise ArtifactError(f"{path} in {self.url} must be a record of this pipeline; it is not")
        self._bring(reference(json.loads(content)["result"]), Store.from_environment())
        return content

    def _bring(self, artifact: Artifact, store: Store) -> None:
        """Fetch an artifact that is not whole on this machine, and say so."""
        damage = store.damage(artifact)
        if not damage:
            return
        try:
            Shared(self.url).get(artifact, store)
        except ArtifactError:
            note(f"{damage}, and {self.url} does not have it as it was stored")
            raise
        get_run_logger().info("%s; it was fetched from %s", damage, self.url)


_known: dict[str, Records] = {}


async def records_of(shared: Shared | None) -> Records | type[NotSet]:
    """Where Prefect keeps its records; unset, in its own folder on this machine."""
    if shared is None:
        return NotSet
    if shared.url not in _known:
        # Prefect takes a storage that its server knows by name.
        records = Records(url=shared.url)
        await records.asave(hashlib.sha256(shared.url.encode()).hexdigest()[:12], overwrite=True)
        _known[shared.url] = records
    return _known[shared.url]


def locks_of(store: Store, shared: Shared | None) -> FlockManager:
    """The locks of those who share records: processes of one machine, or several machines."""
    if shared is None:
        return FlockManager(store.root / "locks")
    if shared.folder is not None:
        return FlockManager(shared.folder / "locks")
    return LeaseManager(store.root / "locks", shared)
