"""Stage `evaluate`: from judged answers to numbers."""

from calibration.artifacts import Artifact, Store
from calibration.confidence import READOUTS, Readout
from calibration.evaluation import Trained, evaluate
from calibration.metrics.noise import JudgeAudit
from calibration.prompts import PROMPTS
from calibration.records import Verdict
from calibration.results import Evaluation
from calibration.routing.goals import Goal
from calibration.routing.policy import Digests
from calibration.routing.rules import Prices
from calibration.schema import Schema
from calibration.stages.baseline import Answered, Baseline

EVALUATION = "evaluation.json"


class TrainedSystem(Schema):
    """A trained model's answers, and how its method reads them."""

    name: str
    readouts: tuple[Readout, ...]
    """The main one first."""
    adapter: Artifact
    """What training made."""
    answered: Answered


def evaluate_systems(
    baseline: Baseline,
    target: str,
    trained: tuple[TrainedSystem, ...],
    missing: dict[str, str],
    prices: Prices,
    router: Goal,
    readout: Readout,
    seed: int,
    store: Store,
    audit: JudgeAudit | None = None,
) -> Artifact:
    """Compute every number of the report."""
    questions = baseline.questions
    evaluation = evaluate(
        {m.model: {a.elicitation: a.judged(questions, store) for a in m.answered} for m in baseline.models},
        target,
        [Trained(s.name, s.readouts, s.answered.judged(questions, store)) for s in trained],
        prices=prices,
        router=router,
        measured=min(store.made(a.verdicts) for m in baseline.models for a in m.answered),
        seed=seed,
        seed_readout=readout,
        missing=missing,
        audit=audit,
    )
    before = baseline.of(target)
    asked = next(a for a in before.answered if readout in READOUTS[a.elicitation])
    origins = {"base": origin(questions, before.weights, asked, store)}
    origins |= {s.name: origin(questions, s.adapter, s.answered, store) for s in trained}
    policies = {
        name: policy.model_copy(update={"digests": origins[name]})
        for name, policy in evaluation.policies.items()
    }
    evaluation = evaluation.model_copy(update={"policies": policies})
    with store.draft() as draft:
        (draft / EVALUATION).write_text(evaluation.model_dump_json(indent=1), encoding="utf-8")
        return store.keep("evaluation", draft)


def origin(questions: Artifact, model: Artifact | None, answered: Answered, store: Store) -> Digests:
    """What a system's figures were made from."""
    judges = {verdict.judge for verdict in store.load_rows(answered.verdicts, Verdict)}
    return Digests(
        data=questions.sha256,
        model=model.sha256 if model else None,
        protocol=", ".join([PROMPTS[answered.elicitation].version, *sorted(judges)]),
    )


def load_evaluation(evaluation: Artifact, store: Store) -> Evaluation:
    """Read the numbers back."""
    text = (store.folder(evaluation) / EVALUATION).read_text(encoding="utf-8")
    return Evaluation.model_validate_json(text)
