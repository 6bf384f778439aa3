"""Post-hoc maps against scikit-learn and against what they must never do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from sklearn.calibration import _SigmoidCalibration

from calibration.errors import DataError
from calibration.maps import (
    CalibrationMap,
    Constant,
    Identity,
    Platt,
    clipped_logit,
    cross_fit,
    fit_constant,
    fit_platt,
)
from calibration.metrics.outcomes import tally
from calibration.metrics.ranking import auroc


def world(n, seed, slope=0.6, offset=-2.0):
    """Answers whose chance of being right is a known Platt map of their confidence."""
    rng = np.random.default_rng(seed)
    confidence = 1 / (1 + np.exp(-rng.normal(1, 1.5, n)))
    chance = Platt(slope=slope, offset=offset)(confidence)
    return confidence, (rng.random(n) < chance).astype(float)


@pytest.mark.parametrize(
    "case", ["typical", "separable", "all wrong", "all right", "reversed", "few", "extreme"]
)
def test_platt_is_scikit_learns_sigmoid_on_the_logit(case):
    confidence, correct = world(1000, 0)
    if case == "separable":
        correct = (confidence > 0.7).astype(float)
    if case == "all wrong":
        correct = np.zeros(1000)
    if case == "all right":
        correct = np.ones(1000)
    if case == "reversed":
        correct = 1 - correct
    if case == "few":
        confidence, correct = confidence[:7], correct[:7]
    if case == "extreme":
        confidence = np.where(confidence > 0.9, 1.0, confidence)
    fitted = fit_platt(confidence, correct)
    oracle = _SigmoidCalibration().fit(clipped_logit(confidence), correct.astype(int))
    grid = np.linspace(0, 1, 201)
    np.testing.assert_allclose(fitted(grid), oracle.predict(clipped_logit(grid)), atol=2e-6)


def test_platt_minimises_the_smoothed_log_loss():
    """Independent of any solver: no small step in any direction lowers the loss."""
    confidence, correct = world(500, 3)
    fitted = fit_platt(confidence, correct)
    right, wrong = correct.sum(), (1 - correct).sum()
    target = np.where(correct == 1, (right + 1) / (right + 2), 1 / (wrong + 2))

    def loss(slope, offset):
        p = Platt(slope=slope, offset=offset)(confidence)
        return -(target * np.log(p) + (1 - target) * np.log1p(-p)).sum()

    best = loss(fitted.slope, fitted.offset)
    for step in (1e-3, -1e-3):
        assert loss(fitted.slope + step, fitted.offset) > best
        assert loss(fitted.slope, fitted.offset + step) > best


def test_platt_finds_the_map_that_made_the_answers():
    fitted = fit_platt(*world(40_000, 1))
    assert (fitted.slope, fitted.offset) == pytest.approx((0.6, -2.0), abs=0.05)


def test_a_constant_confidence_maps_to_the_base_rate():
    fitted = fit_platt(np.full(1000, 0.1), np.arange(1000) < 300)
    assert fitted([0.1])[0] == pytest.approx(0.3, abs=0.002)
    assert fitted.slope == pytest.approx(0, abs=1e-9)


def test_an_increasing_map_keeps_the_ranking():
    confidence, correct = world(1000, 2)
    fitted = fit_platt(confidence, correct)
    assert fitted.slope > 0
    assert auroc(tally(fitted(confidence), correct)) == pytest.approx(
        float(auroc(tally(confidence, correct)))
    )


@given(st.one_of(
    st.builds(Platt, slope=st.floats(-50, 50), offset=st.floats(-50, 50)),
    st.builds(Constant, value=st.floats(0, 1)),
    st.just(Identity()),
))  # fmt: skip
def test_a_map_survives_json_and_keeps_confidences_in_range_and_nan(fitted):
    again = TypeAdapter(CalibrationMap).validate_json(fitted.model_dump_json())
    assert again == fitted
    values = np.array([0.0, 1e-9, 0.3, 1.0, np.nan])
    mapped = again(values)
    assert ((mapped[:4] >= 0) & (mapped[:4] <= 1)).all()
    assert np.isnan(mapped[4])
    np.testing.assert_array_equal(mapped, fitted(values))


def test_identity_and_constant_do_as_they_are_called():
    np.testing.assert_array_equal(Identity()([0.2, 1.0]), [0.2, 1.0])
    np.testing.assert_array_equal(fit_constant([0.9, 0.8, 0.7, 0.6], [1, 0, 0, 0])([0.2, 0.9]), [0.25, 0.25])


def test_cross_fitting_never_lets_an_answer_see_its_own_mark():
    confidence, correct = world(60, 4)
    ids = [f"q{i}" for i in range(60)]
    mapped = cross_fit(fit_platt, ids, confidence, correct)
    for position in range(60):
        changed = correct.copy()
        changed[position] = 1 - changed[position]
        again = cross_fit(fit_platt, ids, confidence, changed)
        assert again[position] == mapped[position]
        assert (again != mapped).any()


def test_a_question_has_the_same_fold_in_any_order_and_company():
    confidence, correct = world(200, 5)
    ids = np.array([f"q{i}" for i in range(200)])
    mapped = cross_fit(fit_platt, ids.tolist(), confidence, correct)
    order = np.random.default_rng(0).permutation(200)
    again = cross_fit(fit_platt, ids[order].tolist(), confidence[order], correct[order])
    np.testing.assert_allclose(again, mapped[order], rtol=1e-9)


def test_too_few_questions_are_not_cross_fitted():
    with pytest.raises(DataError, match="two folds at least; got 1 in one"):
        cross_fit(fit_platt, ["q"], [0.4], [1])
