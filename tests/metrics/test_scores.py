"""Scores against scikit-learn and against values worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as sklearn_log_loss

from calibration.metrics.outcomes import tally
from calibration.metrics.scores import brier, brier_skill, log_loss, overconfidence, spread

answers = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


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
