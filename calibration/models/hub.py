"""Weights that exist already: on the Hugging Face hub, or in a folder."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from calibration.artifacts import file_sha256
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

    def obtain(
        self,
        documents: Sequence[Document],
        folder: Path,
        scratch: Path,
        progress: Callable[[float, str], None],
    ) -> None:
        """Write a pointer; the weights stay where they are, and there is nothing to learn.

        Raises:
            ConfigurationError: A folder is named and holds no model.
        """
        del documents, scratch
        pointer: dict[str, object] = {"repo": self.repo, "revision": self.revision}
        place = Path(self.repo)
        if place.is_dir():
            files = sorted(path for path in place.iterdir() if path.suffix in {".json", ".safetensors"})
            if not any(path.name == "config.json" for path in files):
                raise ConfigurationError(f"{place} must hold a Hugging Face model; it has no config.json")
            pointer = {
                "repo": str(place.absolute()),
                "files": {path.name: file_sha256(path) for path in files},
            }
        (folder / POINTER).write_text(json.dumps(pointer, indent=1, sort_keys=True), encoding="utf-8")
        progress(1.0, self.repo)


def locate(folder: Path) -> Path:
    """The folder with the weights of a stored model, downloaded first where it points to the hub."""
    if not (folder / POINTER).exists():
        return folder
    pointer = json.loads((folder / POINTER).read_text(encoding="utf-8"))
    if Path(pointer["repo"]).is_dir():
        return Path(pointer["repo"])
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(pointer["repo"], revision=pointer["revision"]))
