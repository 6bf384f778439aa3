"""What every metric promises whatever the answers: laws, checked on generated answers."""

import dataclasses
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.metrics.errors import calibration_error, calibration_floor, width_error
from calibration.metrics.outcomes import Outcomes, tally
from calibration.metrics.ranking import (
    augrc,
    aurc,
    auroc,
    average_precision,
    excess_aurc,
    rejection_ratio,
)
from calibration.metrics.scores import (
    brier,
    brier_parts,
    brier_skill,
    log_loss,
    overconfidence,
    spread,
)
from calibration.metrics.smooth import smooth_error

BINS = 5
"""Answers per bin: few, so that short lists fill several bins."""


def part(name):
    return lambda o: getattr(brier_parts(o), name)


# Each metric with the ends of its range.
SCORES = {
    "brier": (brier, 0, 1),
    "brier_skill": (brier_skill, -np.inf, 1),
    "log_loss": (log_loss, 0, 36.05),
    "overconfidence": (overconfidence, -1, 1),
    "miscalibration": (part("miscalibration"), 0, 1),
    "discrimination": (part("discrimination"), 0, 0.25),
    "uncertainty": (part("uncertainty"), 0, 0.25),
}
RANKS = {
    "auroc": (auroc, 0, 1),
    "average_precision": (average_precision, 0, 1),
    "aurc": (aurc, 0, 1),
    "excess_aurc": (excess_aurc, 0, 1),
    "augrc": (augrc, 0, 0.5),
    "rejection_ratio": (rejection_ratio, -np.inf, 1),
}
ERRORS = {
    **{
        f"bins of answers, {n}": (partial(calibration_error, norm=n, bin_size=BINS), 0, 1)
        for n in (1, 2, "max")
    },
    "bins of answers, debiased": (partial(calibration_error, bin_size=BINS, debias=True), 0, 1),
    **{f"bins of width, {n}": (partial(width_error, norm=n), 0, 1) for n in (1, 2, "max")},
    "smooth_error": (smooth_error, 0, 1),
}
METRICS = {**SCORES, **RANKS, **ERRORS}
each_metric = pytest.mark.parametrize("metric", [metric for metric, _, _ in METRICS.values()], ids=METRICS)

tenths = st.tuples(st.integers(0, 10).map(lambda k: k / 10), st.booleans())
floats = st.tuples(st.floats(0, 1), st.booleans())
answers = st.one_of(st.lists(tenths, min_size=2, max_size=40), st.lists(floats, min_size=2, max_size=40))
eighths = st.lists(st.tuples(st.integers(0, 8).map(lambda k: k / 8), st.booleans()), min_size=2, max_size=40)


def outcomes(rows):
    return tally(*zip(*rows, strict=True))


def same(value, expected, tolerance=1e-9):
    return value == pytest.approx(expected, abs=tolerance, nan_ok=True)


@each_metric
@given(rows=answers, random=st.randoms())
def test_the_order_of_the_answers_changes_no_bit(metric, rows, random):
    shuffled = rows.copy()
    random.shuffle(shuffled)
    assert np.asarray(metric(outcomes(rows))).tobytes() == np.asarray(metric(outcomes(shuffled))).tobytes()


@given(answers, st.randoms())
def test_the_order_of_the_answers_changes_neither_floor_nor_spread(rows, random):
    shuffled = rows.copy()
    random.shuffle(shuffled)
    one, other = outcomes(rows), outcomes(shuffled)
    assert calibration_floor(one, bin_size=BINS) == calibration_floor(other, bin_size=BINS)
    assert spread(one) == spread(other)


@pytest.mark.parametrize(("metric", "low", "high"), METRICS.values(), ids=METRICS)
@given(rows=answers)
def test_values_stay_within_their_range(metric, low, high, rows):
    value = metric(outcomes(rows))
    assert np.isnan(value) or low - 1e-12 <= value <= high + 1e-12


# Not in this list: three copies of an answer form a tie, within which AURC and its kin mean over all
# orders; and bins of equally many answers must grow with them (tests/metrics/test_errors.py).
COPIED = [
    *SCORES,
    "auroc",
    "average_precision",
    "augrc",
    *(name for name in ERRORS if not name.startswith("bins of answers")),
]


