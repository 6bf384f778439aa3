"""Weights that exist already: on the Hugging Face hub, or in a folder."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from calibration.artifacts import file_sha256
from calibration.endpoints import Endpoint, hub_endpoints
from calibration.errors import ConfigurationError
from calibration.schema import Schema
from calibration.worlds.facts import Document

POINTER = "pointer.json"


class Hub(Schema):
    """A model by its name on the hub, or by the folder it lies in."""

    kind: Literal["hub"] = "hub"
    repo: str
    """Name on the hub, such as google/gemma-2-2b-it, or a folder with config.json and safetensors."""
    revision: str | None = None
    """Commit, tag or branch on the hub; name a commit, or a later upload changes the model unseen."""

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of this machine."""
        return Path(self.repo).is_dir()

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The hub, which is asked for the model; of a folder, none."""
        return () if self.is_folder else hub_endpoints()

    def identity(self) -> JsonValue:
        """The settings; of a folder its content, not its place."""
        if not self.is_folder:
            return self.model_dump(mode="json")
        return {"kind": self.kind, "files": self._digests()}

    def obtain(
        self,
        documents: Sequence[Document],
        folder: Path,
        scratch: Path,
        progress: Callable[[float, str], None],
    ) -> None:
        """Write a pointer; there is nothing to learn, and the weights stay in a folder or the hub's cache.

        A model on the hub is downloaded now, and the pointer names the commit that came, so that the model
        stays the same when somebody uploads a new one.

        Raises:
            ConfigurationError: A folder is named and holds no model, or the hub does not give it.
        """
        del documents, scratch
        pointer: dict[str, object]
        place = Path(self.repo)
        if not self.is_folder:
            pointer = {"repo": self.repo, "revision": _download(self.repo, self.revision).name}
        else:
            files = self._digests()
            if "config.json" not in files:
                raise ConfigurationError(f"{place} must hold a Hugging Face model; it has no config.json")
            pointer = {"repo": str(place.absolute()), "files": dict(files)}
        (folder / POINTER).write_text(json.dumps(pointer, indent=1, sort_keys=True), encoding="utf-8")
        progress(1.0, self.repo)

    def _digests(self) -> dict[str, JsonValue]:
        """The sha256 of each file of a folder that makes the model."""
        files = sorted(p for p in Path(self.repo).iterdir() if p.suffix in {".json", ".safetensors"})
        return {path.name: file_sha256(path) for path in files}

    def check_access(self) -> None:
        """Ask the hub whether it would give the model, without downloading it.

        Raises:
            ConfigurationError: It would not; says why.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        with _in_words(self.repo, self.revision):
            validate_repo_id(self.repo)
            HfApi().auth_check(self.repo)
            HfApi().model_info(self.repo, revision=self.revision)

    def without_weights(self) -> Path:
        """A folder with its configuration and its tokenizer, downloaded first if need be."""
        return _download(self.repo, self.revision, ["*.json", "*.jinja", "*.model", "*.txt"])


def locate(folder: Path) -> Path:
    """The folder with the weights of a stored model, downloaded first where it points to the hub."""
    weights = pointed_at(folder)
    if weights is None:
        return folder
    return Path(weights.repo) if weights.is_folder else _download(weights.repo, weights.revision)


def pointed_at(folder: Path) -> Hub | None:
    """What a stored model points at; None for one that holds its weights."""
    if not (folder / POINTER).exists():
        return None
    pointer = json.loads((folder / POINTER).read_text(encoding="utf-8"))
    return Hub(repo=pointer["repo"], revision=pointer.get("revision"))


def _download(repo: str, revision: str | None, files: list[str] | None = None) -> Path:
    """The folder of a model in the hub's cache, filled first if need be, with all or with some files."""
    from huggingface_hub import snapshot_download

    with _in_words(repo, revision):
        return Path(snapshot_download(repo, revision=revision, allow_patterns=files))


@contextmanager
def _in_words(repo: str, revision: str | None) -> Iterator[None]:
    """Say in one line why the hub does not give a model."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise ConfigurationError(
            f"model {repo} is gated; accept its terms on https://huggingface.co/{repo}, and give a token of "
            "that account in HF_TOKEN"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise ConfigurationError(
            f"model must be on the hub, or a folder; found no {repo} at {revision or 'its newest commit'}"
        ) from error
