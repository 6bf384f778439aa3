"""What can be started from the Prefect UI, or by a schedule: each flow with a form, and the table of them.

The flows are those of `flows`, and so are their cache keys. What is added is the form, and that everything
that can be checked cheaply is checked before the first stage, as the command line does. Each returns the id
of its run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, MinLen
from prefect import Flow, flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from pydantic import Field, JsonValue

from calibration.backends import BackendConfig
from calibration.config import Experiment, load_experiment
from calibration.endpoints import addresses_in
from calibration.runs import Run, runs_root
from calibration.variants import read_values
from deployments.checks import check_before
from deployments.forms import EXPERIMENTS, FOLDER, Changes, Form, Measuring, Place, Usual, changed, place_of
from flows import pipeline
from flows import remeasure as remeasuring
from flows import sweep as sweeping
from tasks.record import continued


def _asked(title: str, text: str, **more: JsonValue) -> Any:  # noqa: ANN401 - as pydantic has it
    """What a form says of a parameter. Prefect writes over a field's own title and description, not these."""
    return Field(json_schema_extra={"title": title, "description": text, **more})


CHANGES = _asked("Changes", "What is to differ. Whatever is left open stays as the experiment has it.")

Shipped = Annotated[
    str,
    _asked("Experiment", "A shipped one. Press Submit, and it runs as it is.", enum=list(EXPERIMENTS)),
]
Differences = Annotated[Changes, CHANGES]
Measured = Annotated[Measuring, CHANGES]
On = Annotated[Place, _asked("Where it runs", "Where the heavy work runs; does not change the numbers.")]
OwnFile = Annotated[
    str,
    _asked("Experiment file", "A TOML file on the machine that runs this, instead of a shipped experiment."),
]
Base = Annotated[
    str, _asked("Measured run", 'Id of the run whose measured models are used; "latest" is the newest.')
]
Followed = Annotated[
    str,
    _asked("Measured run", 'Id of the run whose policy a router follows; "latest" is the newest.'),
]
RunName = Annotated[
    str,
    _asked(
        "Run to continue",
        'Id of an earlier run, or "latest", which then goes on; left open, a new one begins.',
    ),
]
Refresh = Annotated[
    str, _asked("Repeat", 'Stages whose name begins so are repeated although stored, such as "judge".')
]
Confirmed = Annotated[
    tuple[str, ...],
    _asked(
        "Confirmed endpoints",
        "Addresses that the experiment names and that questions and keys may be sent to. Each is asked for "
        "once; what is filled in under Changes needs no mention here.",
    ),
]
Grid = Annotated[
    list[str],
    _asked(
        "Settings to try", "A setting and its values in each line, such as methods.dpo.beta=0.05,0.1,0.3."
    ),
    MinLen(1),
]
AtOnce = Annotated[int, _asked("At once", "How many combinations are trained and asked at a time."), Ge(1)]

NOTHING, MEASURED, HERE, TRIED = Changes(), Measuring(), Usual(), ["methods.dpo.beta=0.05,0.1,0.3"]


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
    endpoints: Confirmed = (),
) -> str:
    """Measure the models, try every method on the target, and say what came of it."""
    chosen, where = await _checked(_named(file or experiment), changes, on, run, endpoints)
    return await pipeline.calibrate.fn(chosen, where, _earlier(run), refresh or None)


@flow(name="baseline", flow_run_name=_title)
async def baseline(
    experiment: Shipped = "pocket",
    changes: Measured = MEASURED,
    on: On = HERE,
    file: OwnFile = "",
    run: RunName = "",
    refresh: Refresh = "",
    endpoints: Confirmed = (),
) -> str:
    """Measure the models as they are, without any training."""
    chosen, where = await _checked(_named(file or experiment), changes, on, run, endpoints)
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
    endpoints: Confirmed = (),
) -> str:
    """Try methods on models that another run has measured."""
    chosen, where = await _checked(_named(file or experiment), changes, on, run, endpoints)
    return await pipeline.compare.fn(chosen, base, where, _earlier(run), refresh or None)


@flow(name="sweep", flow_run_name=_title)
async def sweep(
    experiment: Shipped = "pocket",
    over: Grid = TRIED,
    at_once: AtOnce = 2,
    changes: Differences = NOTHING,
    on: On = HERE,
    file: OwnFile = "",
    run: RunName = "",
    refresh: Refresh = "",
    endpoints: Confirmed = (),
) -> str:
    """Train a method with several settings, choose on validation questions, and test the chosen one alone."""
    chosen, where = await _checked(_named(file or experiment), changes, on, run, endpoints)
    grid = dict(map(read_values, over))
    return await sweeping.sweep.fn(chosen, grid, at_once, where, _earlier(run), refresh or None)


@flow(name="remeasure", flow_run_name=lambda: f"remeasure {flow_run.parameters['base']}")
async def remeasure(
    base: Followed = "latest",
    changes: Measured = MEASURED,
    on: On = HERE,
    run: RunName = "",
    refresh: Refresh = "",
    endpoints: Confirmed = (),
) -> str:
    """Ask the system of a finished run again: did it drift? Mend its policy if a map suffices."""
    earlier = continued(_earlier(run))
    record = Run.find(runs_root(), earlier or base).read()
    chosen, where = await _checked(record.experiment, changes, on, run, endpoints)
    based_on = base if earlier else record.run
    return await remeasuring.remeasure.fn(based_on, chosen, where, earlier, refresh or None)


def _earlier(run: str) -> str | None:
    """The id of an earlier run; None when none was named."""
    return Run.find(runs_root(), run).folder.name if run else None


def _named(experiment: str) -> Experiment:
    """A shipped experiment, or that of a file."""
    return load_experiment(
        Path(experiment) if experiment.endswith(".toml") else FOLDER / f"{experiment}.toml"
    )


async def _checked(
    experiment: Experiment, changes: Form, on: Form, run: str, confirmed: Sequence[str]
) -> tuple[Experiment, BackendConfig]:
    """What was asked for, after every check that costs nothing."""
    chosen, where = changed(experiment, changes), place_of(on)
    agreed = [*confirmed, *addresses_in(changes.model_dump())]
    await check_before(chosen, where, is_new=not run, confirmed=agreed, say=get_run_logger().info)
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
    Entry(sweep, ("train",)),
    Entry(remeasure, ("measure",), weekly="0 3 * * 1", at_once=1),
)
"""Everything that is deployed. `deployments/prefect.yaml` says the same for work pools."""
