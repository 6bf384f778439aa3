"""What can be known to be wrong before anything is run, let alone paid for."""

from calibration.config import Experiment
from calibration.records import Question


def preflight(experiment: Experiment) -> list[Question]:
    """Read everything that an experiment brings along, and return its questions with their splits.

    Raises:
        CalibrationError: Something in it cannot be used; the message names the file, the row and the value.
    """
    questions = experiment.splits.assign(experiment.data.questions())
    for model in experiment.models.values():
        model.engine.check(questions, model.asked)
    experiment.judge.check(questions)
    experiment.informed()
    return questions
