"""Ask a model every question."""

from typing import Literal

from calibration.artifacts import Artifact
from calibration.engines import EngineConfig
from calibration.jobs.work import Computation, Work
from calibration.models.hub import locate
from calibration.records import Elicitation, Generation, Question


class Infer(Computation):
    """Answers of one model, asked in one way."""

    kind: Literal["infer"] = "infer"
    questions: Artifact
    engine: EngineConfig
    elicitation: Elicitation
    model: Artifact | None = None
    """None for an engine that has its answers already."""
    adapter: Artifact | None = None
    """What training made, to be put on the model."""
    asking: str = ""
    """Which asking this is, where the same model is asked the same again; the first has no name. Answers of
    one asking never stand for those of another."""

    def run(self, work: Work) -> Artifact:
        """Store one generation a question, in the questions' order."""
        generations = self.engine.generate(
            work.store.load_rows(self.questions, Question),
            self.elicitation,
            model=locate(work.store.folder(self.model)) if self.model else None,
            adapter=work.store.folder(self.adapter) if self.adapter else None,
            progress=work.progress,
        )
        return work.store.save_rows("generations", generations, Generation)
