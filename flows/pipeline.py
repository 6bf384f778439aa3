"""The order of the stages."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeVar

from prefect import flow

from calibration.artifacts import Artifact
from calibration.backends import BackendConfig
from calibration.backends.local import Local
from calibration.config import Experiment, Model
from calibration.errors import JobError
from calibration.jobs.infer import Infer
from calibration.jobs.obtain import Obtain
from calibration.jobs.train import Train
from calibration.methods import MethodConfig
from calibration.records import Elicitation
from calibration.shards import Shards
from calibration.stages.baseline import Answered, Baseline, Measured
from calibration.stages.evaluate import TrainedSystem
from calibration.worlds.facts import World
from tasks.data import make_data
from tasks.drift import remember_trained
from tasks.evaluate import draw, evaluate
from tasks.judge import judge
from tasks.prepare import prepare_questions, write_corpus
from tasks.publish import publish
from tasks.record import begun_with, continued, in_words, measured_run, recording, stored_baseline
from tasks.show import show_answers, show_data, show_training
from tasks.work import cut, infer, merge, obtain, train

LOCAL = Local()
T = TypeVar("T")


@flow(name="calibrate", flow_run_name="calibrate {experiment.name}", validate_parameters=True)
async def calibrate(
    experiment: Experiment, on: BackendConfig = LOCAL, run: str | None = None, refresh: str | None = None
) -> str:
    """Measure the models, try every method on the target, and say what came of it.

    Args:
        experiment: What to measure, what to teach, and how to judge it.
        on: Where the heavy work runs; does not change the numbers.
        run: Id of the run; that of an earlier run continues it, unset makes a new one.
        refresh: Stages whose name begins so are repeated, such as "train dpo".

    Returns:
        The id of the run.
    """
    with recording("calibrate", experiment, on, run, refresh) as record:
        baseline = await measure_all(experiment, on)
        await teach_and_compare(experiment, baseline, on)
    return record.run


@flow(name="baseline", flow_run_name="baseline {experiment.name}", validate_parameters=True)
async def baseline(
    experiment: Experiment, on: BackendConfig = LOCAL, run: str | None = None, refresh: str | None = None
) -> str:
    """Measure the models as they are, without any training.

    Args:
        experiment: What to measure and how to judge it; its methods are left alone.
        on: Where the heavy work runs; does not change the numbers.
        run: Id of the run; that of an earlier run continues it, unset makes a new one.
        refresh: Stages whose name begins so are repeated, such as "train dpo".

    Returns:
        The id of the run.
    """
    experiment = experiment.model_copy(update={"methods": {}})
    with recording("baseline", experiment, on, run, refresh) as record:
        await teach_and_compare(experiment, await measure_all(experiment, on), on)
    return record.run


@flow(name="compare", flow_run_name="compare {experiment.name}", validate_parameters=True)
async def compare(
    experiment: Experiment,
    base: str,
    on: BackendConfig = LOCAL,
    run: str | None = None,
    refresh: str | None = None,
) -> str:
    """Try methods on models that another run has measured.

    Args:
        experiment: Its methods are tried; its models and data must be those of the measured run.
        base: The run whose measured models are used; "latest" is the newest that has any.
        on: Where the heavy work runs; does not change the numbers.
        run: Id of the run; that of an earlier run continues it, unset makes a new one.
        refresh: Stages whose name begins so are repeated, such as "train dpo".

    Returns:
        The id of the run.
    """
    run = continued(run)
    base = measured_run(begun_with(base, run))
    measured = stored_baseline(base)
    with recording("compare", experiment, on, run, refresh, base) as record:
        await teach_and_compare(experiment, measured, on)
    return record.run


async def measure_all(experiment: Experiment, on: BackendConfig) -> Baseline:
    """Ask every model every question, and judge the answers."""
    questions = await prepare_questions(experiment.data, experiment.splits)
    models = [measure(name, model, questions, experiment, on) for name, model in experiment.models.items()]
    return Baseline(questions=questions, models=tuple(await every(models)))


async def measure(
    name: str, model: Model, questions: Artifact, experiment: Experiment, on: BackendConfig
) -> Measured:
    """One model's answers and verdicts."""
    weights = await weights_of(name, model, experiment, on)
    answers = [
        answer(
            Infer(
                questions=questions,
                engine=model.engine,
                elicitation=way,
                model=weights,
                threads=experiment.threads,
            ),
            name,
            experiment,
            on,
        )
        for way in model.asked
    ]
    return Measured(model=name, weights=weights, answered=tuple(await every(answers)))


async def weights_of(name: str, model: Model, experiment: Experiment, on: BackendConfig) -> Artifact | None:
    """A model's weights; None for answers that were recorded elsewhere."""
    if model.weights is None:
        return None
    corpus = await write_corpus(experiment.data) if isinstance(experiment.data, World) else None
    job = Obtain(weights=model.weights, corpus=corpus, threads=experiment.threads)
    return await obtain(job, name, on)


