"""Post-hoc maps against scikit-learn and scipy, by hand, and against what they must never do."""

import typing

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy.optimize import minimize_scalar
from sklearn.calibration import _SigmoidCalibration
from sklearn.isotonic import IsotonicRegression

from calibration.errors import ConfigurationError, DataError
from calibration.maps import (
    COLDEST,
    EPSILON,
    FITS,
    HOTTEST,
    CalibrationMap,
    Constant,
    Histogram,
    Identity,
    Isotonic,
    Platt,
    Shift,
    Temperature,
    choose_fit,
    clipped_logit,
    cross_fit,
    fit_constant,
    fit_histogram,
    fit_identity,
    fit_isotonic,
    fit_platt,
    fit_shift,
    fit_temperature,
    named_fit,
)
from calibration.metrics.errors import calibration_error, calibration_floor
from calibration.metrics.outcomes import tally
from calibration.metrics.ranking import auroc
from calibration.metrics.scores import brier, overconfidence


def world(n, seed, slope=0.6, offset=-2.0):
    """Answers whose chance of being right is a known Platt map of their confidence."""
    rng = np.random.default_rng(seed)
    confidence = 1 / (1 + np.exp(-rng.normal(1, 1.5, n)))
    chance = Platt(slope=slope, offset=offset)(confidence)
    return confidence, (rng.random(n) < chance).astype(float)


def small_model(n, rng):
    """Accuracy .194, mean confidence .702, AUROC .7 (each solved for by integration)."""
    logits = rng.normal(1.02972, 1, n)
    chance = 1 / (1 + np.exp(2.39217 - 0.77550 * logits))
    return 1 / (1 + np.exp(-logits)), (rng.random(n) < chance).astype(float)


def rms(confidence, correct):
    return float(calibration_error(tally(confidence, correct)))


probability = st.floats(0, 1)


@st.composite
def histograms(draw):
    edges = sorted(draw(st.sets(probability, max_size=5)))
    size = len(edges) + 1
    return Histogram(edges=edges, values=draw(st.lists(probability, min_size=size, max_size=size)))


@st.composite
def isotonics(draw):
    x = sorted(draw(st.sets(probability, min_size=1, max_size=8)))
    y = draw(st.lists(probability, min_size=len(x), max_size=len(x)))
    return Isotonic(x=x, y=sorted(y))


increasing = st.one_of(
    st.just(Identity()),
    st.builds(Shift, gap=st.floats(-1, 1)),
    st.builds(Temperature, temperature=st.floats(COLDEST, HOTTEST)),
    st.builds(Platt, slope=st.floats(0, 50), offset=st.floats(-50, 50)),
    isotonics(),
)
maps = st.one_of(
    increasing,
    st.builds(Platt, slope=st.floats(-50, 50), offset=st.floats(-50, 50)),
    st.builds(Constant, value=probability),
    histograms(),
)
answers = st.lists(
    st.tuples(
        st.one_of(probability, st.sampled_from([0.0, EPSILON, 0.1, 0.5, 0.9, 1.0]), st.floats(0.5, 0.50001)),
        st.booleans(),
    ),
    min_size=1,
    max_size=40,
)


# What every map and every fit promises


@given(maps)
def test_a_map_survives_json_bit_by_bit_and_keeps_confidences_in_range_and_nan(fitted):
    again = TypeAdapter(CalibrationMap).validate_json(fitted.model_dump_json())
    assert again == fitted
    values = np.array([0.0, 1e-9, 0.3, 1.0, np.nan])
    mapped = again(values)
    assert ((mapped[:4] >= 0) & (mapped[:4] <= 1)).all()
    assert np.isnan(mapped[4])
    assert mapped.tobytes() == fitted(values).tobytes()
    assert fitted.is_increasing == again.is_increasing


@given(increasing, st.lists(probability, min_size=2, max_size=30))
def test_a_map_said_to_rise_never_falls(fitted, values):
    knots = np.array(getattr(fitted, "x", (0.5,)))
    sides = np.concatenate([values, knots, np.nextafter(knots, 0), np.nextafter(knots, 1).clip(max=1)])
    assert (np.diff(fitted(np.sort(sides))) >= 0).all()


