"""Stage `draw`: from numbers to pictures."""

from calibration.artifacts import Artifact, Store
from calibration.report.figures import draw
from calibration.stages.evaluate import load_evaluation


def draw_figures(evaluation: Artifact, store: Store) -> Artifact:
    """Draw the report's pictures."""
    with store.draft() as draft:
        for name, content in draw(load_evaluation(evaluation, store)).items():
            (draft / name).write_bytes(content)
        return store.keep("figures", draft)
