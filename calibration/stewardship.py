"""What the runs need of a store, and what nobody needs: no run refers to it."""

import shlex
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from stat import S_ISDIR

from pydantic import ValidationError

from calibration.artifacts import Artifact, Store
from calibration.backends.ledger import Ledger
from calibration.backends.worker import DONE
from calibration.errors import ConfigurationError
from calibration.runs import Run, runs_root

LOCK, FOLDERS = "in-use.lock", "runs-folders.txt"


@contextmanager
def in_use(store: Store, runs: Path) -> Iterator[None]:
    """Keep a store from being cleaned up, and have it know where the runs are that use it."""
    import fcntl  # where there is none, the rest of the library can still be used

    store.root.mkdir(parents=True, exist_ok=True)
    with (store.root / LOCK).open("a") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_SH)
        if runs.resolve() not in _noted(store):
            with (store.root / FOLDERS).open("a", encoding="utf-8") as folders:
                folders.write(_line(store, runs.resolve()))
        yield


@contextmanager
def alone(store: Store) -> Iterator[None]:
    """Keep every run out of a store.

    Raises:
        ConfigurationError: A run is using it.
    """
    import fcntl  # as above

    with (store.root / LOCK).open("a") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            running = [run.folder.name for run in all_runs(store) if run.is_held()]
            raise ConfigurationError(
                f"the store {store.root} must be free to be cleaned up; "
                f"{' and '.join(running) or 'a run'} is using it. Wait until it has ended"
            ) from None
        yield


def runs_folders(store: Store) -> list[Path]:
    """The folders of runs that have used a store, gone or not, and the one that new runs go to."""
    current = runs_root().resolve()
    return [*dict.fromkeys([*_noted(store), *([current] if current.is_dir() else [])])]


def settle_folders(store: Store, forgotten: Collection[Path]) -> None:
    """Make sure that no folder of runs is gone but those to be forgotten, and note those that are left.

    Raises:
        ConfigurationError: One is gone, or one that is to be forgotten is not.
    """
    gone = [folder for folder in runs_folders(store) if not folder.is_dir()]
    names = ", ".join(map(str, gone))
    for folder in forgotten:
        if folder not in gone:
            raise ConfigurationError(
                f"--forget must be {names or 'left out, since no folder of runs is gone'}; got {folder}"
            )
    if not set(gone) <= set(forgotten):
        forget = " ".join(f"--forget {shlex.quote(str(folder))}" for folder in gone)
        raise ConfigurationError(
            f"every folder of runs must be there, or what its runs need would be removed; gone: {names}. "
            "Bring it back or, when its runs lie where --runs points or are gone for good, forget it: "
            f"slm-calibration gc {forget}"
        )
    draft = store.root / f"{FOLDERS}.draft"
    left = [folder for folder in runs_folders(store) if folder not in gone]
    draft.write_text("".join(_line(store, folder) for folder in left), encoding="utf-8")
    draft.replace(store.root / FOLDERS)


def all_runs(store: Store) -> list[Run]:
    """Every run that may refer to something in a store."""
    return [run for folder in runs_folders(store) for run in Run.all(folder)]


@dataclass(frozen=True)
class Leftover:
    """Something in a store that no run refers to."""

    kind: str
    path: Path
    bytes: int

    def remove(self) -> None:
        """Remove it. What it is made of may be gone already."""
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)


def leftovers(store: Store, older_than: timedelta = timedelta()) -> list[Leftover]:
    """What no run refers to, records of the cache first: a record must not outlive what it names.

    The ledgers (what judging found and cost, what is open on Modal and what that cost) are no leftovers, nor
    are the checkpoints of a call that is open.

    Args:
        store: Where to look.
        older_than: Leave out what was changed since.
    """
    uses = [use for run in all_runs(store) for use in run.uses()]
    records = {use.record for use in uses}
    work = {use.work for use in uses if use.work} | {call.key for call in Ledger(store).open()}
    used = [artifact for use in uses for artifact in use.artifacts] + _made_by(store, work)
    artifacts = {(artifact.kind, artifact.sha256) for artifact in used}
    root = store.root
    unreferred: dict[str, Iterable[Path]] = {
        "records": (
            path
            for path in root.glob("cache/*/*.json")
            if path.relative_to(root / "cache").as_posix() not in records
        ),
        "artifacts": (
            path for path in root.glob("artifacts/*/*") if (path.parent.name, path.name) not in artifacts
        ),
        "checkpoints": (path for path in root.glob("scratch/*") if path.name not in work),
        "logs": (path for path in root.glob("logs/*.log") if path.stem not in work),
        "drafts": root.glob("drafts/*"),
        "locks": root.glob("locks/*.lock"),
    }
    latest = datetime.now(UTC) - older_than
    found = [(kind, path, _extent(path)) for kind, paths in unreferred.items() for path in sorted(paths)]
    return [Leftover(kind, path, own[0]) for kind, path, own in found if own and own[1] <= latest]


def _noted(store: Store) -> list[Path]:
    path = store.root / FOLDERS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [(store.root.resolve().parent / line).resolve() for line in lines if line]


def _line(store: Store, folder: Path) -> str:
    """How a folder is noted: one beside the store, or deeper, is found again when both have moved."""
    beside = store.root.resolve().parent
    return f"{folder.relative_to(beside) if folder.is_relative_to(beside) else folder}\n"


def _made_by(store: Store, work: Collection[str]) -> list[Artifact]:
    """What has come of finished work: a run notes it only when its stage has ended."""
    made = []
    for key in work:
        with suppress(FileNotFoundError, ValidationError):
            note = (store.root / "scratch" / key / DONE).read_bytes()
            made.append(Artifact.model_validate_json(note))
    return made


def _extent(path: Path) -> tuple[int, datetime] | None:
    """Bytes of a file or folder, and when anything in it was last changed; None for what goes meanwhile."""
    try:
        states = [inner.lstat() for inner in (path, *path.rglob("*"))]
    except FileNotFoundError:
        return None
    size = sum(state.st_size for state in states if not S_ISDIR(state.st_mode))
    return size, datetime.fromtimestamp(max(state.st_mtime for state in states), UTC)
