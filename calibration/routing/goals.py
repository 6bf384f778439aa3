"""What a router is asked for, and the threshold on a calibrated probability that follows from it."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import Field

from calibration.metrics.outcomes import BoolArray, FloatArray
from calibration.routing.certificate import Certificate, JudgeError, certify, first_step
from calibration.routing.rules import REFERENCE, Prices, threshold_for_budget, threshold_for_cost
from calibration.schema import Schema


@dataclass(frozen=True)
class Evidence:
    """What a threshold is chosen from: graded answers before and behind a map, and what things cost."""

    confidence: FloatArray
    """Shape [n], in [0, 1]; nan where none could be read."""
    probability: FloatArray
    """Shape [n], the mapped confidence; nan where none could be read."""
    correct: FloatArray
    """Shape [n], 0 or 1."""
    prices: Prices
    judge: JudgeError | None = None
    """How often the marks are right, where that is known."""


@dataclass(frozen=True)
class Choice:
    """The threshold a goal leads to, or why it leads to none."""

    threshold: float | None = None
    """Keep iff probability >= it; None keeps nothing."""
    certificate: Certificate | None = None
    problem: str = ""
    """Why the goal cannot be reached; empty when it can."""


class Certified(Schema):
    """Keep as much as is certain to be right often enough."""

    kind: Literal["certified"] = "certified"
    accuracy: float = Field(gt=0, lt=1)
    """Least accuracy of what is kept."""
    delta: float = Field(default=0.1, gt=0, lt=1)
    """Probability that what is kept is less accurate than that all the same."""

    def choose(self, evidence: Evidence) -> Choice:
        """Certify the confidence, whose order no mark has touched, and cut the probability there.

        A map with level pieces puts answers on both sides of the cut on one step. The threshold then goes
        to the next step above, where less is kept than the certificate allows.
        """
        certificate = certify(
            evidence.confidence,
            evidence.correct,
            accuracy=self.accuracy,
            delta=self.delta,
            judge=evidence.judge,
        )
        if certificate is None:
            return Choice(problem=self._out_of_reach(evidence))
        threshold = cut(evidence.probability, evidence.confidence >= certificate.threshold)
        if threshold is None:
            return Choice(problem="the map says the same of the answers to keep and of some to escalate")
        return Choice(threshold, certificate)

    def _out_of_reach(self, evidence: Evidence) -> str:
        n, asked = evidence.correct.size, f"accuracy {self.accuracy:g} with probability {1 - self.delta:g}"
        start = first_step(n, self.accuracy, self.delta, evidence.judge)
        if start is None:
            return f"{n} graded answers are too few to show {asked}"
        return f"no threshold keeps {start / n:.0%} of the answers at {asked}"


class CostOptimal(Schema):
    """Keep what is worth more kept than escalated; see `threshold_for_cost`."""

    kind: Literal["cost"] = "cost"

    def choose(self, evidence: Evidence) -> Choice:
        """The threshold is the prices' alone."""
        return Choice(threshold_for_cost(evidence.prices))


class Budget(Schema):
    """Escalate at most a share of the questions; see `threshold_for_budget`."""

    kind: Literal["budget"] = "budget"
    escalated: float = Field(ge=0, le=1)
    """Largest share of the questions to escalate."""

    def choose(self, evidence: Evidence) -> Choice:
        """Cut the sample's own probabilities so that the budget is kept on them."""
        unreadable = float(np.isnan(evidence.probability).mean())
        if unreadable > self.escalated:
            return Choice(
                problem=f"{unreadable:.1%} of the confidences cannot be read and must be escalated, more "
                f"than the budget of {self.escalated:.1%}"
            )
        lowest_kept = threshold_for_budget(evidence.probability, self.escalated)
        return Choice(cut(evidence.probability, evidence.probability >= lowest_kept))


class Reference(Schema):
    """Keep above 0.7, as the original specification has it; for comparison."""

    kind: Literal["reference"] = "reference"

    def choose(self, evidence: Evidence) -> Choice:  # noqa: ARG002 - every goal is asked alike
        """The smallest number above 0.7, since a policy keeps at its threshold as well."""
        return Choice(math.nextafter(REFERENCE.threshold, 1.0))


Goal: TypeAlias = Annotated[Certified | CostOptimal | Budget | Reference, Field(discriminator="kind")]


def cut(probability: FloatArray, is_kept: BoolArray) -> float | None:
    """A threshold that keeps of a sample the answers given, or of those what lies above all others.

    It lies half-way between the highest probability escalated and the lowest kept, where no rounding in
    another program or on another processor can move an answer across it.

    Args:
        probability: Shape [n], in [0, 1] or nan.
        is_kept: Shape [n]; never true where the probability is nan.

    Returns:
        0 when every readable answer is kept, None when nothing can be.

    >>> cut(np.array([0.25, 0.5, 0.75]), np.array([False, True, True]))
    0.375
    """
    escalated = probability[~is_kept & ~np.isnan(probability)]
    highest = escalated.max() if escalated.size else -np.inf
    above = probability[is_kept & (probability > highest)]
    if not above.size:
        return None
    if not escalated.size:
        return 0.0
    middle, lowest = float(highest + above.min()) / 2, float(above.min())
    return middle if middle > highest else lowest  # of two neighbouring floats the upper