async def answer(job: Infer, name: str, experiment: Experiment, on: BackendConfig) -> Answered:
    """One system's answers, asked in one way, and their verdicts."""
    label = f"{name} {job.elicitation}"
    generations = await ask(job, label, experiment.shards, on)
    verdicts = await judge(job.questions, generations, experiment.judge, experiment.max_unjudged, label)
    answered = Answered(elicitation=job.elicitation, generations=generations, verdicts=verdicts)
    await show_answers(job.questions, answered, label)
    return answered


async def ask(job: Infer, label: str, shards: Shards, on: BackendConfig) -> Artifact:
    """The answers to all questions; many questions are several jobs, each of which is done once."""
    jobs = await cut(job, label, shards.size)
    answers = await each(lambda part, title: infer(part, title, on), jobs, shards.at_once)
    if len(answers) == 1:
        return answers[0]
    return await merge(tuple(part.questions for part, _ in jobs), tuple(answers), label)


async def teach_and_compare(experiment: Experiment, baseline: Baseline, on: BackendConfig) -> None:
    """Try the methods side by side, evaluate what came of them, and publish it."""
    experiment = experiment.informed()
    trained, failed = await side_by_side(
        {name: teach(name, method, experiment, baseline, on) for name, method in experiment.methods.items()}
    )
    evaluation = await assess(experiment, baseline, trained, failed)
    await publish(baseline, evaluation, await draw(evaluation))
    if failed:
        raise in_one(failed)


async def assess(
    experiment: Experiment,
    baseline: Baseline,
    trained: tuple[TrainedSystem, ...],
    failed: Mapping[str, Exception],
) -> Artifact:
    """Every number of the report."""
    remember_trained(trained)
    return await evaluate(
        baseline,
        experiment.target_name,
        trained,
        {name: in_words(error) for name, error in failed.items()},
        experiment.prices,
        experiment.router,
        experiment.readout,
        experiment.seed,
        experiment.judge.version,
        experiment.judge_audit,
    )


async def teach(
    name: str,
    method: MethodConfig,
    experiment: Experiment,
    baseline: Baseline,
    on: BackendConfig,
    asked: Artifact | None = None,
) -> TrainedSystem:
    """One method: its data, its training, the trained model's answers and their verdicts.

    `asked` are the questions that the trained model is asked; unset, all.
    """
    target = baseline.of(experiment.target_name)
    model = experiment.models[experiment.target_name]
    data = await make_data(baseline.questions, target, method, name)
    await show_data(data, name)
    teaching = Train(
        method=method,
        model=target.weights,
        data=data,
        seed=experiment.seed,
        threads=experiment.threads,
    )
    adapter = await train(teaching, name, on)
    await show_training(adapter, name)
    way: Elicitation = method.elicitation
    job = Infer(
        questions=asked or baseline.questions,
        engine=model.engine,
        elicitation=way,
        model=target.weights,
        adapter=adapter,
        threads=experiment.threads,
    )
    return TrainedSystem(
        name=name,
        readouts=method.readouts,
        adapter=adapter,
        answered=await answer(job, f"{name} validation" if asked else name, experiment, on),
    )


async def each(
    work: Callable[..., Awaitable[T]], items: Iterable[tuple[object, ...]], at_once: int
) -> list[T]:
    """Do the work for each item, so many at a time. After a failure no other is begun: it might fail, too."""
    waiting = deque(enumerate(items))
    done: dict[int, T] = {}

    async def one_after_another() -> None:
        while waiting:
            place, item = waiting.popleft()
            try:
                done[place] = await work(*item)
            except BaseException:
                waiting.clear()
                raise

    await every(one_after_another() for _ in range(at_once))
    return [done[place] for place in sorted(done)]


async def every(branches: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all, then raise what went wrong: a failure leaves no branch running unwatched."""
    outcomes = await asyncio.gather(*branches, return_exceptions=True)
    if failed := [error for error in map(failure, outcomes) if error is not None]:
        raise failed[0] if len(failed) == 1 else ExceptionGroup("; ".join(map(in_words, failed)), failed)
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]


async def side_by_side(branches: Mapping[str, Awaitable[T]]) -> tuple[tuple[T, ...], dict[str, Exception]]:
    """What the branches came to, and what went wrong in those that failed: one stops or spoils no other."""
    outcomes = await asyncio.gather(*branches.values(), return_exceptions=True)
    named = zip(branches, map(failure, outcomes), strict=True)
    failed = {name: error for name, error in named if error is not None}
    return tuple(outcome for outcome in outcomes if not isinstance(outcome, BaseException)), failed


def in_one(failed: Mapping[str, Exception]) -> ExceptionGroup[Exception]:
    """What went wrong in several branches, as one error that names each."""
    told = "; ".join(f"{name} failed: {in_words(error)}" for name, error in failed.items())
    return ExceptionGroup(told, list(failed.values()))


def failure(outcome: object) -> Exception | None:
    """What went wrong with a branch, if anything did.

    One that was cancelled by itself has failed, and the others go on; what stops the whole run is raised.
    """
    if isinstance(outcome, asyncio.CancelledError):
        return JobError("it was cancelled, and the others were not")
    if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
        raise outcome
    return outcome if isinstance(outcome, Exception) else None
