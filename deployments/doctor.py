"""What would keep an experiment from running on a backend, found before a cent is spent."""

from collections.abc import Awaitable, Sequence
from heapq import nlargest
from typing import NamedTuple

from calibration.artifacts import Store
from calibration.backends import BackendConfig
from calibration.backends.dask import Dask
from calibration.backends.exam import Exam
from calibration.backends.ledger import Ledger
from calibration.backends.local import Local
from calibration.backends.modal import PRICED, SECRET, TOKEN, Modal, deployed_code
from calibration.backends.wire import APP
from calibration.config import Experiment
from calibration.errors import CalibrationError, ConfigurationError
from calibration.models.hub import Hub
from calibration.preflight import preflight
from calibration.records import Question

LONGEST = 100
"""So many of the questions, by characters, are put to the doctor."""


class Finding(NamedTuple):
    """One line of the doctor."""

    what: str
    words: str
    is_well: bool = True


async def findings(on: BackendConfig, store: Store, experiment: Experiment | None) -> list[Finding]:
    """Everything that can be known without running a job, and for Modal what a container says."""
    questions, read = _read(experiment)
    if not isinstance(on, Modal):
        return [await _machines(on, store), *read]
    app = await _finding(
        "app", on.check_deployment(), f"{APP} is deployed and runs this code, {deployed_code()[:8]}"
    )
    found = [
        app,
        await _finding("secret", on.check_secret(), f"{SECRET} holds {TOKEN}"),
        Finding("prices", _prices(on)),
        _budget(on, store),
        *read,
    ]
    if app.is_well:
        found += await _container(on, experiment, questions)
    return found


async def _machines(on: Local | Dask, store: Store) -> Finding:
    words = "this machine"
    if isinstance(on, Dask):
        words = f"every worker of {on.scheduler} shares this store and runs this code"
    return await _finding("backend", on.check(store), f"{on.kind}: {words}")


def _read(experiment: Experiment | None) -> tuple[Sequence[Question], list[Finding]]:
    if not experiment:
        return [], []
    try:
        questions = preflight(experiment)
    except CalibrationError as error:
        return [], [Finding("experiment", str(error), is_well=False)]
    return questions, [Finding("experiment", f"{experiment.name}: {len(questions)} questions can be asked")]


async def check_models(on: BackendConfig, experiment: Experiment, questions: Sequence[Question]) -> None:
    """Let a container without a GPU see that every model of the hub can be had and asked.

    Raises:
        ConfigurationError: One can't; says why.
    """
    if isinstance(on, Modal) and (asked := exams(on, experiment, questions)):
        said = await on.examine(asked)
        if wrong := next(filter(None, said["models"].values()), None):
            raise ConfigurationError(wrong)


def exams(on: Modal, experiment: Experiment, questions: Sequence[Question]) -> list[Exam]:
    """What is asked of each model of the hub before a GPU is.

    Raises:
        ConfigurationError: One is a folder of this machine.
    """
    longest = nlargest(LONGEST, questions, key=lambda question: len(question.text))
    asked = []
    for model in experiment.models.values():
        if isinstance(model.weights, Hub):
            on.check_weights(model.weights)
            asked.append(
                Exam(
                    weights=model.weights,
                    engine=model.engine,
                    elicitations=model.asked,
                    questions=tuple(longest),
                )
            )
    return asked


async def _finding(what: str, check: Awaitable[None], words: str) -> Finding:
    try:
        await check
    except CalibrationError as error:
        return Finding(what, str(error), is_well=False)
    return Finding(what, words)


def _prices(on: Modal) -> str:
    gpus = " and ".join(
        sorted({f"{gpu} at {on.price(gpu):.2f} USD an hour" for gpu in (on.infer_gpu, on.train_gpu)})
    )
    return f"{gpus} (list prices as of {PRICED}; memory, processors and the start of containers come on top)"


def _budget(on: Modal, store: Store) -> Finding:
    try:
        on.check_budget(store)
    except CalibrationError as error:
        return Finding("budget", str(error), is_well=False)
    return Finding("budget", f"{Ledger(store).spent():.2f} of {on.max_usd:.2f} USD spent within 24 hours")


async def _container(
    on: Modal, experiment: Experiment | None, questions: Sequence[Question]
) -> list[Finding]:
    try:
        said = await on.examine(exams(on, experiment, questions) if experiment and questions else [])
    except CalibrationError as error:
        return [Finding("container", str(error), is_well=False)]
    libraries = ", ".join(f"{name} {version}" for name, version in said["libraries"].items())
    return [
        Finding("container", libraries),
        *(
            Finding("model", wrong or f"{repo} can be had and asked", is_well=not wrong)
            for repo, wrong in said["models"].items()
        ),
    ]
