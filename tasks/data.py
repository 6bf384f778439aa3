"""Stage `data`."""

from calibration.artifacts import Artifact, Store
from calibration.methods import MethodConfig
from calibration.stages import data
from calibration.stages.baseline import Measured
from tasks.stage import stage


@stage("calibration.stages.data", name="data {label}")
async def make_data(questions: Artifact, measured: Measured, method: MethodConfig, label: str) -> Artifact:
    """What a method learns from."""
    return data.make_training_data(questions, measured, method, Store.from_environment())
