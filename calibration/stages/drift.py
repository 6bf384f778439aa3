"""Stage `drift`: a system's answers then and now."""

from calibration.artifacts import Artifact, Store
from calibration.confidence import Readout
from calibration.drift import Allowance, Drift, Measurement, conclude, measure_drift
from calibration.evaluation import read_system, route
from calibration.metrics.noise import JudgeAudit
from calibration.records import Question
from calibration.routing.goals import Goal
from calibration.routing.policy import RouterPolicy
from calibration.routing.rules import Prices
from calibration.schema import Schema
from calibration.stages.baseline import Answered
from calibration.stages.evaluate import origin

DRIFT = "drift.json"
AGAIN = ("calibration", "test")
"""The splits that are asked again: a map is fitted on one, and all is measured on the other."""


class Deployed(Schema):
    """A system as it was measured, under the policy that routes it."""

    system: str
    """`base`, or the name of a method."""
    model: str
    """The model's name in the experiment."""
    readout: Readout
    """How the policy reads its confidence."""
    questions: Artifact
    weights: Artifact | None
    """None for answers that were recorded elsewhere."""
    adapter: Artifact | None
    """What training made."""
    answered: Answered

    def measurement(self, store: Store) -> Measurement:
        """Its answers as they are compared."""
        judged = self.answered.judged(self.questions, store)
        return Measurement(
            system=read_system(self.system, self.readout, judged),
            answers={row.question.id: row.generation.answer for row in judged},
        )


def choose_questions(questions: Artifact, asked: Artifact, store: Store) -> Artifact:
    """Those to ask again: of the splits `AGAIN`, and what was not asked before."""
    known = {question.id for question in store.load_rows(asked, Question)}
    rows = [q for q in store.load_rows(questions, Question) if q.split in AGAIN or q.id not in known]
    return store.save_rows("questions", rows, Question)


def examine_drift(
    before: Deployed,
    after: Deployed,
    policy: RouterPolicy,
    base: str,
    allowed: Allowance,
    prices: Prices,
    router: Goal,
    seed: int,
    store: Store,
    audit: JudgeAudit | None = None,
) -> Artifact:
    """Compare, decide, and where a new map suffices make the policy with it."""
    then, now = before.measurement(store), after.measurement(store)
    comparisons = measure_drift(then, now, policy, allowed=allowed, seed=seed)
    decision = conclude(comparisons)
    found = Drift(
        system=before.system,
        model=before.model,
        readout=before.readout,
        base=base,
        decision=decision,
        comparisons=comparisons,
        allowed=allowed,
        policy=_mended(after, now, prices, router, store, audit) if decision == "refit" else None,
    )
    with store.draft() as draft:
        (draft / DRIFT).write_text(found.model_dump_json(indent=1), encoding="utf-8")
        return store.keep("drift", draft)


def _mended(
    after: Deployed,
    now: Measurement,
    prices: Prices,
    router: Goal,
    store: Store,
    audit: JudgeAudit | None,
) -> RouterPolicy | None:
    policy = route(now.system, prices, router, store.made(after.answered.generations), audit)
    if policy is None:
        return None
    made_from = origin(after.questions, after.adapter or after.weights, after.answered, store)
    return policy.model_copy(update={"digests": made_from})


def load_drift(drift: Artifact, store: Store) -> Drift:
    """Read what was found."""
    return Drift.model_validate_json((store.folder(drift) / DRIFT).read_text(encoding="utf-8"))
