"""The folder of one run: what was asked, how far it came, and what it says."""

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from calibration.artifacts import Artifact
from calibration.config import Experiment, Name
from calibration.errors import ConfigurationError
from calibration.results import StageRecord
from calibration.schema import Schema
from calibration.spending import Spending

RUN, STAGES, SUMMARY, LATEST = "run.json", "stages.jsonl", "summary.txt", "latest"
BASELINE, USES, SPENDING, LOCK = "baseline.json", "uses.jsonl", "spending.json", "lock"
LOCK_SECONDS = 1.0
"""How long to try to hold a run: whoever only looks whether it is held has it for an instant."""

Line = TypeVar("Line", bound=Schema)


class RunRecord(Schema):
    """What is known of a run without looking into its report."""

    run: Name
    flow: Literal["calibrate", "baseline", "compare", "remeasure", "sweep"]
    experiment: Experiment
    backend: str
    """The backend's settings, as JSON."""
    started: datetime
    state: Literal["Running", "Completed", "Failed", "Stopped"] = "Running"
    """As the process that ran it has written it: one that was killed has written nothing; see `Run.state`."""
    seconds: float | None = None
    error: str = ""
    baseline: str | None = None
    """The run whose measured models are compared."""
    flow_run: str | None = None
    """Prefect's id of the flow run; when it is retried, this run is continued."""


class Use(Schema):
    """What a run needs of the store, noted when it came to need it."""

    record: str | None = None
    """Path of a stage's record in the cache."""
    work: str | None = None
    """Key of a job's checkpoints and messages."""
    artifacts: tuple[Artifact, ...] = ()


