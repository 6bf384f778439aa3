"""Smooth calibration error against the integral that defines it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import ndtr

from calibration.metrics.outcomes import Outcomes, tally
from calibration.metrics.scores import overconfidence
from calibration.metrics.smooth import smooth_error

tied = st.lists(st.tuples(st.integers(0, 8).map(lambda k: k / 8), st.booleans()), min_size=1, max_size=40)
free = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40)


def smoothed_area(o, bandwidth, points=20_001):
    """The definition, by brute force: every level with its mirror images, the trapezium rule for the rest."""
    at = np.linspace(0, 1, points)
    smooth = np.zeros(points)
    for level, residual in zip(o.level, (o.level * o.count - o.right) / o.n, strict=True):
        for turn in range(-3, 4):  # reflected at 0 and at 1, any number of times
            for image in (2 * turn + level, 2 * turn - level):
                smooth += residual * np.exp(-(((at - image) / bandwidth) ** 2) / 2)
    area = np.abs(smooth / (bandwidth * np.sqrt(2 * np.pi)))
    return float((area.sum() - (area[0] + area[-1]) / 2) / (points - 1))


def world(shape, n):
    rng = np.random.default_rng(n)
    confidence = rng.random(n)
    chance = {"underconfident": np.sqrt(confidence), "crossing": np.full(n, 0.5)}.get(shape, confidence)
    if shape == "one decimal":
        confidence = np.round(confidence, 1)
    if shape == "mostly 0 or 1":
        confidence = np.where(rng.random(n) < 0.6, np.round(confidence), confidence)
        chance = np.where(confidence == 1, 0.6, chance)
    if shape == "all within .01":
        confidence = chance = 0.7 + confidence / 100
    return tally(confidence, rng.random(n) < chance)


@pytest.mark.parametrize("n", [10, 100, 1000])
@pytest.mark.parametrize(
    "shape",
    ["calibrated", "underconfident", "crossing", "one decimal", "mostly 0 or 1", "all within .01"],
)
def test_the_error_is_the_bandwidth_at_which_the_area_equals_it(shape, n):
    o = world(shape, n)
    value = float(smooth_error(o))
    assert value == pytest.approx(smoothed_area(o, value), abs=1e-5)


def test_residuals_at_the_ends_keep_their_whole_weight():
    """Certain answers, half of them wrong, beside calibrated ones: a kernel cut at 0 and 1 sees half."""
    level = np.array([0, 0.5, 1])
    o = Outcomes(level, np.array([30, 40, 30]), np.array([15, 20, 15]))
    value = float(smooth_error(o))
    assert value == pytest.approx(smoothed_area(o, value), abs=1e-6)
    assert value == pytest.approx(0.2647, abs=5e-5)
    cut = Outcomes(level, np.array([15, 40, 15]), np.array([7.5, 20, 7.5]))
    assert smooth_error(cut) < 0.24


@pytest.mark.parametrize("distance", [1e-4, 1e-3, 1e-2])
def test_errors_that_cancel_nearby_count_by_how_near(distance):
    """Right at .5 - d, wrong at .5 + d. Two Gaussians 2d apart have the area 2(2 Phi(d / s) - 1) between."""
    o = tally([0.5 - distance, 0.5 + distance], [1, 0])
    expected = brentq(lambda s: (0.5 + distance) * (2 * ndtr(distance / s) - 1) - s, 1e-3, 1)
    assert smooth_error(o) == pytest.approx(expected, abs=2e-5)
    assert expected < 0.1  # though every single answer is off by half


@given(st.one_of(tied, free))
def test_it_lies_between_the_mean_gap_and_the_sum_of_the_levels_gaps(rows):
    o = tally(*zip(*rows, strict=True))
    value = smooth_error(o)
    assert abs(overconfidence(o)) - 1e-8 <= value
    assert value <= np.abs(o.level * o.count - o.right).sum() / o.n + 1e-8


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 5)), min_size=1, max_size=9))
def test_it_is_nought_when_every_confidence_is_the_share_that_was_right(levels):
    rows = [(eighths / 8, i < eighths * k) for eighths, k in levels for i in range(8 * k)]
    assert smooth_error(tally(*zip(*rows, strict=True))) == 0


@given(st.one_of(tied, free), st.randoms())
def test_the_order_of_the_answers_changes_no_bit(rows, random):
    shuffled = rows.copy()
    random.shuffle(shuffled)
    one, other = (smooth_error(tally(*zip(*order, strict=True))) for order in (rows, shuffled))
    assert one.tobytes() == other.tobytes()


@given(st.one_of(tied, free))
def test_copies_and_complements_score_the_same(rows):
    value = smooth_error(tally(*zip(*rows, strict=True)))
    assert smooth_error(tally(*zip(*(rows * 3), strict=True))) == pytest.approx(value, abs=1e-8)
    turned = [(1 - confidence, not correct) for confidence, correct in rows]
    assert smooth_error(tally(*zip(*turned, strict=True))) == pytest.approx(value, abs=1e-7)


def test_a_leading_axis_gives_each_rows_own_value_and_tolerates_empty_levels():
    rng = np.random.default_rng(0)
    level, count = np.sort(rng.random(200)), rng.integers(0, 3, (2, 3, 200))
    right = rng.binomial(count, level**2)
    found = smooth_error(Outcomes(level, count, right))
    assert found.shape == (2, 3)
    for at in np.ndindex(2, 3):
        present = count[at] > 0
        alone = Outcomes(level[present], count[at][present], right[at][present])
        assert found[at] == pytest.approx(smooth_error(alone), abs=1e-8)