@given(histograms())
def test_a_histogram_is_increasing_when_its_bins_rise(fitted):
    at_bins = fitted(np.concatenate([[0.0], fitted.edges]))
    if 0.0 not in fitted.edges:  # else nothing can lie in the first bin
        assert fitted.is_increasing == bool((np.diff(at_bins) >= 0).all() and at_bins[-1] > at_bins[0])


@pytest.mark.parametrize(
    ("fitted", "is_increasing"),
    [
        (Identity(), True),
        (Constant(value=0.3), False),
        (Shift(gap=0.5), True),
        (Shift(gap=1.0), False),
        (Temperature(temperature=HOTTEST), True),
        (Platt(slope=0.2, offset=-3), True),
        (Platt(slope=0, offset=-3), False),
        (Platt(slope=-0.2, offset=-3), False),
        (Histogram(edges=(0.3, 0.6), values=(0.1, 0.1, 0.4)), True),
        (Histogram(edges=(0.3, 0.6), values=(0.1, 0.5, 0.4)), False),
        (Histogram(edges=(), values=(0.1,)), False),
        (Isotonic(x=(0.3, 0.6), y=(0.1, 0.4)), True),
        (Isotonic(x=(0.3, 0.6), y=(0.4, 0.4)), False),
    ],
)
def test_a_map_knows_whether_it_keeps_the_order(fitted, is_increasing):
    assert fitted.is_increasing is is_increasing


@pytest.mark.parametrize("kind", FITS)
@given(answers, st.randoms(use_true_random=False))
@example([(0.0, True), (1.0, False)], None)
@example([(0.9, True)] * 3, None)
@example([(0.9, False)] * 3, None)
@example([(0.3, True), (3 * 0.1, False)], None)  # two confidences that only rounding tells apart
def test_a_fit_takes_any_answers_in_any_order(kind, rows, random):
    fitted = FITS[kind](*zip(*rows, strict=True))
    mapped = fitted(np.linspace(0, 1, 101))
    assert ((mapped >= 0) & (mapped <= 1)).all()
    shuffled = rows[::-1] if random is None else random.sample(rows, len(rows))
    assert FITS[kind](*zip(*shuffled, strict=True)) == fitted
    assert TypeAdapter(CalibrationMap).validate_json(fitted.model_dump_json()) == fitted


def test_a_fit_of_each_kind_of_map_can_be_named():
    union = typing.get_args(typing.get_args(CalibrationMap)[0])
    assert [kind.model_fields["kind"].default for kind in union] == list(FITS)
    for kind in FITS:
        assert named_fit(kind)([0.2, 0.8], [0, 1]).kind == kind
    with pytest.raises(ConfigurationError, match=r"must be one of identity, .*; got 'beta'"):
        named_fit("beta")


@pytest.mark.parametrize("kind", FITS)
def test_wrong_input_is_named(kind):
    with pytest.raises(DataError, match=r"correct\[1\] must be 0 or 1"):
        FITS[kind]([0.2, 0.4], [1, 0.5])
    fitted = FITS[kind]([0.2, 0.8], [0, 1])
    for percent in (70, -0.1):
        with pytest.raises(DataError, match=f"divide percentages by 100.*got {percent}"):
            fitted([0.2, np.nan, percent])


def test_one_confidence_is_mapped_like_a_list_of_one():
    for kind, fit in FITS.items():
        fitted = fit(*world(50, 0))
        assert float(fitted(0.3)) == fitted([0.3])[0], kind
        assert fitted([[0.3], [0.4]]).shape == (2, 1), kind


# Each map


def test_identity_and_constant_do_as_they_are_called():
    np.testing.assert_array_equal(Identity()([0.2, 1.0]), [0.2, 1.0])
    assert fit_identity([0.2], [1]) == Identity()
    np.testing.assert_array_equal(fit_constant([0.9, 0.8, 0.7, 0.6], [1, 0, 0, 0])([0.2, 0.9]), [0.25, 0.25])


