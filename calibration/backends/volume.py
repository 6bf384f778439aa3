"""The store on a Modal volume, seen from outside: what a container needs goes in, what it made comes out."""

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from calibration.artifacts import MANIFEST, Artifact, Store, inside
from calibration.backends.container import HOLDER, SIGN, Sign, read_sign
from calibration.backends.worker import DONE
from calibration.errors import ArtifactError

if TYPE_CHECKING:
    import modal


class Remote:
    """A store on a volume."""

    def __init__(self, volume: "modal.Volume") -> None:
        """Look at a volume; nothing is read before it is needed."""
        self.volume = volume

    async def put(self, artifact: Artifact, store: Store) -> None:
        """Bring an artifact there, unless it is there; its manifest last, so that half of one is none."""
        place = _place(artifact)
        if await self._read(f"{place}/{MANIFEST}") is not None:
            return
        folder = store.folder(artifact)
        async with self.volume.batch_upload(force=True) as batch:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path.name != MANIFEST:
                    batch.put_file(path, f"{place}/{path.relative_to(folder).as_posix()}")
        async with self.volume.batch_upload(force=True) as batch:
            batch.put_file(folder / MANIFEST, f"{place}/{MANIFEST}")

    async def get(self, artifact: Artifact, store: Store) -> Artifact:
        """Bring an artifact home, unless it is there, and check every byte.

        Raises:
            ArtifactError: It is not there, or not what it is called.
        """
        if store.is_whole(artifact):
            return artifact
        place = _place(artifact)
        manifest = await self._read(f"{place}/{MANIFEST}") or b"{}"
        with store.draft() as draft:
            for name in json.loads(manifest).get("files", {}):
                await self._save(f"{place}/{name}", inside(draft, name))
            if store.keep(artifact.kind, draft) != artifact:
                raise ArtifactError(
                    f"{artifact.kind} {artifact.sha256[:12]} must be on the volume as it was stored; it is "
                    "missing or altered. Run the experiment again: the job that made it will be repeated"
                )
        return artifact

    async def finished(self, key: str, store: Store) -> Artifact | None:
        """What came of this work, brought home, if it was ever brought to its end there."""
        marker = await self._read(f"scratch/{key}/{DONE}")
        if marker is None:
            return None
        # One whose result was lost or altered since is not finished.
        with suppress(ArtifactError, ValidationError):
            return await self.get(Artifact.model_validate_json(marker), store)
        return None

    async def forget(self, key: str) -> None:
        """Take away all that is left of this work."""
        with suppress(FileNotFoundError):
            await self.volume.remove_file.aio(f"scratch/{key}", recursive=True)

    async def holder(self, key: str) -> str:
        """The id of the call that began this work last; empty if none did, or once it is finished."""
        return (await self._read(f"scratch/{key}/{HOLDER}") or b"").decode("utf-8", "replace")

    async def sign(self, key: str) -> Sign:
        """The last sign of life of this work."""
        return read_sign(await self._read(f"scratch/{key}/{SIGN}") or b"")

    async def _read(self, path: str) -> bytes | None:
        try:
            return b"".join([chunk async for chunk in self.volume.read_file.aio(path)])
        except FileNotFoundError:
            return None

    async def _save(self, path: str, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        # A file that is missing shows in the digest of the whole.
        with place.open("wb") as file, suppress(FileNotFoundError):
            async for chunk in self.volume.read_file.aio(path):
                file.write(chunk)


def _place(artifact: Artifact) -> str:
    return f"artifacts/{artifact.kind}/{artifact.sha256}"
