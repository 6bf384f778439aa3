"""Stage `evaluate`: from judged answers to numbers."""

from calibration.artifacts import Artifact, Store
from calibration.confidence import Readout
from calibration.evaluation import Trained, evaluate
from calibration.results import Evaluation
from calibration.routing.rules import Prices
from calibration.schema import Schema
from calibration.stages.baseline import Answered, Baseline

EVALUATION = "evaluation.json"


class TrainedSystem(Schema):
    """A trained model's answers, and how its method reads them."""

    name: str
    readouts: tuple[Readout, ...]
    """The main one first."""
    answered: Answered


def evaluate_systems(
    baseline: Baseline,
    target: str,
    trained: tuple[TrainedSystem, ...],
    missing: dict[str, str],
    prices: Prices,
    readout: Readout,
    seed: int,
    store: Store,
) -> Artifact:
    """Compute every number of the report."""
    questions = baseline.questions
    evaluation = evaluate(
        {m.model: {a.elicitation: a.judged(questions, store) for a in m.answered} for m in baseline.models},
        target,
        [Trained(s.name, s.readouts, s.answered.judged(questions, store)) for s in trained],
        prices=prices,
        seed=seed,
        seed_readout=readout,
        missing=missing,
    )
    with store.draft() as draft:
        (draft / EVALUATION).write_text(evaluation.model_dump_json(indent=1), encoding="utf-8")
        return store.keep("evaluation", draft)


def load_evaluation(evaluation: Artifact, store: Store) -> Evaluation:
    """Read the numbers back."""
    text = (store.folder(evaluation) / EVALUATION).read_text(encoding="utf-8")
    return Evaluation.model_validate_json(text)
