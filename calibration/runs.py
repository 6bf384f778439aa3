"""The folder of one run: what was asked, how far it came, and what it says."""

import json
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from calibration.config import Experiment, Name
from calibration.errors import ConfigurationError
from calibration.results import StageRecord
from calibration.schema import Schema

RUN, STAGES, SUMMARY, LATEST = "run.json", "stages.jsonl", "summary.txt", "latest"
BASELINE = "baseline.json"


class RunRecord(Schema):
    """What is known of a run without looking into its report."""

    run: Name
    flow: Literal["calibrate", "baseline", "compare", "remeasure", "sweep"]
    experiment: Experiment
    backend: str
    """The backend's settings, as JSON."""
    started: datetime
    state: Literal["Running", "Completed", "Failed"] = "Running"
    seconds: float | None = None
    error: str = ""
    baseline: str | None = None
    """The run whose measured models are compared."""


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
        run.save(record)
        pointer = root / f".{LATEST}-{secrets.token_hex(4)}"
        pointer.symlink_to(record.run)
        pointer.replace(root / LATEST)
        return run

    @classmethod
    def find(cls, root: Path, name: str) -> "Run":
        """A run by its id, or `latest`.

        Raises:
            ConfigurationError: There is none of that name; the message lists those there are.
        """
        folder = (root / name).resolve()
        if not (folder / RUN).is_file():
            known = [run.folder.name for run in cls.all(root)][-5:]
            raise ConfigurationError(
                f"run must be one of {', '.join(known) or '(there are none yet)'} in {root}; got {name!r}"
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
        draft = self.folder / f"{RUN}.draft"
        draft.write_text(record.model_dump_json(indent=1), encoding="utf-8")
        draft.replace(self.folder / RUN)

    def append(self, stage: StageRecord) -> None:
        """Note a finished stage."""
        with (self.folder / STAGES).open("a", encoding="utf-8") as file:
            file.write(stage.model_dump_json() + "\n")

    def stages(self) -> list[StageRecord]:
        """Its finished stages, in the order in which they finished."""
        path = self.folder / STAGES
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [StageRecord.model_validate(json.loads(line)) for line in lines]

    def restart(self) -> None:
        """Forget the stages of an earlier attempt; their results stay in the store."""
        (self.folder / STAGES).unlink(missing_ok=True)


def runs_root() -> Path:
    """The folder named by SLM_CALIBRATION_RUNS, else `runs` in the working directory."""
    return Path(os.environ.get("SLM_CALIBRATION_RUNS", "runs")).absolute()


def new_run_id(experiment: str) -> str:
    """A name that sorts by time and is not taken twice."""
    return f"{experiment}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