class Run:
    """One run's folder."""

    def __init__(self, folder: Path) -> None:
        """Open an existing folder."""
        self.folder = folder

    @classmethod
    def begin(cls, root: Path, record: RunRecord) -> "Run":
        """Make the folder of a new run and point `latest` to it."""
        run = cls(root / record.run)
        run.folder.mkdir(parents=True)
        try:
            (run.folder / USES).touch()
            run.save(record)
            _point(root, record.run)
        except BaseException:
            shutil.rmtree(run.folder, ignore_errors=True)  # half a run could not be found again
            raise
        return run

    @classmethod
    def find(cls, root: Path, name: str) -> "Run":
        """A run by its id, or `latest`.

        Raises:
            ConfigurationError: There is none of that name; the message lists those there are.
        """
        folder = (root / name).resolve()
        if folder.parent != root.resolve() or not (folder / RUN).is_file():
            known = [run.folder.name for run in cls.all(root)][-5:]
            raise ConfigurationError(
                f"run must be one of {', '.join(known) or '(there are none yet)'} in {root}; got {name!r}. "
                "The folder of other runs is named with --runs"
            )
        return cls(folder)

    @classmethod
    def all(cls, root: Path) -> Iterator["Run"]:
        """Every run, oldest first."""
        found = [cls(path.parent) for path in root.glob(f"*/{RUN}") if path.parent.name != LATEST]
        return iter(sorted(found, key=lambda run: run.read().started))

    def read(self) -> RunRecord:
        """What is known of it."""
        return RunRecord.model_validate_json((self.folder / RUN).read_text(encoding="utf-8"))

    def save(self, record: RunRecord) -> None:
        """Replace what is known of it, in one step."""
        _replace(self.folder / RUN, record.model_dump_json(indent=1))

    def append(self, stage: StageRecord) -> None:
        """Note a stage that begins, which is `Running`, or one that has ended."""
        _append(self.folder / STAGES, stage)

    def stages(self) -> list[StageRecord]:
        """Its finished stages, in the order in which they finished."""
        return [stage for stage in _lines(self.folder / STAGES, StageRecord) if stage.state != "Running"]

    def under_way(self) -> list[str]:
        """The stages that began and have not ended."""
        names: dict[str, None] = {}
        for stage in _lines(self.folder / STAGES, StageRecord):
            if stage.state == "Running":
                names[stage.name] = None
            else:
                names.pop(stage.name, None)
        return list(names)

    def restart(self) -> None:
        """Forget the stages and the summary of an earlier attempt.

        What its stages made stays in the store, and this run's; its report, until there is another.
        """
        for name in (STAGES, SUMMARY):
            (self.folder / name).unlink(missing_ok=True)

    def use(self, use: Use) -> None:
        """Note what it needs of the store."""
        _append(self.folder / USES, use)

    def uses(self) -> list[Use]:
        """What it needs of the store, over all attempts.

        Raises:
            ConfigurationError: It is of a version that kept no account of it.
        """
        if not (self.folder / USES).exists():
            raise ConfigurationError(
                f"run {self.folder.name} must say what it uses of the store; it is of an earlier version. "
                f"Continue it (slm-calibration resume {self.folder.name}) or delete its folder"
            )
        return _lines(self.folder / USES, Use)

    def spend(self, spending: Spending) -> None:
        """Note what it has cost so far."""
        _replace(self.folder / SPENDING, spending.model_dump_json())

    def spending(self) -> Spending:
        """What it has cost so far, over all attempts."""
        path = self.folder / SPENDING
        return Spending.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else Spending()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only one who runs it; the kernel lets go when the process ends, however it ends.

        Raises:
            ConfigurationError: Somebody else runs it.
        """
        with (self.folder / LOCK).open("a+", encoding="utf-8") as file:
            deadline = time.monotonic() + LOCK_SECONDS
            while not _try_lock(file.fileno()):
                if time.monotonic() >= deadline:
                    file.seek(0)
                    raise ConfigurationError(
                        f"run {self.folder.name} must be continued by one process at a time; "
                        f"{file.read().strip() or 'another process'} is at it. Wait until it has ended"
                    )
                time.sleep(LOCK_SECONDS / 20)
            file.truncate(0)
            file.write(f"process {os.getpid()}")
            file.flush()
            yield

    def is_held(self) -> bool:
        """Whether a process runs it now."""
        if not (self.folder / LOCK).exists():
            return False
        with (self.folder / LOCK).open("r", encoding="utf-8") as file:
            return not _try_lock(file.fileno())

    def state(self) -> str:
        """How it goes: `Running`, `Completed`, `Failed` or `Stopped`; a killed process stops its run."""
        state = self.read().state
        return "Stopped" if state == "Running" and not self.is_held() else state

    def stopped_at(self) -> str:
        """The stages that failed or, when none has, those that were begun; "" when all is well."""
        failed = [stage.name for stage in self.stages() if stage.state not in {"Completed", "Cached"}]
        return ", ".join(failed or self.under_way())

    def delete(self) -> None:
        """Remove its folder; what only it used stays in the store until that is cleaned up.

        Raises:
            ConfigurationError: It is running.
        """
        root = self.folder.parent
        with self.held():
            shutil.rmtree(self.folder)
        if not (root / LATEST).exists():
            (root / LATEST).unlink(missing_ok=True)
            for newest in list(Run.all(root))[-1:]:
                _point(root, newest.folder.name)


def runs_root() -> Path:
    """The folder named by SLM_CALIBRATION_RUNS, else `runs` in the working directory."""
    return Path(os.environ.get("SLM_CALIBRATION_RUNS", "runs")).absolute()


def new_run_id(experiment: str) -> str:
    """A name that sorts by time and is not taken twice."""
    return f"{experiment}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def run_of(root: Path, flow_run: str) -> str | None:
    """The id of the run that a Prefect flow run has begun, if there is one."""
    return next((run.folder.name for run in Run.all(root) if run.read().flow_run == flow_run), None)


def _point(root: Path, name: str) -> None:
    """Have `latest` point to a run, in one step."""
    pointer = root / f".{LATEST}-{secrets.token_hex(4)}"
    pointer.symlink_to(name)
    pointer.replace(root / LATEST)


def _replace(path: Path, text: str) -> None:
    """Write a file in one step."""
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _append(path: Path, line: Schema) -> None:
    """Add a line, on a line of its own even where a full disk has cut the last one short."""
    with path.open("ab+") as file:
        if file.tell() and not _ends_line(file.fileno(), file.tell()):
            file.write(b"\n")
        file.write(line.model_dump_json(exclude_defaults=True).encode() + b"\n")


def _ends_line(descriptor: int, size: int) -> bool:
    return os.pread(descriptor, 1, size - 1) == b"\n"


def _lines(path: Path, kind: type[Line]) -> list[Line]:
    """The whole lines of a file. One that was cut short says nothing: its stage failed with it."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(ValidationError):
            found.append(kind.model_validate_json(line))
    return found


def _try_lock(descriptor: int) -> bool:
    import fcntl  # where there is none, the rest of the library can still be used

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
