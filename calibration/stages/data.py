"""Stage `data`: from judged answers to what a method learns from."""

import json

from calibration.artifacts import ROWS, Artifact, Store
from calibration.methods import Method
from calibration.records import write_rows
from calibration.stages.baseline import Measured

LEFT_OUT = "left_out.json"


def make_training_data(questions: Artifact, measured: Measured, method: Method, store: Store) -> Artifact:
    """Store the method's rows, and beside them how many were left out and why."""
    training = method.rows(
        {answered.elicitation: answered.judged(questions, store) for answered in measured.answered}
    )
    with store.draft() as draft:
        write_rows(training.rows, draft / ROWS, training.kind)
        (draft / LEFT_OUT).write_text(
            json.dumps(training.left_out, indent=1, sort_keys=True), encoding="utf-8"
        )
        return store.keep("training_data", draft)
