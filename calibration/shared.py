"""A place that several machines share: a bucket that speaks S3, or a folder that all of them mount.

Each machine works on a store of its own. What a stage made on one is put here, and another fetches it from
here and checks every byte. Who may enter comes from the environment, in S3's own way.
"""

import json
import os
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

from calibration.artifacts import MANIFEST, Artifact, Store, inside
from calibration.endpoints import Endpoint
from calibration.errors import ArtifactError, ConfigurationError

VARIABLE = "SLM_CALIBRATION_SHARED"
BUCKET, FOLDER = "s3://", "file://"
CONDITION_FAILED = (409, 412)
"""What S3 answers to a write whose condition did not hold."""


class Shared:
    """The artifacts, cache records and leases under one address."""

    def __init__(self, url: str) -> None:
        """Name the place; nothing is read before it is needed.

        Raises:
            ConfigurationError: It is neither a bucket nor a folder.
        """
        if not url.startswith((BUCKET, f"{FOLDER}/")):
            raise ConfigurationError(
                f"{VARIABLE} must be {BUCKET}bucket/prefix or {FOLDER}/folder; got {url!r}. "
                "Unset it to work on one machine"
            )
        self.url = url.rstrip("/")

    @classmethod
    def from_environment(cls) -> "Shared | None":
        """The place named by SLM_CALIBRATION_SHARED, if there is one."""
        url = os.environ.get(VARIABLE)
        return cls(url) if url else None

    @property
    def folder(self) -> Path | None:
        """Where it is mounted, if it is a folder."""
        return Path(self.url.removeprefix(FOLDER)) if self.url.startswith(FOLDER) else None

    @property
    def endpoint(self) -> Endpoint:
        """Where it is."""
        return Endpoint(address=self.url, receives="questions, answers, models and the cache's records")

    def check(self) -> None:
        """See that it can be written to, and that two writers cannot both be the first.

        Raises:
            ConfigurationError: It can't, or they can.
        """
        probe = f"{self.url}/probe-{uuid4().hex}"
        try:
            self._files.pipe_file(probe, b"1", mode="create")
            is_heeded = self._is_there(probe)
            self._files.rm_file(probe)
        except ConfigurationError:
            raise
        except Exception as error:  # every kind of storage has errors of its own
            raise ConfigurationError(
                f"{VARIABLE} must name a place that can be written to; {self.url}: {error}. Make the "
                "bucket or the folder, and set AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        if not is_heeded:
            raise ConfigurationError(
                f"{VARIABLE} must name a service that heeds If-None-Match; {self.url} does not, and two "
                "machines would do the same work. Use another one"
            )

    def put(self, artifact: Artifact, store: Store) -> None:
        """Bring an artifact here, unless it is here; its manifest last, so that half of one is none."""
        place = self._place(artifact)
        if self._content(f"{place}/{MANIFEST}") is not None:
            return
        folder = store.folder(artifact)
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        for name in sorted(names, key=lambda name: (name == MANIFEST, name)):
            self._make_room(f"{place}/{name}")
            self._files.put_file(str(folder / name), f"{place}/{name}")

    def get(self, artifact: Artifact, store: Store) -> Artifact:
        """Bring an artifact into a store, unless it is whole there, and check every byte.

        Raises:
            ArtifactError: It is not here, or not what it is called. It is then taken away, so that whoever
                makes it next can put it here.
        """
        if store.is_whole(artifact):
            return artifact
        place = self._place(artifact)
        manifest = self._content(f"{place}/{MANIFEST}")
        with store.draft() as draft:
            for name in _listed(manifest or b""):
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                # A file that is missing shows in the digest of the whole.
                with suppress(FileNotFoundError):
                    self._files.get_file(f"{place}/{name}", str(draft / name))
            if store.keep(artifact.kind, draft) == artifact:
                # It was made when it was put here, not when it is fetched.
                made = self._files.modified(f"{place}/{MANIFEST}").timestamp()
                os.utime(store.folder(artifact) / MANIFEST, (made, made))
                return artifact
        if manifest is not None:
            self._files.rm_file(f"{place}/{MANIFEST}")
        raise ArtifactError(
            f"{artifact.kind} {artifact.sha256[:12]} must be in {self.url} as it was stored; it is "
            f"{'missing' if manifest is None else 'altered'}. Run the experiment again: the stage that "
            "made it will be repeated"
        )

    def load(self, name: str) -> bytes | None:
        """What is in a small file; None if there is none."""
        return self._content(f"{self.url}/{name}")

    def save(self, name: str, content: bytes) -> None:
        """Write a small file."""
        self._make_room(f"{self.url}/{name}")
        self._files.pipe_file(f"{self.url}/{name}", content)

    def note(self, key: str, artifact: Artifact) -> None:
        """Note what came of some work."""
        self.save(f"done/{key}.json", artifact.model_dump_json().encode())

    def noted(self, key: str) -> Artifact | None:
        """What came of some work, if it was ever brought to its end by someone who noted it."""
        content = self.load(f"done/{key}.json")
        if content is None:
            return None
        artifact = Artifact.model_validate_json(content)
        return None if self._content(f"{self._place(artifact)}/{MANIFEST}") is None else artifact

    def forget(self, key: str) -> None:
        """Take the note away, so that the work is done again."""
        with suppress(FileNotFoundError):
            self._files.rm_file(f"{self.url}/done/{key}.json")

    def read(self, name: str) -> tuple[str, bytes] | None:
        """The version of a small file in the bucket, and what is in it; None if there is none."""
        try:
            head = self._files.call_s3("head_object", **self._object(name))
        except FileNotFoundError:
            return None
        return head["ETag"], self.load(name) or b""

    def replace(self, name: str, expected: str | None, content: bytes) -> str | None:
        """Write a file in the bucket if its version is the expected one, None for no file.

        A version is S3's digest of the content: two equal contents are one version.

        Returns:
            The new version; None if another one was there.
        """
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        try:
            done = self._files.call_s3("put_object", **self._object(name), Body=content, **condition)
        except OSError as error:
            answer = getattr(error.__cause__, "response", {}).get("ResponseMetadata", {})
            if answer.get("HTTPStatusCode") in CONDITION_FAILED:
                return None
            raise
        version: str = done["ETag"]
        return version

    @cached_property
    def _files(self) -> Any:  # noqa: ANN401 - fsspec has no types
        from fsspec.core import url_to_fs

        try:
            files, _ = url_to_fs(self.url)
        except ImportError as error:
            raise ConfigurationError(
                f"{VARIABLE}={self.url} must have the package s3fs; it is not installed. "
                "Run: pip install 'slm-calibration[shared]'"
            ) from error
        return files

    def _is_there(self, path: str) -> bool:
        """Whether a second write finds the first."""
        try:
            self._files.pipe_file(path, b"2", mode="create")
        except FileExistsError:
            return True
        return False

    def _content(self, path: str) -> bytes | None:
        try:
            content: bytes = self._files.cat_file(path)
        except FileNotFoundError:
            return None
        return content

    def _make_room(self, path: str) -> None:
        """A folder needs folders; a bucket has none."""
        if self.folder is not None:
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _object(self, name: str) -> dict[str, str]:
        bucket, _, key = f"{self.url.removeprefix(BUCKET)}/{name}".partition("/")
        return {"Bucket": bucket, "Key": key}

    def _place(self, artifact: Artifact) -> str:
        return f"{self.url}/artifacts/{artifact.kind}/{artifact.sha256}"


def _listed(manifest: bytes) -> list[str]:
    """The files of a manifest; none of one that was cut off, or that names a place outside."""
    try:
        names = list(json.loads(manifest)["files"])
        for name in names:
            inside(Path(), name)
    except (ValueError, KeyError, TypeError, ArtifactError):
        return []
    return names
