"""Stages `evaluate` and `draw`."""

import asyncio

from calibration.artifacts import Artifact, Store
from calibration.confidence import Readout
from calibration.routing.goals import Goal
from calibration.routing.rules import Prices
from calibration.stages.baseline import Baseline
from calibration.stages.draw import draw_figures
from calibration.stages.evaluate import TrainedSystem, evaluate_systems
from tasks.stage import stage


@stage("calibration.stages.evaluate", libraries=("numpy", "scipy"), name="evaluate")
async def evaluate(
    baseline: Baseline,
    target: str,
    trained: tuple[TrainedSystem, ...],
    missing: dict[str, str],
    prices: Prices,
    router: Goal,
    readout: Readout,
    seed: int,
) -> Artifact:
    """Every number of the report."""
    return await asyncio.to_thread(
        evaluate_systems,
        baseline,
        target,
        trained,
        missing,
        prices,
        router,
        readout,
        seed,
        Store.from_environment(),
    )


@stage("calibration.stages.draw", libraries=("matplotlib",), name="draw")
async def draw(evaluation: Artifact) -> Artifact:
    """The report's pictures."""
    return await asyncio.to_thread(draw_figures, evaluation, Store.from_environment())
