"""What happens to judged answers under a rule, as counts with exact intervals."""

import numpy as np
from numpy.typing import ArrayLike

from calibration.metrics.inference import exact_interval
from calibration.metrics.outcomes import BoolArray, tally
from calibration.routing.rules import Prices, Rule
from calibration.schema import Schema


class Rate(Schema):
    """A share with its exact (Clopper-Pearson) 95 % interval."""

    count: int
    total: int
    value: float | None
    low: float | None
    high: float | None


class Figures(Schema):
    """What happens when some answers are kept and the others escalated."""

    escalated: Rate
    kept_accuracy: Rate
    false_escalations: Rate
    """Right answers that are escalated, among right answers."""
    missed_errors: Rate
    """Wrong answers that are kept, among wrong answers."""
    system_accuracy: float
    """With the large model's assumed accuracy on what is escalated."""
    cost_per_question: float
    """In the currency of the prices; every question pays the small model."""


class RoutingRow(Figures):
    """What a router does with one system at one threshold."""

    system: str
    readout: str
    map: str
    rule: str
    """`reference 0.7`, or `cost-optimal`."""
    threshold: float


def figures(kept: BoolArray, correct: ArrayLike, prices: Prices) -> Figures:
    """Count what happens to judged answers of which some are kept.

    Args:
        kept: Shape [n], whether each answer is kept.
        correct: Shape [n], each 0 or 1.
        prices: Costs, and the large model's accuracy on what is escalated.

    Raises:
        DataError: No answers, or a mark that is neither 0 nor 1.

    >>> found = figures(np.array([True, True, False]), [1, 0, 1], Prices(llm_accuracy=0.7))
    >>> found.kept_accuracy.value, round(found.system_accuracy, 6)  # (1 + 0 + .7) / 3
    (0.5, 0.566667)
    """
    is_right = np.asarray(correct, dtype=np.float64) == 1
    tally(np.zeros(kept.shape), correct)
    n, n_kept, n_right = kept.size, int(kept.sum()), int(is_right.sum())
    kept_right = int((kept & is_right).sum())
    return Figures(
        escalated=rate(n - n_kept, n),
        kept_accuracy=rate(kept_right, n_kept),
        false_escalations=rate(n_right - kept_right, n_right),
        missed_errors=rate(n_kept - kept_right, n - n_right),
        system_accuracy=(kept_right + (n - n_kept) * prices.llm_accuracy) / n,
        cost_per_question=prices.slm_cost + (n - n_kept) / n * prices.llm_cost,
    )


def route(
    confidence: ArrayLike,
    correct: ArrayLike,
    rule: Rule,
    prices: Prices,
    *,
    system: str,
    readout: str,
    map_name: str,
) -> RoutingRow:
    """Route judged answers by one rule and count what happens.

    Args:
        confidence: Shape [n], each in [0, 1] or nan (unreadable: escalated).
        correct: Shape [n], each 0 or 1; answers that could not be judged are left out by the caller.
        rule: When to keep.
        prices: Costs, and the large model's accuracy on what is escalated.
        system: Name for the row.
        readout: Name for the row.
        map_name: Name for the row.

    Raises:
        DataError: No answers, or a value out of range.
    """
    values, marks = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    tally(np.where(np.isnan(values), 0.0, values), marks)
    return RoutingRow(
        system=system,
        readout=readout,
        map=map_name,
        rule=rule.name,
        threshold=rule.threshold,
        **dict(figures(rule.keeps(values), marks, prices)),
    )


def rate(count: int, total: int) -> Rate:
    """A share with its exact 95 % interval; None throughout when there is nothing to share.

    Raises:
        DataError: The count is no part of the total.
    """
    if total == 0 == count:
        return Rate(count=0, total=0, value=None, low=None, high=None)
    low, high = exact_interval(count, total)
    return Rate(count=count, total=total, value=count / total, low=low, high=high)
