"""The process that runs one job: the job comes in on standard input, JSON lines go out."""

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from calibration.artifacts import Artifact, Store, explaining_full_disk
from calibration.backends.arithmetic import fix_arithmetic
from calibration.errors import CalibrationError
from calibration.jobs import Job
from calibration.jobs.work import Progress, Work

DONE = "done.json"


def main() -> None:
    """Run the job that the parent sends, and tell the parent how it goes."""
    root, key = sys.argv[1:]
    say = _speaker()
    job: Job = TypeAdapter(Job).validate_json(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    store = Store(Path(root))
    try:
        with explaining_full_disk(store.root):
            artifact = perform(
                job, key, store, lambda fraction, note: say({"fraction": fraction, "note": note})
            )
    except CalibrationError as error:
        say({"error": type(error).__name__, "message": str(error)})
        return
    say({"artifact": artifact.model_dump()})


def perform(job: Job, key: str, store: Store, progress: Progress) -> Artifact:
    """Do the work, or what is left of it: what every backend runs, wherever that is."""
    fix_arithmetic(job.threads)
    artifact = finished(store, key) or job.run(Work(store, store.scratch(key), progress))
    finish(store, key, artifact)
    return artifact


def finished(store: Store, key: str) -> Artifact | None:
    """What an earlier process made of this work, if it ended before anyone could be told."""
    marker = store.scratch(key) / DONE
    try:
        artifact = Artifact.model_validate_json(marker.read_bytes())
    except (OSError, ValidationError):
        return None
    return artifact if store.is_whole(artifact) else None


def finish(store: Store, key: str, artifact: Artifact) -> None:
    """Replace the checkpoints by a note of what came of them, so that the work is never done twice."""
    scratch = store.scratch(key)
    draft = scratch / f"{DONE}.draft"
    draft.write_text(artifact.model_dump_json(), encoding="utf-8")
    draft.replace(scratch / DONE)
    # The note first: whoever is killed in between leaves checkpoints behind, and no work to do again.
    store.clear_scratch(key, but=DONE)


def forget(store: Store, key: str) -> None:
    """Take the note away, so that the work is done again; checkpoints of unfinished work stay."""
    (store.scratch(key) / DONE).unlink(missing_ok=True)


def begin_anew(store: Store, key: str) -> None:
    """Take everything away that is left of this work, checkpoints too."""
    shutil.rmtree(store.scratch(key))


def _speaker() -> Callable[[object], None]:
    """A writer to the parent; whatever libraries print goes to the log instead."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: object) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    return say


def _end_with_parent() -> None:
    """Wait for the parent to close the pipe, which its death does too, and end at once."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
