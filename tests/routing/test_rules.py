"""Routing counts by hand, exact intervals, and the threshold that costs imply."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import binomtest

from calibration.errors import DataError
from calibration.routing.rates import figures, rate, route
from calibration.routing.rules import (
    REFERENCE,
    Prices,
    Rule,
    cost_optimal,
    threshold_for_budget,
    threshold_for_cost,
    within_budget,
)

NAMES = {"system": "base", "readout": "geometric_mean", "map_name": "none"}


@pytest.mark.parametrize(("count", "total"), [(0, 7), (7, 7), (1, 1), (3, 40), (194, 1000)])
def test_intervals_are_clopper_and_pearsons(count, total):
    exact = binomtest(count, total).proportion_ci(method="exact")
    found = rate(count, total)
    assert (found.value, found.low, found.high) == pytest.approx((count / total, exact.low, exact.high))


def test_a_share_of_nothing_has_no_value():
    found = rate(0, 0)
    assert (found.value, found.low, found.high) == (None, None, None)
    with pytest.raises(DataError, match="got 3 of 2"):
        rate(3, 2)


def test_a_routing_row_counts_what_happens():
    confidence = [0.9, 0.8, 0.75, 0.7, 0.6, 0.2, np.nan, 0.71]
    correct = [1, 0, 1, 1, 1, 0, 0, 0]
    prices = Prices(slm_cost=0.01, llm_cost=1.0, value=10.0, llm_accuracy=0.5)
    row = route(confidence, correct, REFERENCE, prices, **NAMES)
    assert (row.escalated.count, row.escalated.total) == (4, 8)  # .7 itself, .6, .2 and the unreadable one
    assert (row.kept_accuracy.count, row.kept_accuracy.total) == (2, 4)
    assert (row.false_escalations.count, row.false_escalations.total) == (2, 4)
    assert (row.missed_errors.count, row.missed_errors.total) == (2, 4)
    assert row.system_accuracy == pytest.approx((2 + 4 * 0.5) / 8)
    assert row.cost_per_question == pytest.approx(0.01 + 0.5)


def test_keeping_nothing_or_everything_has_figures_too():
    prices = Prices(slm_cost=0.01, llm_cost=1.0, llm_accuracy=0.75)
    nothing = figures(np.array([False, False]), [1, 0], prices)
    assert (nothing.kept_accuracy.value, nothing.system_accuracy, nothing.cost_per_question) == (
        None,
        0.75,
        1.01,
    )
    everything = figures(np.array([True, True]), [1, 0], prices)
    assert (everything.escalated.value, everything.system_accuracy, everything.cost_per_question) == (
        0,
        0.5,
        0.01,
    )
    with pytest.raises(DataError, match=r"correct\[1\].*got 2"):
        figures(np.array([True, True]), [1, 2], prices)


def test_the_reference_is_strict_and_the_cost_rule_is_not():
    assert REFERENCE.keeps([0.7, 0.7000001]).tolist() == [False, True]
    assert Rule("mine", 0.7, is_strict=False).keeps([0.7, 0.6999999]).tolist() == [True, False]


@pytest.mark.parametrize("rule", [REFERENCE, Rule("keep all", -1.0, is_strict=False)])
def test_an_unreadable_confidence_escalates(rule):
    assert not rule.keeps([np.nan]).any()


def test_no_other_threshold_is_worth_more_when_confidence_is_calibrated():
    prices = Prices(slm_cost=0.1, llm_cost=2.0, value=10.0, llm_accuracy=0.8)
    p = np.linspace(0, 1, 100_001)

    def worth(threshold):
        kept = p >= threshold
        return np.where(kept, p * prices.value, prices.llm_accuracy * prices.value - prices.llm_cost).mean()

    chosen = threshold_for_cost(prices)
    assert chosen == pytest.approx(0.6)
    assert all(worth(chosen) >= worth(other) for other in np.linspace(0, 1, 101))
    assert cost_optimal(prices).threshold == chosen


def test_a_large_model_not_worth_its_price_is_never_asked():
    prices = Prices(llm_cost=1.0, value=1.0, llm_accuracy=0.9)
    row = route([0.0, 0.5], [0, 1], cost_optimal(prices), prices, **NAMES)
    assert row.escalated.count == 0


def test_wrong_input_is_named():
    with pytest.raises(DataError, match=r"correct\[1\].*got nan"):
        route([0.1, 0.2], [1, np.nan], REFERENCE, Prices(), **NAMES)
    with pytest.raises(DataError, match=r"confidence\[0\].*got 70"):
        route([70, 0.2], [1, 0], REFERENCE, Prices(), **NAMES)
    with pytest.raises(ValidationError, match="value"):
        Prices(value=0)


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0, np.nan]), min_size=1, max_size=12),
    st.integers(0, 12),
)
def test_a_budget_is_spent_as_far_as_ties_allow(confidence, affordable):
    """Against trying every threshold that there is."""
    values = np.array(confidence)
    escalated = min(affordable, values.size) / values.size
    possible = [int((~(values >= t)).sum()) for t in {*confidence, 2.0} if not np.isnan(t)]
    within = [count for count in possible if count <= min(affordable, values.size)]
    if not within:
        with pytest.raises(DataError, match="Raise the budget"):
            threshold_for_budget(values, escalated)
        return
    rule = within_budget(values, escalated)
    assert int((~rule.keeps(values)).sum()) == max(within)


def test_a_budget_for_everything_escalates_everything():
    assert np.isnan(threshold_for_budget([0.3, 1.0], 1.0))
    assert not within_budget([0.3, 1.0], 1.0).keeps([0.3, 1.0]).any()
    assert threshold_for_budget([0.3, 1.0], 0.0) == 0.3


@pytest.mark.parametrize("percent", range(101))
def test_a_share_that_is_a_whole_number_of_answers_pays_for_all_of_them(percent):
    confidence = np.linspace(0, 1, 100)
    assert (~within_budget(confidence, percent / 100).keeps(confidence)).sum() == percent


def test_what_is_no_share_is_no_budget():
    with pytest.raises(DataError, match=r"escalated.*got 30"):
        threshold_for_budget([0.1, 0.2], 30)
    with pytest.raises(DataError, match=r"confidence\[1\].*got 2"):
        threshold_for_budget([0.1, 2.0], 0.3)
    with pytest.raises(DataError, match=r"at least 0\.5, the share of answers without"):
        threshold_for_budget([0.1, np.nan], 0.3)