def test_a_shift_is_the_mean_gap_and_stops_at_the_ends():
    fitted = fit_shift([0.875, 0.625, 0.75, 0.75], [1, 0, 0, 0])
    assert fitted == Shift(gap=0.5)
    np.testing.assert_array_equal(fitted([0.25, 0.5, 0.75, 1.0]), [0, 0, 0.25, 0.5])
    modest = fit_shift([0.25, 0.25], [1, 1])
    np.testing.assert_array_equal(modest([0.125, 0.5]), [0.875, 1.0])


@pytest.mark.parametrize("offset", [-0.5, 0.0, 1.0])
def test_a_temperature_is_the_likeliest(offset):
    confidence, correct = world(800, 7, slope=0.5, offset=offset)
    x = np.log(confidence / (1 - confidence))

    def loss(log_temperature):
        z = x / np.exp(log_temperature)
        return (np.logaddexp(0, z) - correct * z).sum()

    oracle = minimize_scalar(
        loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded", options={"xatol": 1e-10}
    )
    assert fit_temperature(confidence, correct).temperature == pytest.approx(np.exp(oracle.x), rel=1e-6)


def test_a_temperature_ends_at_a_bound_where_the_likelihood_has_no_top():
    assert fit_temperature([0.9, 0.8, 0.2], [0, 0, 1]).temperature == HOTTEST
    assert fit_temperature([0.9, 0.8, 0.2], [1, 1, 0]).temperature == COLDEST
    assert fit_temperature([1.0, 0.0], [1, 0]).temperature == COLDEST
    assert fit_temperature([0.5, 0.5], [1, 1]).temperature == 1


def test_no_temperature_moves_a_confidence_across_a_half():
    for temperature in (COLDEST, 1, HOTTEST):
        low, middle, high = Temperature(temperature=temperature)([0.4, 0.5, 0.6])
        assert low < middle == 0.5 < high


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
    np.testing.assert_allclose(fitted(grid), oracle.predict(clipped_logit(grid)), atol=1e-6)


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


def test_platt_converges_however_close_the_confidences():
    steps = [2, 1, -2, -2, -3, -1, 3, -2, 3, 0, 3, -1, -1, 1, 3, -2, -1, 2, 0, 3, -2, 0, 0, 0, -1, 0, 3]
    correct = np.array(steps) > 0
    wide = fit_platt(0.5 + 1e-3 * np.array(steps), correct)(0.5 + 1e-3 * np.arange(-3, 4))
    for spread in (1e-4, 1e-5, 1e-6, 4e-7):
        near = fit_platt(0.5 + spread * np.array(steps), correct)(0.5 + spread * np.arange(-3, 4))
        np.testing.assert_allclose(near, wide, atol=1e-4)  # around .5 the logit is a straight line


def test_platt_converges_where_a_full_newton_step_overshoots():
    confidence, correct = [1.0] * 29 + [0.0, 1.0], [0] * 27 + [1, 1, 1, 0]
    fitted = fit_platt(confidence, correct)
    # Two confidences and two parameters: each gets the mean of its smoothed targets.
    right, wrong = 4 / 5, 1 / 30
    assert fitted([0.0, 1.0]) == pytest.approx([right, (2 * right + 28 * wrong) / 30], abs=1e-9)


def test_platt_makes_one_confidence_the_base_rate():
    fitted = fit_platt([0.1] * 1000, np.arange(1000) < 300)
    assert fitted([0.0, 0.1, 1.0]) == pytest.approx([0.3, 0.3, 0.3], abs=0.002)
    assert fitted.slope == 0
    assert not fitted.is_increasing


def test_platt_sees_one_confidence_where_only_rounding_makes_two():
    fitted = fit_platt([0.3] * 500 + [3 * 0.1] * 500, np.arange(1000) < 300)
    assert fitted.slope == 0
    assert fitted([0.3, 3 * 0.1]) == pytest.approx([0.3, 0.3], abs=0.002)


def test_platt_keeps_the_ranking():
    confidence, correct = world(1000, 2)
    fitted = fit_platt(confidence, correct)
    assert fitted.is_increasing
    assert auroc(tally(fitted(confidence), correct)) == pytest.approx(
        float(auroc(tally(confidence, correct)))
    )


