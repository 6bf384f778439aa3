"""What a run is of, where that does not matter."""

from calibration.config import Experiment

EXPERIMENT = Experiment.model_validate(
    {
        "name": "e",
        "data": {"kind": "world"},
        "models": {"m": {"weights": {"kind": "pocket"}}},
        "judge": {"kind": "exact"},
    }
)
