"""What happens to judged answers under a rule, as counts with exact intervals."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv

from calibration.errors import DataError
from calibration.metrics.outcomes import tally
from calibration.results import Rate, RoutingRow
from calibration.routing.rules import Prices, Rule


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
    kept, is_right = rule.keeps(values), marks == 1
    n, n_kept = values.size, int(kept.sum())
    kept_right = int((kept & is_right).sum())
    n_right = int(is_right.sum())
    return RoutingRow(
        system=system,
        readout=readout,
        map=map_name,
        rule=rule.name,
        threshold=rule.threshold,
        escalated=rate(n - n_kept, n),
        kept_accuracy=rate(kept_right, n_kept),
        false_escalations=rate(n_right - kept_right, n_right),
        missed_errors=rate(n_kept - kept_right, n - n_right),
        system_accuracy=(kept_right + (n - n_kept) * prices.llm_accuracy) / n,
        cost_per_question=prices.slm_cost + (n - n_kept) / n * prices.llm_cost,
    )


def rate(count: int, total: int) -> Rate:
    """A share with its exact 95 % interval; None throughout when there is nothing to share.

    Source: Clopper and Pearson 1934.

    >>> round(rate(0, 10).high, 6)  # 1 - .025 ** (1 / 10)
    0.308497
    """
    if not 0 <= count <= total:
        raise DataError(f"a share must count from 0 to its total; got {count} of {total}")
    if total == 0:
        return Rate(count=0, total=0, value=None, low=None, high=None)
    low = betaincinv(count, total - count + 1, 0.025) if count else 0.0
    high = betaincinv(count + 1, total - count, 0.975) if count < total else 1.0
    return Rate(count=count, total=total, value=count / total, low=float(low), high=float(high))
