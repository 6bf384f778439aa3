"""Intervals against direct computation, theory and simulation."""

import tracemalloc

import numpy as np
import pytest
from scipy.stats import norm

from calibration.errors import DataError
from calibration.metrics.errors import calibration_error, hle_calibration_error
from calibration.metrics.inference import (
    Graded,
    accuracy,
    compare,
    hle_error,
    interval,
    noninferior,
    on_outcomes,
    ratio_reduction,
    resample,
)
from calibration.metrics.outcomes import tally
from calibration.metrics.ranking import aurc, auroc
from calibration.metrics.scores import brier

METRICS = {
    "brier": brier,
    "auroc": auroc,
    "aurc": aurc,
    "rms": calibration_error,
}


def pair(n, seed, shift=1.5):
    """A calibrated confidence and an overconfident noisy one for the same answers."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-1, 1.2, n)
    correct = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(float)
    noisy = 1 / (1 + np.exp(-(z + rng.normal(shift, 1, n))))
    ids = tuple(f"q{i}" for i in range(n))
    return Graded(ids, noisy, correct), Graded(ids, 1 / (1 + np.exp(-z)), correct)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_a_resample_scores_what_the_repeated_answers_score(metric):
    answers, _ = pair(300, 0)
    picks = np.random.default_rng(1).integers(0, 300, (5, 300))
    direct = [metric(tally(answers.confidence[p], answers.correct[p])) for p in picks]
    np.testing.assert_allclose(metric(resample(answers, picks)), direct, rtol=1e-12)


def test_hle_resamples_score_what_the_published_function_scores():
    answers, _ = pair(450, 0)
    picks = np.random.default_rng(1).integers(0, 450, (5, 450))
    direct = [hle_calibration_error(answers.confidence[p], answers.correct[p]) for p in picks]
    np.testing.assert_allclose(hle_error(answers, picks), direct, rtol=1e-12)


def test_the_estimate_is_the_statistic_of_all_answers():
    noisy, sharp = pair(800, 2)
    o, p = tally(noisy.confidence, noisy.correct), tally(sharp.confidence, sharp.correct)
    assert interval(noisy, on_outcomes(brier), seed=0, times=10).value == pytest.approx(float(brier(o)))
    difference = compare(sharp, noisy, on_outcomes(auroc), seed=0, times=10)
    assert difference.value == pytest.approx(float(auroc(p) - auroc(o)))
    reduction = ratio_reduction(noisy, sharp, on_outcomes(calibration_error), seed=0, times=10)
    assert reduction.value == pytest.approx(float(1 - calibration_error(p) / calibration_error(o)))


def test_an_interval_follows_from_its_seed_and_not_from_the_order_of_the_rows():
    noisy, sharp = pair(300, 3)
    order = np.random.default_rng(0).permutation(300)
    mixed = Graded(tuple(noisy.ids[i] for i in order), noisy.confidence[order], noisy.correct[order])
    one = compare(noisy, sharp, on_outcomes(brier), seed=5, times=200)
    assert compare(mixed, sharp, on_outcomes(brier), seed=5, times=200) == one
    assert compare(noisy, sharp, on_outcomes(brier), seed=6, times=200) != one


def test_systems_with_different_questions_are_not_compared():
    noisy, sharp = pair(300, 3)
    other = Graded(("elsewhere", *sharp.ids[1:]), sharp.confidence, sharp.correct)
    with pytest.raises(DataError, match="elsewhere"):
        compare(noisy, other, on_outcomes(brier), seed=0)
    twice = Graded((sharp.ids[1], *sharp.ids[1:]), sharp.confidence, sharp.correct)
    with pytest.raises(DataError, match="different question ids"):
        interval(twice, on_outcomes(brier), seed=0)


def test_a_paired_interval_has_the_width_of_the_paired_differences():
    noisy, sharp = pair(1000, 4)
    found = compare(noisy, sharp, on_outcomes(brier), seed=0)
    differences = (noisy.confidence - noisy.correct) ** 2 - (sharp.confidence - sharp.correct) ** 2
    half = 1.96 * differences.std() / np.sqrt(1000)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.1 * half)


@pytest.mark.parametrize(("shift", "least"), [(1.5, 0.88), (3.0, 0.88)])
def test_the_interval_of_a_reduction_covers_what_repeated_experiments_average(shift, least):
    statistic = on_outcomes(calibration_error)
    found = [ratio_reduction(*pair(400, seed, shift), statistic, seed=seed, times=200) for seed in range(120)]
    average = np.mean([estimate.value for estimate in found])
    assert all(estimate.low < estimate.value < estimate.high for estimate in found)
    assert np.mean([estimate.low <= average <= estimate.high for estimate in found]) >= least
    assert np.mean([estimate.low > average for estimate in found]) <= 0.06


def test_undefined_statistics_have_no_interval():
    ids = tuple("abcdef")
    all_right = Graded(ids, np.linspace(0, 1, 6), np.ones(6))
    found = interval(all_right, on_outcomes(auroc), seed=0)
    assert np.isnan([found.value, found.low, found.high]).all()


def _accuracies(n, base_rate, discordance, loss, seed):
    """Two systems that disagree on a share of the questions, the second less often right by `loss`."""
    rng = np.random.default_rng(seed)
    draw = rng.random(n)
    gain, drop = (discordance - loss) / 2, (discordance + loss) / 2
    base = (draw < base_rate).astype(float)
    trained = base.copy()
    trained[draw < drop] = 0
    trained[draw > 1 - gain] = 1
    ids, none = tuple(map(str, range(n))), np.full(n, np.nan)
    return Graded(ids, none, base), Graded(ids, none, trained)


def test_accuracy_is_compared_relative_to_the_base_without_any_confidence():
    base, trained = _accuracies(4000, 0.3, 0.1, 0.03, seed=0)
    found = noninferior(base, trained, seed=0)
    assert found.change.value == pytest.approx(trained.correct.mean() / base.correct.mean() - 1)
    assert found.change.high < 0
    assert interval(base, accuracy, seed=0, times=50).value == base.correct.mean()


def test_the_power_is_how_often_equal_systems_are_called_equal():
    found = [noninferior(*_accuracies(1500, 0.3, 0.06, 0, seed), seed=seed, times=200) for seed in range(200)]
    shown = np.mean([one.change.low >= -0.05 for one in found])
    assert shown == pytest.approx(np.median([one.power for one in found]), abs=0.12)
    by_hand = norm.cdf(0.05 * 0.3 / np.sqrt(0.06 / 1500) - 1.96)
    assert np.median([one.power for one in found]) == pytest.approx(by_hand, abs=0.05)


@pytest.mark.parametrize("statistic", [hle_error, on_outcomes(aurc)], ids=["hle", "aurc"])
def test_memory_does_not_grow_with_the_number_of_resamples(statistic):
    answers, _ = pair(3000, 1)
    tracemalloc.start()
    try:
        interval(answers, statistic, seed=0, times=2000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2000 * 3000 * 8 * 2  # less than the draws and one copy of them