def test_a_histogram_is_what_counting_gives():
    confidence = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    fitted = fit_histogram(confidence, [0, 0, 1, 0, 0, 0, 1, 1, 1], bins=3)
    accuracy = 5 / 11  # (4 + 1) / (9 + 2)
    assert fitted.edges == pytest.approx((0.35, 0.65))
    assert fitted.values == pytest.approx(((1 + accuracy) / 4, accuracy / 4, (3 + accuracy) / 4))
    np.testing.assert_array_equal(fitted([0.0, 0.34, 0.36, 1.0]), np.take(fitted.values, [0, 0, 1, 2]))
    assert not fitted.is_increasing


def test_a_histogram_never_splits_a_tie():
    stated = [0.1] * 2 + [0.8] * 3 + [0.9] * 5  # the middle .8 is the fourth of ten: in the lower half
    fitted = fit_histogram(stated, [0] * 5 + [1] * 5, bins=2)
    assert fitted.edges == pytest.approx((0.85,))
    assert len(fit_histogram(stated, [0] * 5 + [1] * 5, bins=10).values) == 3
    assert fit_histogram([0.4] * 8, [1, 0] * 4).values == pytest.approx((0.5,))


@given(st.integers(1, 12), st.integers(1, 12))
def test_bins_hold_equally_many_answers(bins, each):
    confidence = np.linspace(0.01, 0.99, bins * each)
    fitted = fit_histogram(confidence, np.zeros(confidence.size), bins=bins)
    held = np.bincount(np.searchsorted(fitted.edges, confidence))
    np.testing.assert_array_equal(held, np.full(bins, each))


def test_neighbouring_floats_can_stand_on_two_sides_of_an_edge():
    for below in (0.0, 0.3, np.nextafter(1, 0)):
        above = np.nextafter(below, 1)
        low, high = fit_histogram([below, above], [0, 1], bins=2)([below, above])
        assert low < 0.5 < high


def test_a_histogram_is_sure_of_nothing_and_right_on_average():
    confidence, correct = small_model(1000, np.random.default_rng(5))
    fitted = fit_histogram(confidence, correct)
    assert min(fitted.values) > 0
    assert max(fitted.values) < 1
    assert fitted(confidence).mean() == pytest.approx(correct.mean(), abs=1e-4)
    assert fit_histogram([0.2, 0.4], [0, 0]).values == (0.125, 0.125)  # (0 + 1/4) / 2
    with pytest.raises(ConfigurationError, match="bins must be at least 1; got 0"):
        fit_histogram([0.2, 0.4], [0, 0], bins=0)


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=60))
def test_isotonic_is_scikit_learns_between_and_beyond_the_knots(rows):
    places, correct = zip(*rows, strict=True)
    confidence = 0.1 + np.array(places) / 50
    oracle = IsotonicRegression(out_of_bounds="clip").fit(confidence, np.array(correct, dtype=float))
    grid = np.linspace(0, 1, 401)
    np.testing.assert_allclose(fit_isotonic(confidence, correct)(grid), oracle.predict(grid), atol=1e-12)


def test_isotonic_is_scikit_learns_on_a_thousand_answers():
    confidence, correct = small_model(1000, np.random.default_rng(3))
    oracle = IsotonicRegression(out_of_bounds="clip").fit(confidence, correct)
    fitted, grid = fit_isotonic(confidence, correct), np.linspace(0, 1, 5001)
    np.testing.assert_allclose(fitted(grid), oracle.predict(grid), atol=1e-12)
    assert len(fitted.x) < 60  # only the ends of level pieces are kept
    assert fitted.is_increasing


def test_isotonic_stays_in_range_between_the_smallest_numbers():
    fitted = Isotonic(x=(0.0, 1e-310), y=(0.1, 0.3))
    low, inside, high = fitted([0.0, 5e-311, 1e-310])
    assert (low, high) == (0.1, 0.3)
    assert low <= inside <= high


