"""Checkpoints of long work: a folder each, sealed when it is whole, and continued only while its seal holds.

What a power cut or a bad disk has left of one is set aside under another name, and told. The one before is
continued, and where there is none the work begins anew.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

from calibration.artifacts import file_sha256

SEAL = "seal.json"
SET_ASIDE = "set aside: "
"""How the note of a job begins that names a checkpoint which cannot be continued."""
PREFIX, DAMAGED, UNFINISHED = "checkpoint-", "damaged-", "unfinished-"
KEPT = 2
"""So many are kept: the newest, and the one before in case that is damaged."""

Progress = Callable[[float, str], None]


class Checkpoints:
    """The checkpoints of one piece of work, named by the steps that are done."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        """Look at a folder, which is made when a checkpoint is written.

        Args:
            folder: Where they lie.
            progress: Told, as a note, which of them is set aside.
        """
        self.folder, self._progress = folder, progress

    def whole(self) -> Iterator[Path]:
        """Those that can be continued, the newest first; damaged ones are set aside on the way."""
        found = [path for path in self.folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
        for checkpoint in sorted(found, key=steps_of, reverse=True):
            if not (checkpoint / SEAL).exists():
                shutil.rmtree(checkpoint, ignore_errors=True)  # the process was stopped while it was written
            elif damaged := _damage(checkpoint):
                self.set_aside(checkpoint, damaged)
            else:
                yield checkpoint

    def set_aside(self, checkpoint: Path, why: str) -> None:
        """Take a checkpoint out of the way, and say so; the last of its name is kept to look at."""
        place = checkpoint.with_name(f"{DAMAGED}{checkpoint.name}")
        shutil.rmtree(place, ignore_errors=True)
        checkpoint.rename(place)
        self._progress(0.0, f"{SET_ASIDE}{checkpoint.name} ({why}), kept as {place}")

    def write(self, steps: int, fill: Callable[[Path], None]) -> None:
        """Write a checkpoint, all of it or nothing, and remove those that are no longer needed."""
        draft = self.folder / f"{UNFINISHED}{uuid4().hex}"
        draft.mkdir(parents=True)
        try:
            fill(draft)
            seal(draft)
            place = self.folder / f"{PREFIX}{steps}"
            shutil.rmtree(place, ignore_errors=True)
            draft.rename(place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        for old in sorted(self.folder.glob(f"{PREFIX}*"), key=steps_of)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def steps_of(checkpoint: Path) -> int:
    """How many steps were done when it was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


def seal(checkpoint: Path) -> None:
    """Say that a checkpoint is whole, by the digest of each of its files."""
    draft = checkpoint / f"{SEAL}.draft"
    draft.write_text(json.dumps(_digests(checkpoint), indent=1), encoding="utf-8")
    draft.replace(checkpoint / SEAL)


def _damage(checkpoint: Path) -> str:
    """The files that are not as they were sealed; empty if there are none."""
    try:
        sealed = dict(json.loads((checkpoint / SEAL).read_text(encoding="utf-8")))
        altered = sealed.items() ^ _digests(checkpoint).items()
    except (OSError, ValueError, TypeError):
        return SEAL
    return ", ".join(sorted({name for name, _ in altered}))


def _digests(checkpoint: Path) -> dict[str, str]:
    files = (path for path in checkpoint.rglob("*") if path.is_file() and not path.name.startswith(SEAL))
    return {path.relative_to(checkpoint).as_posix(): file_sha256(path) for path in sorted(files)}
