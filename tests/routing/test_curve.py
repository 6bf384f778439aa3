"""The exact curve against enumeration, closed forms, and the published script."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from calibration.errors import DataError
from calibration.metrics.inference import Graded
from calibration.metrics.outcomes import tally
from calibration.metrics.ranking import auroc
from calibration.routing.curve import CostQuality, cost_quality, curve_intervals, oracle

marks = st.lists(st.integers(0, 1), min_size=1, max_size=6)


def world(n, seed, base=0.194, ranking=0.8, large=0.45):
    rng = np.random.default_rng(seed)
    correct = rng.random(n) < base
    confidence = norm.cdf(rng.normal(size=n) + np.sqrt(2) * norm.ppf(ranking) * correct)
    return confidence, correct.astype(float), (rng.random(n) < large).astype(float)


def published(share, accuracy, weak, strong, quality):
    """RouteLLM's two figures, with numpy's new name for the trapezoid rule."""
    area = np.trapezoid(accuracy, share)
    apgr = (area - np.trapezoid(np.full(len(share), weak), share)) / (
        np.trapezoid(np.full(len(share), strong), share) - np.trapezoid(np.full(len(share), weak), share)
    )
    return apgr, np.interp(quality * (strong - weak) + weak, accuracy, share)


@given(marks, st.data())
def test_the_curve_is_the_mean_over_all_orders_inside_ties(correct, data):
    n = len(correct)
    levels = st.sampled_from([0.1, 0.5, 0.9, np.nan])
    confidence = np.array(data.draw(st.lists(levels, min_size=n, max_size=n)))
    large = np.array(data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    first = np.where(np.isnan(confidence), -1.0, confidence)
    small = np.array(correct)
    paths = []
    for order in permutations(range(n)):
        if (np.diff(first[list(order)]) >= 0).all():
            gain = (large - small)[list(order)]
            paths.append((small.sum() + np.concatenate([[0], np.cumsum(gain)])) / n)
    curve = cost_quality(confidence, small, llm=large)
    np.testing.assert_allclose(
        np.interp(np.arange(n + 1) / n, curve.share, curve.accuracy), np.mean(paths, axis=0), atol=1e-12
    )
    best = oracle(small, llm=large)
    highest = np.max(paths, axis=0)
    assert (np.interp(np.arange(n + 1) / n, best.share, best.accuracy) >= highest - 1e-12).all()


def test_the_figures_of_a_small_case_by_hand():
    curve = cost_quality([0.2, 0.4, 0.6, 0.8], [0, 1, 0, 1], llm=[1, 1, 1, 0])
    assert curve.share.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert curve.accuracy.tolist() == [0.5, 0.75, 0.75, 1, 0.75]
    assert (curve.weak, curve.strong) == (0.5, 0.75)
    assert curve.apgr == pytest.approx((0.25 * (0.625 + 0.75 + 0.875 + 0.875) - 0.5) / 0.25)
    assert curve.call_share(1.0) == 0.25
    assert curve.call_share(0.5) == 0.125
    assert curve.call_share(0.0) == 0.0
    assert curve.random([0, 0.5, 1]).tolist() == [0.5, 0.625, 0.75]
    assert oracle([0, 1, 0, 1], llm=[1, 1, 1, 0]).accuracy.tolist() == [0.5, 1.0, 1.0, 0.75]


@given(st.integers(0, 1000))
def test_an_assumed_accuracy_makes_apgr_a_matter_of_ranking_alone(seed):
    """Closed form: 1/2 + a (1 - a) (AUROC - 1/2) / (L - a) for accuracy a and large model L."""
    confidence, correct, _ = world(200, seed)
    a = correct.mean()
    ranking = float(auroc(tally(confidence, correct)))
    curve = cost_quality(confidence, correct, llm=0.6)
    assert curve.apgr == pytest.approx(0.5 + a * (1 - a) * (ranking - 0.5) / (0.6 - a))


@pytest.mark.parametrize(
    ("ranking", "apgr", "calls"),
    [(0.5, 0.50, 0.80), (0.6, 0.54, 0.75), (0.7, 0.59, 0.67), (0.8, 0.64, 0.59), (0.9, 0.68, 0.54)],
)
def test_what_a_router_is_worth_is_what_its_ranking_is_worth(ranking, apgr, calls):
    """A large model of accuracy .45 that finds hard what the small one finds hard."""
    confidence, correct, _ = world(40_000, 0, ranking=ranking)
    chance = np.where(correct == 1, 0.65, 0.40)
    large = np.random.default_rng(1).random(40_000) < chance
    curve = cost_quality(confidence, correct, llm=large)
    assert (curve.apgr, curve.call_share(0.8)) == pytest.approx((apgr, calls), abs=0.02)
    if ranking > 0.5:
        assert cost_quality(confidence, correct, llm=large.mean()).apgr > curve.apgr + 0.005


def test_no_increasing_map_changes_the_curve():
    confidence, correct, large = world(500, 1)
    one, other = (cost_quality(c, correct, llm=large) for c in (confidence, confidence**3 / 4))
    np.testing.assert_array_equal(one.accuracy, other.accuracy)


def test_one_confidence_for_all_is_escalation_at_random():
    _, correct, large = world(300, 2)
    curve = cost_quality(np.full(300, 0.4), correct, llm=large)
    assert curve.apgr == pytest.approx(0.5)
    assert [curve.call_share(q) for q in (0.2, 0.5, 0.8)] == pytest.approx([0.2, 0.5, 0.8])
    np.testing.assert_allclose(curve.accuracy, curve.random(curve.share))


def test_the_oracle_repairs_first_what_only_the_large_model_knows():
    _, correct, large = world(1000, 3)
    best = oracle(correct, llm=large)
    gained, lost = ((large - correct) == 1).mean(), ((large - correct) == -1).mean()
    assert best.accuracy.max() == pytest.approx(correct.mean() + gained)
    assert best.call_share(1.0) == pytest.approx(gained - lost)
    confidence, *_ = world(1000, 3)
    assert 0.5 < cost_quality(confidence, correct, llm=large).apgr < best.apgr


def test_the_published_figures_are_ours_where_accuracy_never_falls():
    confidence, correct, _ = world(400, 4)
    curve = cost_quality(confidence, correct, llm=1.0)
    assert (np.diff(curve.accuracy) >= 0).all()
    rises = np.concatenate([[True], np.diff(curve.accuracy) > 0])
    apgr, _ = published(curve.share, curve.accuracy, curve.weak, curve.strong, 0.8)
    assert curve.apgr == pytest.approx(apgr)
    _, calls = published(curve.share[rises], curve.accuracy[rises], curve.weak, curve.strong, 0.8)
    assert curve.call_share(0.8) == pytest.approx(calls, abs=1 / 400)


def test_the_published_call_share_is_wrong_where_accuracy_falls_in_between():
    """np.interp searches as if accuracies rose: on ten thresholds it asks for twice the calls needed."""
    share = np.linspace(0, 1, 11)
    accuracy = np.array([0.2, 0.22, 0.25, 0.28, 0.42, 0.3, 0.25, 0.3, 0.32, 0.36, 0.45])
    _, calls = published(share, accuracy, 0.2, 0.45, 0.8)
    found = CostQuality(share, accuracy).call_share(0.8)
    assert found == pytest.approx(0.3 + 0.1 * 0.12 / 0.14)
    dense = np.linspace(0, 1, 100_001)
    assert found == pytest.approx(dense[np.interp(dense, share, accuracy) >= 0.4].min(), abs=1e-4)
    assert calls == pytest.approx(0.9 + 0.1 * 0.04 / 0.09)


@given(st.integers(0, 300), st.floats(0, 1))
def test_the_call_share_is_the_first_crossing(seed, quality):
    confidence, correct, large = world(60, seed)
    curve = cost_quality(np.round(confidence, 1), correct, llm=large)
    found = curve.call_share(quality)
    if curve.strong <= curve.weak:
        assert np.isnan([found, curve.apgr]).all()
        return
    target = curve.weak + quality * (curve.strong - curve.weak)
    before = np.linspace(0, found, 500, endpoint=False)
    assert np.interp(found, curve.share, curve.accuracy) == pytest.approx(target, abs=1e-9)
    assert (np.interp(before, curve.share, curve.accuracy) < target + 1e-9).all()


@pytest.mark.parametrize("large", [0.5, 0.3, [1, 0, 1, 0], [0, 0, 0, 1]])
def test_a_large_model_that_is_no_better_has_no_gap_to_recover(large):
    curve = cost_quality([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], llm=large)
    assert np.isnan([curve.apgr, curve.call_share(0.5)]).all()


def test_what_cannot_be_read_is_escalated_first():
    curve = cost_quality([np.nan, 0.0, 0.9, np.nan], [0, 1, 1, 1], llm=1.0)
    assert curve.share.tolist() == [0, 0.5, 0.75, 1]
    assert curve.accuracy.tolist() == [0.75, 1, 1, 1]


def test_wrong_input_is_named():
    with pytest.raises(DataError, match=r"llm\[1\] must be 0 or 1.*got nan"):
        cost_quality([0.1, 0.2], [0, 1], llm=[1, np.nan])
    with pytest.raises(DataError, match=r"got shape \(3,\) for 2 answers"):
        cost_quality([0.1, 0.2], [0, 1], llm=[1, 1, 1])
    with pytest.raises(DataError, match="got 45"):
        cost_quality([0.1, 0.2], [0, 1], llm=45)
    with pytest.raises(DataError, match=r"confidence\[0\].*got 10"):
        cost_quality([10, 0.2], [0, 1], llm=0.5)
    with pytest.raises(DataError, match="got 80"):
        cost_quality([0.1, 0.2], [0, 1], llm=0.5).call_share(80)


def graded(n, seed, **options):
    confidence, correct, large = world(n, seed, **options)
    return Graded(tuple(f"q{i}" for i in range(n)), confidence, correct), large


def test_intervals_hold_the_figures_and_follow_from_seed_and_not_from_row_order():
    answers, large = graded(300, 5)
    found = curve_intervals(answers, llm=large, seed=1, times=200)
    curve = cost_quality(answers.confidence, answers.correct, llm=large)
    assert found.apgr.value == pytest.approx(curve.apgr)
    assert found.call_share_50.value == pytest.approx(curve.call_share(0.5))
    assert found.call_share_80.value == pytest.approx(curve.call_share(0.8))
    assert found.apgr.low < found.apgr.value < found.apgr.high
    order = np.random.default_rng(0).permutation(300)
    mixed = Graded(tuple(answers.ids[i] for i in order), answers.confidence[order], answers.correct[order])
    assert curve_intervals(mixed, llm=large[order], seed=1, times=200) == found
    assert curve_intervals(answers, llm=large, seed=2, times=200) != found


def test_a_resample_is_the_curve_of_the_repeated_answers():
    """The draws themselves, rebuilt with the same generator and `cost_quality`."""
    answers, large = graded(80, 6, large=0.7)
    order = np.argsort(answers.ids)
    picks = np.random.default_rng(3).integers(0, 80, (50, 80))
    draws = [
        cost_quality(answers.confidence[order][p], answers.correct[order][p], llm=large[order][p]).apgr
        for p in picks
    ]
    value = cost_quality(answers.confidence, answers.correct, llm=large).apgr
    low, high = value - np.mean(draws) + np.quantile(draws, (0.025, 0.975))
    found = curve_intervals(answers, llm=large, seed=3, times=50).apgr
    assert (found.low, found.high) == pytest.approx((low, high))


def test_intervals_cover_what_repeated_experiments_average():
    found = [_intervals(400, seed) for seed in range(100)]
    for name in ("apgr", "call_share_50", "call_share_80"):
        estimates = [getattr(one, name) for one in found]
        centre = np.mean([estimate.value for estimate in estimates])
        assert np.mean([e.low <= centre <= e.high for e in estimates]) >= 0.88, name


def _intervals(n, seed):
    answers, large = graded(n, seed, large=0.7)
    return curve_intervals(answers, llm=large, seed=seed, times=200)


def test_no_better_large_model_has_no_intervals():
    answers, _ = graded(100, 7)
    found = curve_intervals(answers, llm=0.0, seed=0, times=20)
    assert np.isnan([found.apgr.value, found.apgr.low, found.call_share_80.high]).all()