@pytest.mark.parametrize(
    ("kind", "fields", "complaint"),
    [
        (Isotonic, {"x": (0.2, 0.2), "y": (0.1, 0.3)}, "x must be strictly ascending; got 0.2 before 0.2"),
        (Isotonic, {"x": (0.2, 0.4), "y": (0.3, 0.1)}, "y must never fall"),
        (Isotonic, {"x": (0.2, 0.4), "y": (0.3,)}, "equally long; got 2 and 1"),
        (Isotonic, {"x": (), "y": ()}, "at least 1"),
        (Isotonic, {"x": (20.0,), "y": (0.3,)}, "less than or equal to 1"),
        (Histogram, {"edges": (0.5,), "values": (0.5,)}, "one value more than edges; got 1 values for 1"),
        (Histogram, {"edges": (0.5, 0.4), "values": (0.1, 0.2, 0.3)}, "edges must be strictly ascending"),
        (Temperature, {"temperature": 0}, "greater than or equal to 0.01"),
        (Shift, {"gap": 1.5}, "less than or equal to 1"),
    ],
)
def test_a_map_that_makes_no_sense_cannot_be_built(kind, fields, complaint):
    with pytest.raises(ValidationError, match=complaint):
        kind(**fields)


# What the comparison of maps teaches, at the numbers of a small model on hard questions


@pytest.fixture(scope="module")
def lessons():
    """RMS, AUROC and floor after each map, on 1000 fresh answers; means of 30 repetitions."""
    rng = np.random.default_rng(11)
    found = {kind: {100: [], 1000: []} for kind in FITS}
    for _ in range(30):
        fresh, marks = small_model(1000, rng)
        for labels in (100, 1000):
            confidence, correct = small_model(labels, rng)
            for kind, fit in FITS.items():
                o = tally(fit(confidence, correct)(fresh), marks)
                found[kind][labels].append(
                    (float(calibration_error(o)), float(auroc(o)), calibration_floor(o))
                )
    return {
        (kind, labels): np.mean(rows, axis=0)
        for kind, by_labels in found.items()
        for labels, rows in by_labels.items()
    }


def test_the_example_is_the_one_described():
    confidence, correct = small_model(200_000, np.random.default_rng(0))
    o = tally(confidence, correct)
    assert o.accuracy == pytest.approx(0.194, abs=0.003)
    assert o.mean_confidence == pytest.approx(0.702, abs=0.002)
    assert auroc(o) == pytest.approx(0.7, abs=0.005)


def test_a_hundred_labels_remove_four_fifths_of_the_error(lessons):
    raw, _, _ = lessons["identity", 100]
    assert raw == pytest.approx(0.515, abs=0.01)
    assert lessons["platt", 100][0] < 0.2 * raw
    assert lessons["platt", 1000][0] == pytest.approx(lessons["platt", 1000][2], abs=0.01)


def test_temperature_is_no_baseline_where_the_model_is_mostly_wrong(lessons):
    assert lessons["temperature", 100][0] == pytest.approx(0.33, abs=0.01)
    assert lessons["temperature", 1000][0] == pytest.approx(0.33, abs=0.01)
    confidence, correct = small_model(1000, np.random.default_rng(2))
    fitted = fit_temperature(confidence, correct)
    assert fitted.temperature == HOTTEST
    assert np.ptp(fitted(confidence)) < 0.05


def test_a_constant_has_the_least_error_and_says_nothing(lessons):
    errors = {kind: lessons[kind, 1000][0] for kind in FITS}
    assert min(errors, key=errors.get) == "constant"
    assert errors["constant"] < 0.02
    assert lessons["constant", 1000][1] == 0.5


def test_only_maps_with_ties_change_the_ranking(lessons):
    ranking = lessons["identity", 1000][1]
    for kind in ("platt", "temperature"):
        assert lessons[kind, 1000][1] == pytest.approx(ranking, abs=1e-4)
    assert 0.002 < ranking - lessons["isotonic", 1000][1] < 0.01
    assert 0.01 < ranking - lessons["isotonic", 100][1] < 0.03
    assert lessons["histogram", 1000][1] < lessons["isotonic", 1000][1]


def test_in_sample_isotonic_looks_perfect_and_is_not(lessons):
    confidence, correct = small_model(1000, np.random.default_rng(4))
    assert rms(fit_isotonic(confidence, correct)(confidence), correct) < 1e-9
    assert rms(fit_isotonic(confidence, 1 - correct)(confidence), 1 - correct) < 1e-9
    assert lessons["isotonic", 1000][0] > 0.03


