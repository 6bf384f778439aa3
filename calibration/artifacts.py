"""The content-addressed store: what one stage hands to the next.

An artifact is a folder named by the digest of its files. It is written to a draft, its manifest last,
and moved into place in one step, so a folder that has its name is whole. Every read checks the digest
again. An `Artifact` holds no path: it means the same on another machine.
"""

import errno
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

from calibration.errors import ArtifactError, CalibrationError, ConfigurationError, DiskFullError
from calibration.records import Row, read_rows, write_rows
from calibration.schema import Schema

MANIFEST = "manifest.json"
ROWS = "rows.parquet"
LEAST_BYTES = 65536
"""A disk with less is full, whatever a library's error says."""


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
            # When someone else stored the same content first, theirs is as good if it is whole.
            if not self.is_whole(artifact):
                raise
        return artifact

    def folder(self, artifact: Artifact) -> Path:
        """The folder of an artifact, after checking every byte against its digest.

        Raises:
            ArtifactError: It is missing, or its files are not those it was stored with.
        """
        if damage := self.damage(artifact):
            raise ArtifactError(
                f"{artifact.kind} must be in the store as it was stored; {damage}, in "
                f"{self._place(artifact)}. Run the experiment again: the stage that made it will be repeated"
            )
        return self._place(artifact)

    def made(self, artifact: Artifact) -> datetime:
        """When it was written here."""
        manifest = self._place(artifact) / MANIFEST
        return datetime.fromtimestamp(manifest.stat().st_mtime, UTC)

    def damage(self, artifact: Artifact) -> str:
        """What became of an artifact, in words that name it and its files; empty while it is whole."""
        place, name = self._place(artifact), f"{artifact.kind} {artifact.sha256[:12]}"
        if not (place / MANIFEST).is_file():
            return f"{name} is missing"
        files = _digests(place)
        if _combined(files) == artifact.sha256:
            return ""
        stored = _files_of(place / MANIFEST)
        altered = sorted(file for file, _ in stored.items() ^ files.items())
        return f"{name} was altered after it was stored ({', '.join(dict.fromkeys(altered))})"

    def is_whole(self, artifact: Artifact) -> bool:
        """Whether the artifact can be read as it was stored."""
        return not self.damage(artifact)

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

    def clear_scratch(self, key: str, but: str) -> None:
        """Remove the checkpoints of finished work; the file `but` stays."""
        for path in self.scratch(key).iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != but:
                path.unlink(missing_ok=True)

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


@contextmanager
def explaining_full_disk(folder: Path) -> Iterator[None]:
    """Say in one sentence that the disk of a folder is full, whichever library ran into it.

    Raises:
        DiskFullError: Instead of an error that comes of a full disk.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, CalibrationError) or not (_speaks_of_full(error) or _is_full(folder)):
            raise
        raise DiskFullError(
            f"{folder} must have room; the disk is full. Free some, then continue: "
            "slm-calibration resume latest"
        ) from error


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_full(folder: Path) -> bool:
    return folder.exists() and shutil.disk_usage(folder).free < LEAST_BYTES


def _speaks_of_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, speaks of a disk without room."""
    while error is not None:
        code = error.errno if isinstance(error, OSError) else None
        if code in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def _files_of(manifest: Path) -> dict[str, str]:
    """What a manifest says of each file; nothing when it is damaged, too."""
    try:
        return dict(json.loads(manifest.read_text(encoding="utf-8"))["files"])
    except (ValueError, KeyError, TypeError):
        return {}


def _combined(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
