"""Looking for the settings of a method that calibrate best."""

import asyncio

from prefect import flow

from calibration.backends import BackendConfig
from calibration.config import Experiment
from calibration.methods import MethodConfig
from calibration.stages.baseline import Baseline
from calibration.stages.evaluate import TrainedSystem
from calibration.variants import Grid, Sweep, expand
from flows.pipeline import LOCAL, assess, in_one, measure_all, side_by_side, teach
from tasks.evaluate import draw
from tasks.publish import publish
from tasks.record import in_words, recording
from tasks.sweep import noted, publish_sweep, rank, read_ranking, seen_questions


@flow(name="sweep", flow_run_name="sweep {experiment.name}", validate_parameters=True)
async def sweep(
    experiment: Experiment,
    over: Grid | None = None,
    at_once: int = 2,
    on: BackendConfig = LOCAL,
    run: str | None = None,
    refresh: str | None = None,
) -> str:
    """Train a method with several settings, choose on validation questions, and test the chosen one alone.

    Args:
        experiment: What to measure and teach. Without `over`, each of its methods is a cell.
        over: The values of each setting, such as {"methods.dpo.beta": [0.05, 0.1, 0.3]}.
        at_once: How many cells are trained and asked at a time.
        on: Where the heavy work runs; does not change the numbers.
        run: Id of the run; that of an earlier run continues it, unset makes a new one.
        refresh: Stages whose name begins so are repeated, such as "train dpo-beta-0.3".

    Returns:
        The id of the run.
    """
    if over:
        experiment = expand(experiment, over)
    with recording("sweep", experiment, on, run, refresh) as record:
        baseline = await measure_all(experiment, on)
        await choose_and_test(experiment.informed(), baseline, at_once, on)
    return record.run


async def choose_and_test(
    experiment: Experiment, baseline: Baseline, at_once: int, on: BackendConfig
) -> None:
    """Try all cells, then evaluate the best on the test questions, and publish it."""
    found, failed = await try_cells(experiment, baseline, at_once, on)
    tested: tuple[TrainedSystem, ...] = ()
    if found.chosen:
        method = experiment.methods[found.chosen]
        tested = (await teach(found.chosen, method, experiment, baseline, on),)
    evaluation = await noted(await assess(experiment, baseline, tested, failed), found)
    await publish(baseline, evaluation, await draw(evaluation))
    publish_sweep(found)
    if failed:
        raise in_one(failed)


async def try_cells(
    experiment: Experiment, baseline: Baseline, at_once: int, on: BackendConfig
) -> tuple[Sweep, dict[str, Exception]]:
    """How good each cell is, and what went wrong in those without figures; no test question is asked."""
    asked, turn = await seen_questions(baseline.questions), asyncio.Semaphore(at_once)

    async def cell(name: str, method: MethodConfig) -> TrainedSystem:
        async with turn:
            return await teach(name, method, experiment, baseline, on, asked)

    trained, failed = await side_by_side(
        {name: cell(name, method) for name, method in experiment.methods.items()}
    )
    ranking = await rank(
        baseline,
        experiment.target_name,
        experiment.readout,
        asked,
        trained,
        {name: in_words(error) for name, error in failed.items()},
        experiment.seed,
    )
    return read_ranking(ranking), failed