def test_what_a_shift_cuts_off_is_not_subtracted():
    confidence, correct = small_model(1000, np.random.default_rng(6))
    left = overconfidence(tally(fit_shift(confidence, correct)(confidence), correct))
    assert 0 < left < 0.05


# Choosing and cross-fitting


def jump(n, seed):
    """Accuracy .05 up to a confidence of .8 and .7 above: no logistic curve."""
    rng = np.random.default_rng(seed)
    confidence = rng.random(n)
    return confidence, (rng.random(n) < np.where(confidence > 0.8, 0.7, 0.05)).astype(float)


def test_the_map_that_predicts_other_folds_best_is_chosen():
    ids = [f"q{i}" for i in range(2000)]
    assert choose_fit(ids, *jump(2000, 0)) == "isotonic"
    assert choose_fit(ids, *world(2000, 0)) == "platt"
    confidence, correct = world(2000, 0)
    scores = {kind: brier(tally(cross_fit(FITS[kind], ids, confidence, correct), correct)) for kind in FITS}
    assert choose_fit(ids, confidence, correct, tuple(FITS)) == min(scores, key=scores.get)


def test_the_choice_depends_on_neither_the_order_of_answers_nor_luck():
    ids = np.array([f"q{i}" for i in range(1200)])
    confidence, correct = jump(1200, 1)
    chosen = choose_fit(ids.tolist(), confidence, correct)
    order = np.random.default_rng(0).permutation(1200)
    assert choose_fit(ids[order].tolist(), confidence[order], correct[order]) == chosen == "isotonic"
    assert choose_fit(ids.tolist(), confidence, correct, ("isotonic", "platt")) == "isotonic"


def test_isotonic_is_no_candidate_below_a_thousand_answers():
    ids = [f"q{i}" for i in range(999)]
    confidence, correct = jump(1000, 0)
    assert choose_fit(ids, confidence[:999], correct[:999]) == "platt"
    assert choose_fit([*ids, "q999"], confidence, correct) == "isotonic"
    with pytest.raises(DataError, match="among isotonic needs more graded answers; got 999"):
        choose_fit(ids, confidence[:999], correct[:999], ("isotonic",))


def test_of_equally_good_maps_the_first_is_chosen():
    ids = [f"q{i}" for i in range(50)]
    rows = (np.full(50, 0.5), np.arange(50) % 2)
    for names in (("identity", "temperature"), ("temperature", "identity")):
        assert choose_fit(ids, *rows, names) == names[0]


def test_an_unknown_map_is_refused():
    with pytest.raises(ConfigurationError, match="got 'splines'"):
        choose_fit(["a", "b"], [0.2, 0.4], [0, 1], ("platt", "splines"))


@pytest.mark.parametrize("kind", ["platt", "isotonic", "histogram"])
def test_cross_fitting_never_lets_an_answer_see_its_own_mark(kind):
    confidence, correct = world(60, 4)
    ids = [f"q{i}" for i in range(60)]
    mapped = cross_fit(FITS[kind], ids, confidence, correct)
    for position in range(60):
        changed = correct.copy()
        changed[position] = 1 - changed[position]
        again = cross_fit(FITS[kind], ids, confidence, changed)
        assert again[position] == mapped[position]
        assert (again != mapped).any()


def test_a_question_has_the_same_fold_in_any_order_and_company():
    confidence, correct = world(200, 5)
    ids = np.array([f"q{i}" for i in range(200)])
    mapped = cross_fit(fit_platt, ids.tolist(), confidence, correct)
    order = np.random.default_rng(0).permutation(200)
    again = cross_fit(fit_platt, ids[order].tolist(), confidence[order], correct[order])
    np.testing.assert_array_equal(again, mapped[order])


def test_too_few_questions_are_not_cross_fitted():
    with pytest.raises(DataError, match="two folds at least; got 1 in one"):
        cross_fit(fit_platt, ["q"], [0.4], [1])
    with pytest.raises(DataError, match="got 1 ids, 2 answers"):
        cross_fit(fit_platt, ["q"], [0.4, 0.5], [1, 0])
