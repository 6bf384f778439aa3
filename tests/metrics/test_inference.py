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
    compare_all,
    hle_error,
    interval,
    intervals,
    needed_questions,
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
COVERED = {"rms": calibration_error, "auroc": auroc, "brier": brier, "accuracy": lambda o: o.accuracy}


def pair(n, seed, shift=1.5):
    """A calibrated confidence and an overconfident noisy one for the same answers."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-1, 1.2, n)
    correct = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(float)
    noisy = 1 / (1 + np.exp(-(z + rng.normal(shift, 1, n))))
    ids = tuple(f"q{i}" for i in range(n))
    return Graded(ids, noisy, correct), Graded(ids, 1 / (1 + np.exp(-z)), correct)


def unlike(n, seed):
    """Two systems that answer a sixth of the questions each in its own way."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-1, 1.2, n)
    p, draw = 1 / (1 + np.exp(-z)), rng.random(n)
    own = np.where(rng.random(n) < 1 / 6, rng.random(n), draw)
    sure = 1 / (1 + np.exp(-(z + rng.normal(1.5, 1, n))))
    fair = 1 / (1 + np.exp(-(z + rng.normal(0.7, 0.7, n))))
    ids = tuple(map(str, range(n)))
    return Graded(ids, sure, (draw < p).astype(float)), Graded(ids, fair, (own < p).astype(float))


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize("decimals", [15, 1], ids=["distinct", "tied"])
def test_a_resample_scores_what_the_repeated_answers_score(metric, decimals):
    answers, _ = pair(300, 0)
    answers = Graded(answers.ids, np.round(answers.confidence, decimals), answers.correct)
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


@pytest.mark.parametrize("decimals", [15, 1], ids=["distinct", "tied"])
def test_several_metrics_at_once_are_to_the_last_digit_each_metric_alone(decimals):
    a, b = (Graded(g.ids, np.round(g.confidence, decimals), g.correct) for g in pair(700, 1))
    one = {name: interval(a, on_outcomes(metric), seed=3, times=150) for name, metric in METRICS.items()}
    two = {name: compare(a, b, on_outcomes(metric), seed=3, times=150) for name, metric in METRICS.items()}
    assert intervals(a, METRICS, seed=3, times=150) == one
    assert compare_all(a, b, METRICS, seed=3, times=150) == two


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


def test_a_question_that_only_the_second_system_answers_twice_is_not_paired_askew():
    a = Graded(("x", "y"), np.array([0.2, 0.7]), np.array([0.0, 1.0]))
    b = Graded(("x", "x", "y"), np.array([0.2, 0.2, 0.7]), np.array([0.0, 0.0, 1.0]))
    with pytest.raises(DataError, match="3 answers, 2 ids"):
        compare(a, b, accuracy, seed=0)


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([0.5], [1.0, 0.0], r"equally long.*\(1,\)"),
        ([0.5, 0.5], [1.0, np.nan], "unjudged.*nan for question 'y'"),
        ([0.5, 0.5], [1.0, 2.0], "2.0 for question 'y'"),
    ],
)
def test_answers_that_are_not_whole_are_refused(confidence, correct, message):
    with pytest.raises(DataError, match=message):
        Graded(("x", "y"), np.array(confidence), np.array(correct))


def test_a_missing_confidence_does_not_hide_in_the_bin_that_hle_leaves_out():
    answers, _ = pair(300, 0)
    confidence = np.where(np.arange(300) == 7, np.nan, answers.confidence)
    with pytest.raises(DataError, match="'q7' has none"):
        interval(Graded(answers.ids, confidence, answers.correct), hle_error, seed=0, times=10)


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


def _coverage(n, worlds, times):
    """How often the interval of each difference holds what repeated experiments average."""
    repeated = [unlike(n, 1_000_000 + seed) for seed in range(2000)]
    scored = [
        [[f(tally(g.confidence, g.correct)) for f in COVERED.values()] for g in two] for two in repeated
    ]
    truth = dict(zip(COVERED, np.subtract(*np.moveaxis(np.array(scored), 1, 0)).mean(axis=0), strict=True))
    found = [compare_all(*unlike(n, seed), COVERED, seed=seed, times=times) for seed in range(worlds)]
    return {k: np.mean([one[k].low <= truth[k] <= one[k].high for one in found]) for k in COVERED}


def test_paired_intervals_cover_the_true_difference():
    held = _coverage(n=400, worlds=200, times=250)
    assert all(0.90 <= share <= 0.985 for share in held.values()), held


@pytest.mark.slow
def test_paired_intervals_cover_the_true_difference_as_often_as_they_say():
    held = _coverage(n=1000, worlds=1000, times=400)
    assert all(0.92 <= share <= 0.97 for share in held.values()), held


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


def test_the_questions_needed_are_those_that_bring_the_power_to_four_fifths():
    base, trained = _accuracies(1500, 0.3, 0.06, 0, seed=1)
    found = noninferior(base, trained, seed=0, times=50)
    deviation, loss = np.std(trained.correct - 0.95 * base.correct), 0.05 * base.correct.mean()
    power = [norm.cdf(loss / deviation * np.sqrt(n) - norm.ppf(0.975)) for n in (1500, found.needed)]
    assert power[0] == pytest.approx(found.power)
    assert 0.8 <= power[1] < 0.8002
    none = Graded(base.ids, base.confidence, np.zeros(1500))
    assert noninferior(none, none, seed=0, times=50).needed is None


def test_needed_questions_are_those_of_the_normal_formula():
    points = 0.184 - 0.194  # the original specification's margin: one point in a hundred
    figures = [(0.1, 0.95), (0.1, 0.90), (0.05, 0.90)]
    found = [needed_questions(margin=-points, discordance=d, confidence=c) for d, c in figures]
    assert found == [7849, 6183, 3092]
    assert needed_questions(margin=0.05 * 0.194, discordance=0.1) == 8342
    assert needed_questions(margin=0.05, discordance=0) == 1


def test_with_the_needed_questions_equal_systems_pass_as_often_as_the_power_says():
    n, discordance, margin = needed_questions(margin=0.05, discordance=0.2, power=0.9), 0.2, 0.05
    cells = [discordance / 2, discordance / 2, 1 - discordance]
    gained, lost, _ = np.random.default_rng(0).multinomial(n, cells, 20_000).T
    change = (gained - lost) / n
    error = np.sqrt((gained + lost) / n - change**2) / np.sqrt(n)
    assert np.mean(change - 1.959964 * error > -margin) == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(
    "wrong", [{"margin": 0}, {"margin": 5}, {"discordance": -0.1}, {"power": 1}, {"confidence": 95}]
)
def test_a_plan_out_of_range_is_refused(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(DataError, match=f"{name} must be in .*; got {value}"):
        needed_questions(**{"margin": 0.01, "discordance": 0.1} | wrong)


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