@pytest.mark.parametrize("name", COPIED)
@given(rows=answers)
def test_three_copies_of_every_answer_change_nothing(name, rows):
    metric = METRICS[name][0]
    assert same(metric(outcomes(rows * 3)), metric(outcomes(rows)), 1e-8)


@given(answers, st.data())
def test_a_strictly_increasing_map_changes_no_bit_of_a_ranking(rows, data):
    levels = sorted({c for c, _ in rows})
    values = st.lists(st.floats(0, 1), min_size=len(levels), max_size=len(levels), unique=True)
    increasing = dict(zip(levels, sorted(data.draw(values)), strict=True))
    o, mapped = outcomes(rows), outcomes([(increasing[c], y) for c, y in rows])
    for metric, _, _ in (*RANKS.values(), SCORES["discrimination"], SCORES["uncertainty"]):
        assert metric(o).tobytes() == metric(mapped).tobytes()


@given(answers)
def test_the_parts_of_the_brier_score_are_not_negative_and_sum_to_it(rows):
    o = outcomes(rows)
    parts = brier_parts(o)
    assert all(value >= 0 for value in dataclasses.astuple(parts))
    assert parts.discrimination <= parts.uncertainty + 1e-12
    assert same(parts.miscalibration - parts.discrimination + parts.uncertainty, brier(o), 1e-12)


@given(eighths)
def test_confidence_in_being_wrong_is_judged_as_confidence_in_being_right(rows):
    o, complement = outcomes(rows), outcomes([(1 - c, not y) for c, y in rows])
    for name in ("brier", "brier_skill", "log_loss", "auroc", "smooth_error"):
        assert same(METRICS[name][0](complement), METRICS[name][0](o), 1e-8)
    for name in ("miscalibration", "discrimination", "uncertainty"):
        assert same(METRICS[name][0](complement), METRICS[name][0](o))
    assert same(overconfidence(complement), -overconfidence(o))
    assert same(auroc(outcomes([(1 - c, y) for c, y in rows])), 1 - auroc(o))


@given(answers)
def test_ranking_metrics_that_share_a_formula_agree(rows):
    o = outcomes(rows)
    a, n = float(o.accuracy), len(rows)
    if a in (0, 1):
        return
    assert same(augrc(o), (1 - auroc(o)) * a * (1 - a) + (1 - a) ** 2 / 2)
    harmonic = sum(1 / k for k in range(round(a * n) + 1, n + 1))
    assert same(excess_aurc(o), (1 - rejection_ratio(o)) * a * harmonic)


def resamples(levels, n, seed):
    """Six resamples of n answers, most of which leave some levels empty, the first or the last too."""
    rng = np.random.default_rng(seed)
    level = np.sort(rng.choice(1001, levels, replace=False)) / 1000
    count = rng.multinomial(n, rng.dirichlet(np.full(levels, 0.5)), size=6)
    right = rng.binomial(count, level)
    right[0], right[1] = 0, count[1]  # all wrong, all right
    return level, count, right


@pytest.mark.parametrize(("levels", "n"), [(3, 12), (40, 60), (700, 3000)])
@each_metric
def test_resamples_together_score_what_each_scores_alone(metric, levels, n):
    for seed in range(5):
        level, count, right = resamples(levels, n, seed)
        together = metric(Outcomes(level, count, right))
        alone = [metric(Outcomes(level, c, r)) for c, r in zip(count, right, strict=True)]
        assert together.shape == (6,)
        np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(("levels", "n"), [(3, 12), (40, 60), (700, 3000)])
@each_metric
def test_levels_without_answers_change_nothing(metric, levels, n):
    for seed in range(5):
        level, count, right = resamples(levels, n, seed)
        sparse = metric(Outcomes(level, count, right))
        dense = [
            metric(Outcomes(level[c > 0], c[c > 0], r[c > 0])) for c, r in zip(count, right, strict=True)
        ]
        assert (count == 0).any()
        np.testing.assert_allclose(sparse, dense, rtol=1e-9, atol=1e-8)
