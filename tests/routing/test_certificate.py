"""Certificates in simulated worlds whose truth is known, and against the exact test written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.special import expit
from scipy.stats import binom, norm

from calibration.errors import DataError
from calibration.routing.certificate import Certificate, JudgeError, certify, first_step

WORLDS = 400
SLACK = 0.025
"""A rate of .1 over 400 worlds exceeds .125 by chance in 4 % of all seeds; these seeds are fixed."""


class World:
    """Right answers score higher than wrong ones by a normal shift that gives the AUROC asked for."""

    def __init__(self, accuracy, auroc, decimals=None):
        self.base, self.shift, self.decimals = accuracy, np.sqrt(2) * norm.ppf(auroc), decimals

    def draw(self, n, seed):
        rng = np.random.default_rng(seed)
        correct = rng.random(n) < self.base
        confidence = expit(rng.normal(size=n) + self.shift * correct)
        if self.decimals is not None:
            confidence = np.round(confidence, self.decimals)
        return confidence, correct.astype(float)

    def kept(self, threshold):
        """Coverage and accuracy of what is kept, of all questions there are."""
        if self.decimals is not None:
            threshold = threshold - 0.5 * 10.0**-self.decimals
        edge = np.log(threshold) - np.log1p(-threshold)
        right, wrong = self.base * norm.sf(edge - self.shift), (1 - self.base) * norm.sf(edge)
        return right + wrong, right / (right + wrong)

    def oracle(self, accuracy):
        coverage, reached = self.kept(np.linspace(1e-6, 1 - 1e-6, 100_001))
        return coverage[reached >= accuracy].max()


def outcomes(world, accuracy, n=1000, **options):
    """Coverage of each certificate (0 for none), and how often one was false."""
    found = [certify(*world.draw(n, seed), accuracy=accuracy, **options) for seed in range(WORLDS)]
    truth = [world.kept(one.threshold) if one else (0.0, 1.0) for one in found]
    return np.array([c for c, _ in truth]), float(np.mean([reached < accuracy for _, reached in truth]))


@pytest.mark.parametrize(
    ("base", "auroc", "accuracy", "coverage", "oracle"),
    [
        (0.6, 0.8, 0.8, 0.454, 0.537),
        (0.194, 0.9, 0.7, 0.126, 0.169),
        (0.194, 0.8, 0.5, 0.125, 0.198),
        (0.6, 0.75, 0.7, 0.658, 0.739),
    ],
)
def test_a_certificate_holds_as_often_as_it_says_and_keeps_most_of_what_could_be(
    base, auroc, accuracy, coverage, oracle
):
    world = World(base, auroc)
    covered, violated = outcomes(world, accuracy)
    assert violated <= 0.1 + SLACK
    assert covered.mean() == pytest.approx(coverage, abs=0.02)
    assert world.oracle(accuracy) == pytest.approx(oracle, abs=0.002)
    assert np.mean(covered == 0) <= 0.07


def test_a_threshold_that_merely_looks_good_enough_is_mostly_not():
    """Why there are certificates: the lowest threshold with accuracy .8 in the sample itself."""
    world, broken = World(0.6, 0.8), 0
    for seed in range(WORLDS):
        confidence, correct = world.draw(1000, seed)
        order = np.argsort(-confidence)
        reached = np.cumsum(correct[order]) / np.arange(1, 1001)
        lowest = confidence[order][np.flatnonzero(reached >= 0.8).max()]
        broken += world.kept(lowest)[1] < 0.8
    assert broken / WORLDS > 0.4


@pytest.mark.parametrize(("n", "decimals"), [(100, None), (300, None), (1000, 1), (1000, 2)])
def test_neither_few_answers_nor_ties_break_it(n, decimals):
    covered, violated = outcomes(World(0.6, 0.85, decimals), 0.8, n=n)
    assert violated <= 0.1 + SLACK
    assert covered.mean() > 0.15


def test_a_stricter_delta_is_broken_less_often():
    _, loose = outcomes(World(0.6, 0.8), 0.8, delta=0.4)
    _, strict = outcomes(World(0.6, 0.8), 0.8, delta=0.02)
    assert strict <= 0.02 + SLACK / 2 < 0.15 < loose <= 0.4 + SLACK


def test_a_world_where_the_surest_answers_are_the_worst_breaks_none():
    """Confidence helps except at the top, where it is no better than chance."""
    broken, certified = 0, 0
    for seed in range(WORLDS):
        rng = np.random.default_rng(seed)
        confidence = rng.random(1000)
        chance = np.where(confidence > 0.9, 0.75, confidence)
        correct = rng.random(1000) < chance
        found = certify(confidence, correct, accuracy=0.78)
        if found is not None:
            t = found.threshold
            inside = 0.1 * 0.75 + (0.9**2 - min(t, 0.9) ** 2) / 2 if t < 0.9 else (1 - t) * 0.75
            broken += inside / (1 - t) < 0.78
            certified += 1
    assert broken / WORLDS <= 0.1 + SLACK
    assert certified > 0


def test_nothing_is_certified_where_nothing_can_be():
    """A useless confidence at accuracy .6 never keeps anything at .8, whichever the threshold."""
    rng = np.random.default_rng(0)
    found = [certify(rng.random(1000), rng.random(1000) < 0.6, accuracy=0.8) for _ in range(WORLDS)]
    assert np.mean([one is not None for one in found]) <= 0.1  # each one is a violation
    hopeless = [certify(rng.random(1000), rng.random(1000) < 0.4, accuracy=0.8) for _ in range(WORLDS)]
    assert not any(hopeless)


def test_the_test_is_the_exact_binomial_one_in_a_fixed_order():
    """Against the procedure written out with scipy's distribution, on data without ties."""
    for seed in range(50):
        confidence, correct = World(0.6, 0.8).draw(700, seed)
        order = np.argsort(-confidence)
        expected = None
        for kept in dict.fromkeys(int(np.ceil(k)) for k in np.linspace(35, 700, 50)):
            wrong = int((correct[order][:kept] == 0).sum())
            p = binom.cdf(wrong, kept, 0.25)
            if p > 0.1:
                break
            expected = (confidence[order][kept - 1], kept, kept - wrong, p)
        found = certify(confidence, correct, accuracy=0.75)
        if expected is None:
            assert found is None
        else:
            assert (found.threshold, found.kept, found.right, found.p_value) == pytest.approx(expected)


