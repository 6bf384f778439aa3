"""What can be started from the Prefect UI, or by a schedule: each flow with a form, and the table of them.

The flows are those of `flows`, and so are their cache keys. What is added is the form, and that everything
that can be checked cheaply is checked before the first stage, as the command line does.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from prefect import Flow, flow
from prefect.runtime import flow_run
from pydantic import Field

from calibration.artifacts import Store
from calibration.backends import BackendConfig
from calibration.config import Experiment
from calibration.preflight import preflight
from calibration.runs import Run, runs_root
from deployments.doctor import check_models
from deployments.forms import EXPERIMENTS, FOLDER, Changes, Form, Place, Usual, backend_of, experiment_of
from flows import pipeline

Shipped = Annotated[str, Field(json_schema_extra={"title": "Experiment", "enum": list(EXPERIMENTS)})]
OwnFile = Annotated[str, Field(json_schema_extra={"title": "Experiment file"})]
Differences = Annotated[Changes, Field(json_schema_extra={"title": "Changes"})]
On = Annotated[Place, Field(json_schema_extra={"title": "Where it runs"})]
Base = Annotated[str, Field(json_schema_extra={"title": "Measured run"})]
RunName = Annotated[str, Field(json_schema_extra={"title": "Run to continue"})]
Refresh = Annotated[str, Field(json_schema_extra={"title": "Repeat"})]

NOTHING, HERE = Changes(), Usual()


def _title() -> str:
    """What a run is called in the UI: its flow and its experiment."""
    asked = flow_run.parameters
    return f"{flow_run.flow_name} {Path(asked['file']).stem or asked['experiment']}"


@flow(name="calibrate", flow_run_name=_title)
async def calibrate(
    experiment: Shipped = "pocket",
    changes: Differences = NOTHING,
    on: On = HERE,
    file: OwnFile = "",
    run: RunName = "",
    refresh: Refresh = "",
) -> str:
    """Measure the models, try every method on the target, and say what came of it.

    Args:
        experiment: A shipped experiment. Press Submit, and it runs as it is.
        changes: What is to differ from it. Whatever is left open stays as the experiment has it.
        on: Where the heavy work runs; does not change the numbers.
        file: A TOML file on the machine that runs this, instead of a shipped experiment.
        run: Id of an earlier run, or "latest", which then goes on; left open, a new one begins.
        refresh: Stages whose name begins so are repeated although stored, such as "train dpo".

    Returns:
        The id of the run.
    """
    chosen, where = await _checked(file or experiment, changes, on)
    return await pipeline.calibrate.fn(chosen, where, _earlier(run), refresh or None)


@flow(name="baseline", flow_run_name=_title)
async def baseline(
    experiment: Shipped = "pocket",
    changes: Differences = NOTHING,
    on: On = HERE,
    file: OwnFile = "",
    run: RunName = "",
    refresh: Refresh = "",
) -> str:
    """Measure the models as they are, without any training.

    Args:
        experiment: A shipped experiment. Press Submit, and it runs as it is.
        changes: What is to differ from it. Whatever is left open stays as the experiment has it.
        on: Where the heavy work runs; does not change the numbers.
        file: A TOML file on the machine that runs this, instead of a shipped experiment.
        run: Id of an earlier run, or "latest", which then goes on; left open, a new one begins.
        refresh: Stages whose name begins so are repeated although stored, such as "train dpo".

    Returns:
        The id of the run.
    """
    chosen, where = await _checked(file or experiment, changes, on)
    return await pipeline.baseline.fn(chosen, where, _earlier(run), refresh or None)


@flow(name="compare", flow_run_name=_title)
async def compare(
    experiment: Shipped = "pocket",
    base: Base = "latest",
    changes: Differences = NOTHING,
    on: On = HERE,
    file: OwnFile = "",
    run: RunName = "",
    refresh: Refresh = "",
) -> str:
    """Try methods on models that another run has measured.

    Args:
        experiment: A shipped experiment. Press Submit, and it runs as it is.
        base: Id of the run whose measured models are used; "latest" is the newest.
        changes: What is to differ from it. Whatever is left open stays as the experiment has it.
        on: Where the heavy work runs; does not change the numbers.
        file: A TOML file on the machine that runs this, instead of a shipped experiment.
        run: Id of an earlier run, or "latest", which then goes on; left open, a new one begins.
        refresh: Stages whose name begins so are repeated although stored, such as "train dpo".

    Returns:
        The id of the run.
    """
    chosen, where = await _checked(file or experiment, changes, on)
    measured = Run.find(runs_root(), base).folder.name
    return await pipeline.compare.fn(chosen, measured, where, _earlier(run), refresh or None)


def _earlier(run: str) -> str | None:
    """The id of an earlier run; None when none was named."""
    return Run.find(runs_root(), run).folder.name if run else None


async def _checked(experiment: str, changes: Form, on: Form) -> tuple[Experiment, BackendConfig]:
    """What was asked for, after every check that costs nothing."""
    path = Path(experiment) if experiment.endswith(".toml") else FOLDER / f"{experiment}.toml"
    chosen, where, store = experiment_of(path, changes), backend_of(on), Store.from_environment()
    questions = await asyncio.to_thread(preflight, chosen)
    store.check_writable()
    await where.check(store)
    await check_models(where, chosen, questions)
    return chosen, where


@dataclass(frozen=True)
class Entry:
    """One flow as it is deployed; the deployment is called what the flow is called."""

    flow: Flow[..., Any]
    tags: tuple[str, ...] = ()
    weekly: str | None = None
    """A cron line, in UTC; declared paused, so that nothing is spent that nobody switched on."""
    at_once: int | None = None
    """How many of its runs may go on together; further ones wait their turn."""

    @property
    def name(self) -> str:
        """What flow and deployment are called."""
        return self.flow.name

    @property
    def entrypoint(self) -> str:
        """Where the flow is found by whoever runs it."""
        return f"{self.flow.fn.__module__}.{self.flow.fn.__name__}"


ENTRIES = (
    Entry(calibrate, ("train",)),
    Entry(baseline, ("measure",)),
    Entry(compare, ("train",)),
)
"""Everything that is deployed. `deployments/prefect.yaml` says the same for work pools."""
