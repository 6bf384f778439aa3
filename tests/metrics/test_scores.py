"""Scores against scikit-learn and against values worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as sklearn_log_loss

from calibration.metrics.outcomes import Outcomes, tally
from calibration.metrics.scores import (
    brier,
    brier_parts,
    brier_skill,
    log_loss,
    overconfidence,
    spread,
)

answers = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)
tied = st.lists(st.tuples(st.integers(0, 8).map(lambda k: k / 8), st.booleans()), min_size=1, max_size=60)


@given(answers)
def test_brier_and_log_loss_are_scikit_learns(rows):
    confidence, correct = zip(*rows, strict=True)
    o = tally(confidence, correct)
    assert brier(o) == pytest.approx(brier_score_loss(correct, confidence), abs=1e-12)
    both = [[1 - c, c] for c in confidence]
    assert log_loss(o) == pytest.approx(sklearn_log_loss(correct, both, labels=[False, True]), abs=1e-9)


def test_one_certain_error_costs_much_but_not_everything():
    assert log_loss(tally([1.0], [0])) == pytest.approx(36.04, abs=0.01)


def test_skill_is_nought_for_the_base_rate_and_undefined_for_one_class():
    assert brier_skill(tally([0.25] * 4, [1, 0, 0, 0])) == pytest.approx(0)
    assert brier_skill(tally([1.0, 0.0], [1, 0])) == 1
    assert np.isnan(brier_skill(tally([0.9, 0.2], [1, 1])))
    assert np.isnan(brier_skill(tally([0.9, 0.2], [0, 0])))


def _isotonic(rows):
    """The fit's definition: at each level, the highest lowest mean over the ranges of levels around it."""
    levels = sorted({c for c, _ in rows})
    marks = [[float(y) for c, y in rows if c == level] for level in levels]
    last = len(levels) - 1

    def mean(first, final):
        return np.mean(np.concatenate(marks[first : final + 1]))

    return {
        level: max(min(mean(j, k) for k in range(i, last + 1)) for j in range(i + 1))
        for i, level in enumerate(levels)
    }


@given(tied)
def test_the_parts_are_what_the_best_increasing_map_changes(rows):
    confidence, correct = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    fit = _isotonic(rows)
    fitted = np.array([fit[c] for c in confidence])
    score, best = np.mean((confidence - correct) ** 2), np.mean((fitted - correct) ** 2)
    constant = np.mean((correct.mean() - correct) ** 2)
    parts = brier_parts(tally(confidence, correct))
    assert parts.miscalibration == pytest.approx(score - best, abs=1e-12)
    assert parts.discrimination == pytest.approx(constant - best, abs=1e-12)
    assert parts.uncertainty == pytest.approx(constant, abs=1e-12)


def _parts(confidence, correct):
    parts = brier_parts(tally(confidence, correct))
    return float(parts.miscalibration), float(parts.discrimination), float(parts.uncertainty)


def test_a_constant_a_calibrated_and_a_reversed_confidence_part_as_they_should():
    correct = [1, 0, 0, 0]
    assert _parts([0.75] * 4, correct) == pytest.approx((0.25, 0, 0.1875))  # (.75 - .25)**2
    assert _parts([1.0, 0.0, 0.0, 0.0], correct) == pytest.approx((0, 0.1875, 0.1875))
    assert _parts([0.5, 0.5, 0.0, 0.0], correct) == pytest.approx((0, 0.0625, 0.1875))
    assert _parts([0.0, 1.0, 1.0, 1.0], correct) == pytest.approx((1 - 0.1875, 0, 0.1875))
    assert _parts([0.5, 0.9], [1, 1]) == pytest.approx((0.13, 0, 0))


def test_rounding_makes_no_part_negative():
    """Calibrated to the last answer: the difference of the scores alone would be -1.4e-17."""
    assert _parts([1 / 11] * 11, [1] + [0] * 10)[0] == 0
    assert _parts([1 / 9] * 9 + [8 / 9] * 9, [1] + [0] * 8 + [0] + [1] * 8)[0] == 0


def test_levels_without_answers_take_no_part():
    level = np.array([0.1, 0.3, 0.5, 0.9, 1.0])
    count, right = np.array([[0, 4, 0, 4, 0]]), np.array([[0, 1, 0, 2, 0]])
    sparse = brier_parts(Outcomes(level, count, right))
    dense = brier_parts(Outcomes(level[[1, 3]], count[0, [1, 3]], right[0, [1, 3]]))
    assert (sparse.miscalibration[0], sparse.discrimination[0], sparse.uncertainty[0]) == pytest.approx(
        (float(dense.miscalibration), float(dense.discrimination), float(dense.uncertainty))
    )


def test_overconfidence_is_signed():
    assert overconfidence(tally([0.7] * 10, [1] * 2 + [0] * 8)) == pytest.approx(0.5)
    assert overconfidence(tally([0.1, 0.3], [1, 0])) == pytest.approx(-0.3)


def test_spread_knows_variety_from_jitter():
    rng = np.random.default_rng(0)
    jitter = spread(tally(0.1 + rng.uniform(-0.004, 0.004, 500), rng.random(500) < 0.1))
    assert jitter.levels == 500
    assert jitter.effective_levels == pytest.approx(1)
    assert jitter.top_two_share == 1
    wide = spread(tally(np.linspace(0, 1, 1001), np.linspace(0, 1, 1001) > 0.5))
    assert wide.effective_levels > 95
    assert wide.top_two_share == pytest.approx(0.02, abs=0.003)
    assert (wide.q05, wide.q95) == pytest.approx((0.05, 0.95), abs=0.001)


def test_quantiles_are_confidences_that_occur():
    seen = spread(tally([0.1] * 10 + [0.6] * 80 + [0.9] * 10, [0] * 100))
    assert (seen.q05, seen.q95) == (0.1, 0.9)
    assert spread(tally([0.1] * 4 + [0.6] * 96, [0] * 100)).q05 == 0.6