def test_the_first_failure_ends_it_though_more_would_pass():
    """100 wrong answers at the very top, then 900 right ones: all kept together would pass."""
    confidence = np.linspace(1, 0, 1000)
    correct = np.repeat([0, 1], [100, 900])
    assert binom.cdf(100, 1000, 0.2) < 1e-10
    assert certify(confidence, correct, accuracy=0.8) is None


@given(st.integers(0, 10_000))
def test_ranks_alone_decide_and_the_order_of_the_rows_does_not(seed):
    confidence, correct = World(0.6, 0.85, decimals=2).draw(300, seed)
    found = certify(confidence, correct, accuracy=0.75)
    order = np.random.default_rng(seed).permutation(300)
    assert certify(confidence[order], correct[order], accuracy=0.75) == found
    bent = certify(confidence * confidence / 2, correct, accuracy=0.75)
    assert (bent is None) == (found is None)
    if found is not None:
        assert bent == found.model_copy(update={"threshold": found.threshold * found.threshold / 2})
        kept = confidence >= found.threshold
        assert (found.kept, found.right) == (kept.sum(), correct[kept].sum())  # ties are never split
        assert found.rule.keeps(confidence).sum() == found.kept


def test_answers_that_are_all_tied_are_kept_together_or_not_at_all():
    good, bad = np.repeat([1, 0], [90, 10]), np.repeat([1, 0], [81, 19])
    found = certify(np.full(100, 0.7), good, accuracy=0.8)
    assert (found.threshold, found.kept, found.right) == (0.7, 100, 90)
    assert found.p_value == pytest.approx(binom.cdf(10, 100, 0.2))
    assert certify(np.full(100, 0.7), bad, accuracy=0.8) is None


def test_too_few_answers_certify_nothing_however_right_they_are():
    assert certify(np.linspace(0, 1, 10), np.ones(10), accuracy=0.8) is None
    assert certify([0.5], [1], accuracy=0.5) is None
    assert certify(np.linspace(0, 1, 30), np.ones(30), accuracy=0.8).kept == 30


