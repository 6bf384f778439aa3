"""The judge's own error: what the true labels say against what is made of noisy marks."""

import numpy as np
import pytest
from scipy.stats import binomtest

from calibration.errors import DataError
from calibration.metrics.errors import calibration_error
from calibration.metrics.inference import Graded, intervals
from calibration.metrics.noise import JudgeAudit, audit_judge, bounds, corrected, judge_rates
from calibration.metrics.outcomes import tally
from calibration.metrics.ranking import auroc
from calibration.metrics.scores import brier

SENSITIVITY, SPECIFICITY = 0.85, 0.95
KNOWN = JudgeAudit(85_000, 100_000, 95_000, 100_000)
"""An audit so large that it knows the judge."""
PERFECT = JudgeAudit(400, 400, 400, 400)


def world(n, seed, *, decimals=None, shift=0.5):
    """Somewhat overconfident answers as a judge with these two rates marks them, and their true labels."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-2.2, 1.2, n)
    truth = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(float)
    confidence = 1 / (1 + np.exp(-(z + shift + rng.normal(0, 0.7, n))))
    if decimals is not None:
        confidence = np.round(confidence, decimals)
    draw = rng.random(n)
    marks = np.where(truth == 1, draw < SENSITIVITY, draw >= SPECIFICITY).astype(float)
    return Graded(tuple(map(str, range(n))), confidence, marks), truth


def scores(confidence, labels):
    """Accuracy, RMS, Brier score, AUROC."""
    o = tally(confidence, labels)
    return [float(o.accuracy), float(calibration_error(o)), float(brier(o)), float(auroc(o))]


def values(found):
    return [estimate.value for estimate in (found.accuracy, found.rms, found.brier, found.auroc)]


def by_mark(marks, truth, each, seed):
    """The truth of `each` answers of either mark, nan elsewhere."""
    rng, known = np.random.default_rng(seed), np.full(marks.size, np.nan)
    for mark in (0, 1):
        audited = rng.permutation(np.flatnonzero(marks == mark))[:each]
        known[audited] = truth[audited]
    return known


@pytest.mark.parametrize("decimals", [None, 1], ids=["distinct", "tied"])
def test_corrected_values_are_those_of_the_true_labels_on_average(decimals):
    true, naive, found = [], [], []
    for seed in range(300):
        marked, truth = world(1000, seed, decimals=decimals)
        true.append(scores(marked.confidence, truth))
        naive.append(scores(marked.confidence, marked.correct))
        found.append(values(corrected(marked, KNOWN, seed=0, times=1)))
    for column, name in enumerate(("accuracy", "rms", "brier", "auroc")):
        power = 2 if name == "rms" else 1  # it is the mean square gap that is unbiased
        target = np.array(true)[:, column] ** power
        off = [np.array(rows)[:, column] ** power - target for rows in (naive, found)]
        biased, unbiased = (error.mean() / (error.std() / np.sqrt(error.size)) for error in off)
        assert abs(unbiased) < 2, name
        assert abs(biased) > 10, name
    assert np.mean(found, axis=0)[1] == pytest.approx(np.mean(true, axis=0)[1], abs=0.002)


@pytest.mark.parametrize("decimals", [None, 1], ids=["distinct", "tied"])
def test_under_a_perfect_judge_the_marks_score_what_they_score(decimals):
    marked, _ = world(730, 0, decimals=decimals)
    found = corrected(marked, PERFECT, seed=0, times=20)
    assert values(found) == scores(marked.confidence, marked.correct)


def test_accuracy_is_corrected_as_rogan_and_gladen_do():
    marks = np.repeat([1.0, 0.0], [30, 70])
    marked = Graded(tuple(map(str, range(100))), np.linspace(0, 1, 100), marks)
    audit = JudgeAudit(right_marked_right=45, right=50, wrong_marked_wrong=40, wrong=50)
    found = corrected(marked, audit, seed=0, times=20)
    assert found.accuracy.value == pytest.approx((0.3 + 0.8 - 1) / (0.9 + 0.8 - 1))
    fewer = Graded(marked.ids, marked.confidence, np.repeat([1.0, 0.0], [10, 90]))
    below = corrected(fewer, audit, seed=0, times=20)  # marks less often right than the false alarms alone
    assert below.accuracy.value == 0
    assert np.isnan([below.auroc.value, below.auroc.low, below.auroc.high]).all()


@pytest.mark.parametrize("is_own", [True, False], ids=["drawn from the answers", "from elsewhere"])
def test_the_interval_of_accuracy_covers_the_truth_with_the_audits_uncertainty_inside(is_own):
    truth = np.mean([world(20_000, 10_000 + seed)[1].mean() for seed in range(50)])
    held = []
    for seed in range(500):
        marked, labels = world(500, seed, decimals=1)
        source = (marked, labels) if is_own else world(500, 1000 + seed)
        known = by_mark(source[0].correct, source[1], 40, seed)
        audit = audit_judge(source[0].correct, known)
        found = corrected(marked, audit, seed=seed, times=300, is_drawn_from_answers=is_own).accuracy
        held.append(found.low <= truth <= found.high)
    assert 0.92 <= np.mean(held) <= 0.97


@pytest.mark.parametrize("decimals", [None, 1], ids=["distinct", "tied"])
def test_under_a_judge_known_to_be_perfect_the_intervals_are_those_of_the_questions_alone(decimals):
    marked, _ = world(1000, 4, decimals=decimals)
    sure = JudgeAudit(10**8, 10**8, 10**8, 10**8)
    found = corrected(marked, sure, seed=2, times=500)
    metrics = {
        "accuracy": lambda o: o.accuracy,
        "rms": lambda o: calibration_error(o) ** 2,  # it is the square that is moved to its estimate
        "brier": brier,
        "auroc": auroc,
    }
    for name, alone in intervals(marked, metrics, seed=2, times=500).items():
        ends = np.array([getattr(found, name).low, getattr(found, name).high])
        squared = ends**2 if name == "rms" else ends
        assert squared == pytest.approx([alone.low, alone.high], abs=1e-6), name


def test_an_interval_widens_as_the_audit_shrinks_and_always_holds_the_estimate():
    marked, _ = world(2000, 3, decimals=1)
    widths = []
    for audited in (4000, 200, 20):
        found = corrected(marked, JudgeAudit(audited, audited, audited, audited), seed=1, times=400)
        for estimate in (found.accuracy, found.rms, found.brier, found.auroc):
            assert estimate.low <= estimate.value <= estimate.high
        widths.append(found.accuracy.high - found.accuracy.low)
    one = corrected(marked, JudgeAudit(19, 20, 19, 20), seed=1, times=1).accuracy
    assert one.low < one.high
    assert one.low <= one.value <= one.high
    assert widths == sorted(widths)
    assert widths[2] > 2 * widths[0]


def test_an_audit_that_hardly_tells_the_judge_from_chance_allows_anything():
    marks = np.tile([1.0, 0.0], 150)
    marked = Graded(tuple(map(str, range(300))), np.linspace(0, 1, 300), marks)
    found = corrected(marked, JudgeAudit(3, 5, 3, 5), seed=0, times=400)
    for estimate in (found.accuracy, found.rms, found.brier, found.auroc):
        assert (estimate.low, estimate.high) == (0, 1)


def test_resamples_without_a_right_mark_say_nothing_and_break_nothing():
    marks = np.array([1.0] + [0.0] * 11)
    marked = Graded(tuple("abcdefghijkl"), np.linspace(0, 0.9, 12)[::-1], marks)
    audit = audit_judge(marks, [1] + [0] * 5 + [np.nan] * 6)
    found = corrected(marked, audit, seed=0, times=200, is_drawn_from_answers=True)
    assert found.accuracy.value == 1 / 12
    assert found.accuracy.low == 0


def test_a_judge_no_better_than_chance_is_not_corrected_for():
    marked, _ = world(300, 0)
    with pytest.raises(DataError, match=r"better than chance.*0\.500 \+ 0\.500"):
        corrected(marked, JudgeAudit(5, 10, 5, 10), seed=0)


def test_corrections_follow_from_the_seed_and_not_from_the_order_of_the_rows():
    marked, truth = world(400, 0, decimals=1)
    audit = audit_judge(marked.correct, by_mark(marked.correct, truth, 30, 0))
    order = np.random.default_rng(0).permutation(400)
    mixed = Graded(tuple(marked.ids[i] for i in order), marked.confidence[order], marked.correct[order])
    one = corrected(marked, audit, seed=5, times=100)
    assert corrected(mixed, audit, seed=5, times=100) == one
    assert corrected(marked, audit, seed=6, times=100) != one


def test_an_audit_by_mark_is_weighted_back_to_how_often_the_marks_are_given():
    marked, truth = world(20_000, 1)
    right = truth == 1
    true = marked.correct[right].mean(), 1 - marked.correct[~right].mean()
    audits = [audit_judge(marked.correct, by_mark(marked.correct, truth, 300, s)) for s in range(300)]
    for name, expected in zip(("sensitivity", "specificity"), true, strict=True):
        found = np.array([getattr(audit, name).value for audit in audits])
        assert found.mean() == pytest.approx(expected, abs=3 * found.std() / np.sqrt(300) + 0.002)
    unweighted = np.mean([audit.right_marked_right / audit.right for audit in audits])
    assert unweighted > true[0] + 0.08


def test_an_audit_by_mark_weighs_each_answer_with_its_inverse_probability():
    marks = np.repeat([1.0, 0.0], [20, 80])
    truth = np.full(100, np.nan)
    truth[:10] = [1] * 8 + [0] * 2  # half of those marked right: each stands for 2
    truth[20:30] = [1] + [0] * 9  # an eighth of those marked wrong: each stands for 8
    audit = audit_judge(marks, truth)
    assert audit == JudgeAudit(8, 9, 9, 11, marked_right_share=0.2)
    assert audit.sensitivity.value == pytest.approx(8 * 2 / (8 * 2 + 1 * 8))
    assert audit.specificity.value == pytest.approx(9 * 8 / (9 * 8 + 2 * 2))
    assert audit.youden == pytest.approx(16 / 24 + 72 / 76 - 1)
    either = 0.95**0.5  # two independent intervals hold together in 95 % of audits
    kept, lost = (binomtest(k, 10).proportion_ci(either, method="exact") for k in (8, 1))
    ends = [judge_rates(kept.low, lost.high, 0.2), judge_rates(kept.high, lost.low, 0.2)]
    for estimate, (low, high) in zip(
        (audit.sensitivity, audit.specificity), zip(*ends, strict=True), strict=True
    ):
        assert (estimate.low, estimate.high) == pytest.approx((low, high))


def test_a_random_audit_has_exact_binomial_intervals():
    audit = audit_judge([1, 1, 1, 0, 0, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0])
    assert audit == JudgeAudit(3, 4, 3, 4)
    exact = binomtest(3, 4).proportion_ci(method="exact")
    for estimate in (audit.sensitivity, audit.specificity):
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.75, exact.low, exact.high))
    assert audit.youden == 0.5
    sure = JudgeAudit(10, 10, 0, 10)
    assert (sure.sensitivity.high, sure.specificity.low) == (1, 0)
    assert sure.sensitivity.low == pytest.approx(0.025**0.1)


def test_an_audit_by_mark_has_intervals_that_cover_at_least_as_often_as_they_say():
    share, worth, lost = 0.2, 0.8, 0.04
    true = judge_rates(worth, lost, share)
    rng = np.random.default_rng(0)
    held = []
    for hits, misses in zip(rng.binomial(60, worth, 800), rng.binomial(60, lost, 800), strict=True):
        audit = JudgeAudit(hits, hits + misses, 60 - misses, 120 - hits - misses, marked_right_share=share)
        estimates = (audit.sensitivity, audit.specificity)
        held.append([e.low <= rate <= e.high for e, rate in zip(estimates, true, strict=True)])
    assert (np.mean(held, axis=0) >= 0.95).all()


def test_the_worst_and_the_best_case_of_unjudged_answers_bound_the_accuracy():
    assert bounds([1, 0, np.nan, 1, np.nan]) == (0.4, 0.8)
    assert bounds([1, 0]) == (0.5, 0.5)
    assert bounds([np.nan]) == (0, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: audit_judge([1, 0], [1]), r"equally long.*\(2,\) and \(1,\)"),
        (lambda: audit_judge([1, np.nan], [1, 0]), r"marks\[1\].*unjudged.*nan"),
        (lambda: audit_judge([1, 0], [1, 0.5]), r"truth\[1\].*got 0\.5"),
        (lambda: audit_judge([1, 0], [1, 1]), "truly wrong"),
        (lambda: audit_judge([1, 0], [0, 0]), "truly right"),
        (lambda: audit_judge([1, 1, 0], [1, 0, np.nan]), "0 marked wrong"),
        (lambda: JudgeAudit(3, 2, 1, 1), "3 of 2"),
        (lambda: JudgeAudit(1, 2, 1, 2, marked_right_share=1.0), "marked_right_share"),
        (lambda: bounds([]), "non-empty"),
        (lambda: bounds([1, 2]), r"correct\[1\].*got 2\.0"),
    ],
)
def test_audits_and_marks_that_cannot_be_used_are_refused(make, message):
    with pytest.raises(DataError, match=message):
        make()
