"""What a baseline consists of: references to one model's answers and their verdicts."""

from calibration.artifacts import Artifact, Store
from calibration.records import Elicitation, Generation, Judged, Question, Verdict, join_judged
from calibration.schema import Schema


class Answered(Schema):
    """One model's answers, asked in one way, with their verdicts."""

    elicitation: Elicitation
    generations: Artifact
    verdicts: Artifact

    def judged(self, questions: Artifact, store: Store) -> list[Judged]:
        """Read the answers with their questions and verdicts, in the order of the questions."""
        return join_judged(
            store.load_rows(questions, Question),
            store.load_rows(self.generations, Generation),
            store.load_rows(self.verdicts, Verdict),
        )


class Measured(Schema):
    """One model, asked in every way that the experiment wants."""

    model: str
    """Its name in the experiment."""
    weights: Artifact | None
    """None for answers that were recorded elsewhere."""
    answered: tuple[Answered, ...]


class Baseline(Schema):
    """All models before any training."""

    questions: Artifact
    models: tuple[Measured, ...]

    def of(self, name: str) -> Measured:
        """The model of that name."""
        return next(measured for measured in self.models if measured.model == name)
