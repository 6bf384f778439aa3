"""Ranking metrics against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.metrics.outcomes import Outcomes, tally
from calibration.metrics.ranking import aurc, auroc

tied = st.lists(st.tuples(st.integers(0, 6).map(lambda k: k / 8), st.booleans()), min_size=1, max_size=40)


@given(tied)
def test_auroc_counts_pairs(rows):
    right, wrong = [c for c, y in rows if y], [c for c, y in rows if not y]
    value = auroc(tally(*zip(*rows, strict=True)))
    if not right or not wrong:
        assert np.isnan(value)
        return
    pairs = [1.0 if r > w else 0.5 if r == w else 0.0 for r, w in itertools.product(right, wrong)]
    assert value == pytest.approx(np.mean(pairs))


def _risk_area(correct):
    errors = np.cumsum(1 - np.asarray(correct, dtype=float))
    return float((errors / np.arange(1, len(errors) + 1)).mean())


@given(st.lists(st.tuples(st.integers(0, 2).map(lambda k: k / 2), st.booleans()), min_size=1, max_size=6))
def test_aurc_is_the_exact_mean_over_the_orders_of_ties(rows):
    orders = itertools.permutations(sorted(rows, reverse=True))
    descending = [order for order in orders if all(a[0] >= b[0] for a, b in itertools.pairwise(order))]
    expected = np.mean([_risk_area([y for _, y in order]) for order in descending])
    assert aurc(tally(*zip(*rows, strict=True))) == pytest.approx(expected)


def test_aurc_is_the_mean_over_many_random_orders_of_a_large_tie():
    rng = np.random.default_rng(0)
    confidence = np.round(rng.random(300), 1)
    correct = rng.random(300) < confidence
    areas = [_risk_area(correct[np.lexsort((rng.random(300), -confidence))]) for _ in range(3000)]
    error = np.std(areas) / np.sqrt(len(areas))
    assert aurc(tally(confidence, correct)) == pytest.approx(np.mean(areas), abs=4 * error)


@given(tied)
def test_no_increasing_map_changes_the_ranking_metrics(rows):
    o = tally(*zip(*rows, strict=True))
    stretched = Outcomes(np.sqrt(o.level) / 2, o.count, o.right)
    assert aurc(stretched) == aurc(o)
    assert auroc(stretched).tobytes() == auroc(o).tobytes()


def test_a_constant_ranks_like_chance():
    o = tally([0.1] * 50, [1] * 10 + [0] * 40)
    assert auroc(o) == 0.5
    assert aurc(o) == pytest.approx(0.8)


def test_a_leading_axis_gives_each_rows_own_value_and_tolerates_empty_levels():
    level, count = np.array([0.1, 0.5, 0.9]), np.array([[2, 0, 2], [1, 2, 1], [0, 4, 0]])
    right = np.array([[1, 0, 2], [0, 1, 1], [0, 2, 0]])
    for metric in (auroc, aurc):
        alone = [metric(Outcomes(level, c, r)) for c, r in zip(count, right, strict=True)]
        np.testing.assert_array_equal(metric(Outcomes(level, count, right)), alone)
