"""When to keep an answer: prices, and the threshold that follows from them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from calibration.metrics.outcomes import BoolArray
from calibration.schema import Schema


class Prices(Schema):
    """What answers cost and what they are worth, all in one currency.

    The defaults are stand-ins of a plausible order for short factual questions; put your own in.
    """

    slm_cost: float = Field(default=0.00002, ge=0)
    """The small model's price for one question; every question pays it."""
    llm_cost: float = Field(default=0.002, ge=0)
    """The large model's price for one question; escalated questions pay it as well."""
    value: float = Field(default=0.01, gt=0)
    """What a right answer is worth."""
    llm_accuracy: float = Field(default=0.5, ge=0, le=1)
    """Share of escalated questions that the large model answers rightly."""


def threshold_for_cost(prices: Prices) -> float:
    """Confidence from which keeping the small model's answer is worth most.

    Keeping is worth p * value; escalating llm_accuracy * value - llm_cost. So keep iff
    p >= llm_accuracy - llm_cost / value, given that p is calibrated. A negative threshold keeps all.

    >>> round(threshold_for_cost(Prices(llm_cost=0.002, value=0.01, llm_accuracy=0.9)), 6)
    0.7
    """
    return prices.llm_accuracy - prices.llm_cost / prices.value


@dataclass(frozen=True)
class Rule:
    """When to keep the small model's answer."""

    name: str
    threshold: float
    is_strict: bool
    """Keep above the threshold only, or at the threshold as well."""

    def keeps(self, confidence: ArrayLike) -> BoolArray:
        """Which answers are kept; an unreadable confidence (nan) never is."""
        values = np.asarray(confidence, dtype=np.float64)
        return values > self.threshold if self.is_strict else values >= self.threshold


REFERENCE = Rule("reference 0.7", 0.7, is_strict=True)
"""The original specification's router: keep iff confidence > 0.7."""


def cost_optimal(prices: Prices) -> Rule:
    """Keep iff the confidence reaches `threshold_for_cost`."""
    return Rule("cost-optimal", threshold_for_cost(prices), is_strict=False)
