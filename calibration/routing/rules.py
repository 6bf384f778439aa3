"""When to keep an answer: prices, and the threshold that follows from them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from calibration.errors import DataError
from calibration.metrics.outcomes import BoolArray, tally
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


def threshold_for_budget(confidence: ArrayLike, escalated: float) -> float:
    """Confidence from which to keep, so that at most a given share of the answers is escalated.

    Of the thresholds that stay within the budget it is the highest, so the budget is spent as far as ties
    allow: equal confidences are kept or escalated together. Marks play no part, so this needs no judge.

    Args:
        confidence: Shape [n], each in [0, 1] or nan (unreadable: always escalated).
        escalated: Largest share of the answers to escalate, in [0, 1].

    Returns:
        One of the confidences: keep iff confidence >= it. nan, which no confidence reaches, when the
        budget pays for every answer.

    Raises:
        DataError: The unreadable answers alone exceed the budget, or a value is out of range.

    >>> threshold_for_budget([0.2, 0.4, 0.6, 0.8], 0.5)
    0.6
    >>> threshold_for_budget([0.2, 0.4, 0.4, 0.8], 0.5)  # .4 and .4 go together; both would be 3 of 4
    0.4
    """
    values = np.asarray(confidence, dtype=np.float64)
    is_readable = ~np.isnan(values)
    tally(np.where(is_readable, values, 0.0), np.zeros(values.shape))
    if not 0 <= escalated <= 1:
        raise DataError(f"escalated must be a share in [0, 1] (divide percentages by 100); got {escalated}")
    unreadable = int((~is_readable).sum())
    spare = int(escalated * values.size + 1e-9) - unreadable  # .29 * 100 is 28.999999999999996
    if spare < 0:
        raise DataError(
            f"escalated must be at least {unreadable / values.size:g}, the share of answers without a "
            f"readable confidence; got {escalated}. Raise the budget, or make more confidences readable"
        )
    ascending = np.sort(values[is_readable])
    return float(ascending[spare]) if spare < ascending.size else float("nan")


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


def within_budget(confidence: ArrayLike, escalated: float) -> Rule:
    """Escalate at most a share of the answers; see `threshold_for_budget`."""
    return Rule(f"budget {escalated:g}", threshold_for_budget(confidence, escalated), is_strict=False)
