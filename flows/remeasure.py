"""Measuring again a system that a router follows."""

from prefect import flow

from calibration.backends import BackendConfig
from calibration.config import Experiment
from calibration.jobs.infer import Infer
from calibration.stages.drift import Deployed
from flows.pipeline import LOCAL, answer, weights_of
from tasks.drift import Stored, alone_with, examine, overtaken, publish_drift, questions_again, stored
from tasks.prepare import prepare_questions
from tasks.record import begun_with, continued, recording


@flow(name="remeasure", flow_run_name="remeasure {base}", validate_parameters=True)
async def remeasure(
    base: str,
    experiment: Experiment | None = None,
    on: BackendConfig = LOCAL,
    run: str | None = None,
    refresh: str | None = None,
) -> str:
    """Ask the system of a finished run again, say whether it drifted, and mend its policy if a map suffices.

    A system is measured again by one run at a time; the next one waits. A run that a schedule made, and
    that another has overtaken since it was due, measures nothing.

    Args:
        base: The run whose policy a router follows; of one that was replaced, the one in its place is meant.
        experiment: What to measure with; unset, as the run did. Data files are read as they are now.
        on: Where the heavy work runs; does not change the numbers.
        run: Id of the run; that of an earlier run continues it, unset makes a new one.
        refresh: Stages whose name begins so are repeated, such as "judge".

    Returns:
        The id of the run.
    """
    run = continued(run)
    base = begun_with(base, run)
    async with alone_with(base):
        before = stored(base, run)
        if run is None and (done := overtaken(before.run)):
            return done
        experiment = experiment or before.experiment
        with recording("remeasure", experiment, on, run, refresh, before.run) as record:
            after = await measure_again(before, experiment, record.run, on)
            found = await examine(
                before.deployed,
                after,
                before.policy,
                before.run,
                experiment.drift,
                experiment.prices,
                experiment.router,
                experiment.seed,
                experiment.judge.version,
                experiment.judge_audit,
            )
            await publish_drift(before, after, found)
    return record.run


async def measure_again(before: Stored, experiment: Experiment, run: str, on: BackendConfig) -> Deployed:
    """The system's answers of today; they are this run's own, and none is taken from an earlier asking."""
    system = before.deployed
    model = experiment.models[system.model]
    every = await prepare_questions(experiment.data, experiment.splits)
    questions = await questions_again(every, system.questions)
    weights = await weights_of(system.model, model, experiment, on)
    job = Infer(
        questions=questions,
        engine=model.engine,
        elicitation=system.answered.elicitation,
        model=weights,
        adapter=system.adapter,
        asking=run,
        threads=experiment.threads,
    )
    name = system.model if system.system == "base" else system.system
    return system.model_copy(
        update={
            "questions": questions,
            "weights": weights,
            "answered": await answer(job, name, experiment, on),
        }
    )
