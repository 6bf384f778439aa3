"""The content-addressed store: what one stage hands to the next.

An artifact is a folder named by the digest of its files. It is written to a draft, its manifest last,
and moved into place in one step, so a folder that has its name is whole. Every read checks the digest
again. An `Artifact` holds no path: it means the same on another machine.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from pydantic import Field

from calibration.errors import ArtifactError, ConfigurationError
from calibration.records import Row, read_rows, write_rows
from calibration.schema import Schema

MANIFEST = "manifest.json"
ROWS = "rows.parquet"


class Artifact(Schema):
    """A reference to stored files, by what they are and what is in them."""

    kind: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    """What it is: questions, generations, verdicts, model, adapter, ..."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Digest over the names and contents of its files."""


class Store:
    """A folder of artifacts, and of what is needed while they are made.

    Layout: `artifacts/<kind>/<sha256>/`, `drafts/`, `scratch/<key>/` (checkpoints of work in progress),
    `logs/`, and `cache/` and `locks/`, which the orchestrator uses.
    """

    def __init__(self, root: Path) -> None:
        """Open the store at a folder, which is made when first written to."""
        self.root = root.absolute()

    @classmethod
    def from_environment(cls) -> "Store":
        """The store named by SLM_CALIBRATION_STORE, else `.calibration` in the working directory."""
        return cls(Path(os.environ.get("SLM_CALIBRATION_STORE", ".calibration")))

    def check_writable(self) -> None:
        """Fail now rather than after hours of work.

        Raises:
            ConfigurationError: The folder cannot be made or written to.
        """
        probe = self.root / f".probe-{uuid.uuid4().hex}"
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigurationError(
                f"the store {self.root} must be a writable folder; {error.strerror}. "
                "Name another one with --store or SLM_CALIBRATION_STORE"
            ) from error

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """An empty folder to fill; it is gone afterwards unless `keep` took it over."""
        folder = self.root / "drafts" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, kind: str, draft: Path) -> Artifact:
        """Move a filled draft into place and return its reference; equal content is stored once."""
        files = _digests(draft)
        artifact = Artifact(kind=kind, sha256=_combined(files))
        (draft / MANIFEST).write_text(
            json.dumps({"kind": kind, "sha256": artifact.sha256, "files": files}, indent=1), encoding="utf-8"
        )
        place = self._place(artifact)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists() and not self.is_whole(artifact):
            shutil.rmtree(place)
        try:
            draft.rename(place)
        except OSError:
            # Someone else stored the same content first; theirs is as good if it is whole.
            self.folder(artifact)
        return artifact

    def folder(self, artifact: Artifact) -> Path:
        """The folder of an artifact, after checking every byte against its digest.

        Raises:
            ArtifactError: It is missing, or its files are not those it was stored with.
        """
        place = self._place(artifact)
        if not (place / MANIFEST).is_file():
            raise ArtifactError(
                f"{artifact.kind} {artifact.sha256[:12]} must be in the store; {place} is missing. "
                "Run the experiment again: the stage that made it will be repeated"
            )
        if _combined(_digests(place)) != artifact.sha256:
            raise ArtifactError(
                f"{artifact.kind} {artifact.sha256[:12]} was altered after it was stored; look at {place}. "
                "Run the experiment again: the stage that made it will be repeated"
            )
        return place

    def made(self, artifact: Artifact) -> datetime:
        """When it was written here."""
        manifest = self._place(artifact) / MANIFEST
        return datetime.fromtimestamp(manifest.stat().st_mtime, UTC)

    def is_whole(self, artifact: Artifact) -> bool:
        """Whether the artifact can be read as it was stored."""
        try:
            self.folder(artifact)
        except ArtifactError:
            return False
        return True

    def save_rows(self, kind: str, rows: Sequence[Schema], row_kind: type[Schema]) -> Artifact:
        """Store a table of records as an artifact of its own."""
        with self.draft() as draft:
            write_rows(rows, draft / ROWS, row_kind)
            return self.keep(kind, draft)

    def load_rows(self, artifact: Artifact, row_kind: type[Row]) -> list[Row]:
        """Read back a table of records."""
        return read_rows(self.folder(artifact) / ROWS, row_kind)

    def scratch(self, key: str) -> Path:
        """A folder for the checkpoints of one piece of work; it outlives a killed process."""
        folder = self.root / "scratch" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def forget_scratch(self, key: str) -> None:
        """Remove the checkpoints of finished work."""
        shutil.rmtree(self.root / "scratch" / key, ignore_errors=True)

    def log(self, key: str) -> Path:
        """The file that a job writes its messages to."""
        (self.root / "logs").mkdir(parents=True, exist_ok=True)
        return self.root / "logs" / f"{key}.log"

    def _place(self, artifact: Artifact) -> Path:
        return self.root / "artifacts" / artifact.kind / artifact.sha256


def inside(folder: Path, name: str) -> Path:
    """The place of a file that a manifest names.

    Raises:
        ArtifactError: It would be outside of the folder.
    """
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ArtifactError(f"a file of an artifact must lie in its folder; its manifest names {name!r}")
    return folder / name


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def _combined(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