def test_what_cannot_be_read_is_never_kept_and_counts_in_n_only():
    confidence, correct = World(0.6, 0.85).draw(900, 0)
    holes = np.concatenate([confidence, np.full(100, np.nan)])
    found = certify(holes, np.concatenate([correct, np.zeros(100)]), accuracy=0.75)
    same = certify(holes, np.concatenate([correct, np.ones(100)]), accuracy=0.75)
    assert found == same
    assert (found.n, found.kept) == (1000, (confidence >= found.threshold).sum())
    assert certify([np.nan] * 50, [1] * 50, accuracy=0.5) is None


def test_the_first_step_is_a_share_of_all_answers_readable_or_not():
    """Eight errors among the top 50 and none below fail at 50 of 1000, and pass at 100 of 2000."""
    confidence, correct = np.linspace(1, 0, 1000), np.repeat([0, 1], [8, 992])
    assert certify(confidence, correct, accuracy=0.8) is None
    holes = np.concatenate([confidence, np.full(1000, np.nan)])
    assert certify(holes, np.concatenate([correct, np.zeros(1000)]), accuracy=0.8) is not None


def test_a_known_judge_is_corrected_for_and_an_unknown_one_is_not():
    """A judge that passes a quarter of the wrong answers: what it calls .85 is .8."""
    world, judge = World(0.6, 0.8), JudgeError(sensitivity=1, specificity=0.75)
    taken, corrected, kept = 0, 0, []
    for seed in range(WORLDS):
        confidence, correct = world.draw(1000, seed)
        draw = np.random.default_rng([seed, 1]).random(1000)
        marks = np.where(correct == 1, 1.0, draw >= 0.75)
        naive = certify(confidence, marks, accuracy=0.8)
        taken += naive is not None and world.kept(naive.threshold)[1] < 0.8
        known = certify(confidence, marks, accuracy=0.8, judge=judge)
        corrected += known is not None and world.kept(known.threshold)[1] < 0.8
        kept.append(world.kept(known.threshold)[0] if known else 0.0)
    assert taken / WORLDS > 0.5
    assert corrected / WORLDS <= 0.1 + SLACK
    assert np.mean(kept) > 0.3


def test_a_perfect_judge_corrects_nothing():
    confidence, correct = World(0.6, 0.8).draw(1000, 3)
    perfect = JudgeError(sensitivity=1, specificity=1)
    found = certify(confidence, correct, accuracy=0.8, judge=perfect)
    assert found == certify(confidence, correct, accuracy=0.8).model_copy(update={"judge": perfect})
    with pytest.raises(ValidationError, match=r"no better than guessing; got 0\.4 \+ 0\.6"):
        JudgeError(sensitivity=0.4, specificity=0.6)


@pytest.mark.parametrize("accuracy", [0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("n", [1, 20, 99, 500, 3000])
def test_the_first_step_can_be_passed_with_half_the_errors_allowed_and_none_smaller_can(n, accuracy):
    def passes(kept):
        return binom.cdf(np.floor(kept * (1 - accuracy) / 2 + 1e-9), kept, 1 - accuracy) <= 0.1

    expected = next((k for k in range(1, n + 1) if k >= 0.05 * n and passes(k)), None)
    assert first_step(n, accuracy, 0.1) == expected


@pytest.mark.parametrize(
    ("name", "value"), [("accuracy", 1.0), ("accuracy", 80), ("delta", 0.0), ("delta", 10)]
)
def test_what_is_no_probability_is_refused(name, value):
    with pytest.raises(DataError, match=f"{name} must lie between 0 and 1.*got {value}"):
        certify([0.5] * 50, [1] * 50, **{"accuracy": 0.8, "delta": 0.1, name: value})
    with pytest.raises(DataError, match=r"correct\[0\].*got 2"):
        certify([0.5], [2], accuracy=0.8)


def test_a_certificate_survives_json():
    found = certify(*World(0.6, 0.8).draw(1000, 3), accuracy=0.8)
    assert Certificate.model_validate_json(found.model_dump_json()) == found
