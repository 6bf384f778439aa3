"""Stage `rank`, and the report of a sweep."""

import asyncio

from calibration.artifacts import Artifact, Store
from calibration.confidence import Readout
from calibration.runs import SUMMARY
from calibration.stages import sweep as stages
from calibration.stages.baseline import Baseline
from calibration.stages.evaluate import TrainedSystem
from calibration.variants import Sweep
from tasks.journal import current_journal
from tasks.stage import stage


async def seen_questions(questions: Artifact) -> Artifact:
    """What cells are asked. No stage: it is done in moments, and makes the same artifact every time."""
    return await asyncio.to_thread(stages.questions_of, questions, stages.SEEN, Store.from_environment())


@stage("calibration.stages.sweep", libraries=("numpy", "scipy"), name="rank")
async def rank(
    baseline: Baseline,
    target: str,
    readout: Readout,
    asked: Artifact,
    cells: tuple[TrainedSystem, ...],
    failed: dict[str, str],
    seed: int,
) -> Artifact:
    """Which cell is best on the validation questions."""
    store = Store.from_environment()
    return await asyncio.to_thread(
        stages.rank_cells, baseline, target, readout, asked, cells, failed, seed, store
    )


def read_ranking(ranking: Artifact) -> Sweep:
    """What was found."""
    return stages.load_sweep(ranking, Store.from_environment())


async def noted(evaluation: Artifact, sweep: Sweep) -> Artifact:
    """The evaluation with how the winner was chosen."""
    return await asyncio.to_thread(stages.note_sweep, evaluation, sweep, Store.from_environment())


def publish_sweep(sweep: Sweep) -> None:
    """Write the ranking into the run's folder, and below its summary."""
    if (run := current_journal().run) is not None:
        (run.folder / stages.SWEEP).write_text(sweep.model_dump_json(indent=1) + "\n", encoding="utf-8")
        with (run.folder / SUMMARY).open("a", encoding="utf-8") as summary:
            summary.write("\n" + "\n".join(stages.notes(sweep)) + "\n")
