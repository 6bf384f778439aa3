"""Ranking metrics against brute force and scikit-learn."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from calibration.metrics.outcomes import tally
from calibration.metrics.ranking import (
    augrc,
    aurc,
    auroc,
    average_precision,
    excess_aurc,
    rejection_ratio,
)

METRICS = (auroc, average_precision, aurc, excess_aurc, augrc, rejection_ratio)
tied = st.lists(st.tuples(st.integers(0, 6).map(lambda k: k / 8), st.booleans()), min_size=1, max_size=40)
few = st.lists(st.tuples(st.integers(0, 2).map(lambda k: k / 2), st.booleans()), min_size=1, max_size=6)


@given(tied)
def test_auroc_counts_pairs(rows):
    right, wrong = [c for c, y in rows if y], [c for c, y in rows if not y]
    value = auroc(tally(*zip(*rows, strict=True)))
    if not right or not wrong:
        assert np.isnan(value)
        return
    pairs = [1.0 if r > w else 0.5 if r == w else 0.0 for r, w in itertools.product(right, wrong)]
    assert value == pytest.approx(np.mean(pairs))


@given(st.one_of(tied, st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=40)))
def test_auroc_and_average_precision_are_scikit_learns(rows):
    confidence, correct = zip(*rows, strict=True)
    o = tally(confidence, correct)
    if not any(correct):
        assert np.isnan(average_precision(o))
        return
    assert average_precision(o) == pytest.approx(average_precision_score(correct, confidence), abs=1e-12)
    if not all(correct):
        assert auroc(o) == pytest.approx(roc_auc_score(correct, confidence), abs=1e-12)


def _orders(rows):
    """The marks in every order of falling confidence: all orders of each tie, combined."""
    ties = itertools.groupby(sorted(rows, reverse=True), key=lambda row: row[0])
    orders = [list(itertools.permutations([float(y) for _, y in tie])) for _, tie in ties]
    return [np.concatenate(order) for order in itertools.product(*orders)]


def _risk_area(marks):
    """Error rate of the k first, averaged over k."""
    return np.mean([1 - marks[:k].mean() for k in range(1, len(marks) + 1)])


def _generalized_risk_area(marks):
    """Errors among the k first over all answers, integrated over k / n."""
    errors = np.concatenate([[0], np.cumsum(1 - marks)]) / len(marks)
    return np.trapezoid(errors, np.linspace(0, 1, len(marks) + 1))


def _rejection_area(marks):
    """Accuracy of what is left when 0, 1, ..., n - 1 answers are rejected from the end, averaged."""
    return np.mean([marks[: len(marks) - rejected].mean() for rejected in range(len(marks))])


@given(few)
def test_areas_are_the_exact_means_over_the_orders_of_ties(rows):
    o, orders = tally(*zip(*rows, strict=True)), _orders(rows)
    perfect = np.sort(orders[0])[::-1]
    risk = np.mean([_risk_area(order) for order in orders])
    assert aurc(o) == pytest.approx(risk, abs=1e-12)
    assert excess_aurc(o) == pytest.approx(risk - _risk_area(perfect), abs=1e-12)
    generalized = np.mean([_generalized_risk_area(order) for order in orders])
    assert augrc(o) == pytest.approx(generalized, abs=1e-12)


@given(few)
def test_the_rejection_ratio_lies_between_all_orders_and_the_best(rows):
    o, orders = tally(*zip(*rows, strict=True)), _orders(rows)
    perfect = np.sort(orders[0])[::-1]
    if perfect.min() == perfect.max():
        assert np.isnan(rejection_ratio(o))
        return
    n, right = len(rows), int(perfect.sum())
    any_order = [np.isin(np.arange(n), places) for places in itertools.combinations(range(n), right)]
    random = np.mean([_rejection_area(order) for order in any_order])
    areas = [_rejection_area(order) for order in orders]
    expected = (np.mean(areas) - random) / (_rejection_area(perfect) - random)
    assert rejection_ratio(o) == pytest.approx(expected, abs=1e-12)


def test_areas_are_the_means_over_many_random_orders_of_large_ties():
    rng = np.random.default_rng(0)
    confidence = np.round(rng.random(300), 1)
    correct = (rng.random(300) < confidence).astype(float)
    marks = [correct[np.lexsort((rng.random(300), -confidence))] for _ in range(2000)]
    for metric, area in ((aurc, _risk_area), (augrc, _generalized_risk_area)):
        areas = [area(order) for order in marks]
        error = np.std(areas) / np.sqrt(len(areas))
        assert metric(tally(confidence, correct)) == pytest.approx(np.mean(areas), abs=4 * error)


def test_a_constant_ranks_like_chance():
    o = tally([0.1] * 50, [1] * 10 + [0] * 40)
    oracle = sum((k - 10) / k for k in range(11, 51)) / 50
    expected = (0.5, 0.2, 0.8, 0.8 - oracle, 0.4, 0.0)
    assert [metric(o) for metric in METRICS] == pytest.approx(expected, abs=1e-12)


def test_perfect_and_reversed_rankings_are_the_extremes():
    right, wrong = [0.6, 0.7], [0.2, 0.3]
    perfect = tally(right + wrong, [1, 1, 0, 0])  # errors among the first k: 0 0 1 2
    expected = (1, 1, (1 / 3 + 1 / 2) / 4, 0, 1 / 8, 1)
    assert [metric(perfect) for metric in METRICS] == pytest.approx(expected, abs=1e-12)
    reverse = tally(right + wrong, [0, 0, 1, 1])  # 1 2 2 2
    area, best = (1 + 1 + 2 / 3 + 1 / 2) / 4, (1 / 3 + 1 / 2) / 4
    expected = (0, (1 / 3 + 1 / 2) / 2, area, area - best, 3 / 8, (1 / 2 - area) / (1 / 2 - best))
    assert [metric(reverse) for metric in METRICS] == pytest.approx(expected, abs=1e-12)


def test_one_error_ranked_first_falls_below_minus_one():
    o = tally([0.1, 0.5, 0.6, 0.7], [0, 1, 1, 1])
    worst = tally([0.9, 0.5, 0.6, 0.7], [0, 1, 1, 1])
    assert rejection_ratio(o) == 1
    assert rejection_ratio(worst) < -1  # one early error spoils every share that is kept


@pytest.mark.parametrize(("mark", "risk"), [(1, 0.0), (0, 1.0)])
def test_marks_of_one_kind_leave_nothing_to_rank(mark, risk):
    o = tally([0.2, 0.4, 0.4, 0.9, 0.7], [mark] * 5)
    values = [metric(o) for metric in METRICS]
    expected = [np.nan, 1.0 if mark else np.nan, risk, 0.0, risk / 2, np.nan]
    np.testing.assert_array_equal(values, expected)
