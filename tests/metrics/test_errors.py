"""Calibration error against the published function, written out here as it stands."""

import itertools
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.errors import DataError
from calibration.metrics.errors import (
    calibration_error,
    calibration_floor,
    hle_calibration_error,
    width_error,
)
from calibration.metrics.outcomes import Outcomes, tally
from calibration.metrics.scores import overconfidence

NORMS = {1: "1", 2: "2", "max": "infty"}
tied = st.lists(st.tuples(st.integers(0, 10).map(lambda k: k / 10), st.booleans()), min_size=1, max_size=60)
free = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


def published(confidence, correct, p="2", beta=100, *, all_bins=False):
    """calib_err of hendrycks/outlier-exposure@e6ede98, loop by loop; `all_bins` repairs its one slip."""
    order = np.argsort(confidence)
    confidence, correct = np.array(confidence)[order], np.array(correct)[order]
    bins = [[i * beta, (i + 1) * beta] for i in range(len(confidence) // beta)]
    bins[-1] = [bins[-1][0], len(confidence)]
    error, total = 0, len(confidence)
    for i in range(len(bins) if all_bins else len(bins) - 1):
        inside = slice(bins[i][0], bins[i][1])
        size = len(confidence[inside])
        difference = np.abs(np.nanmean(confidence[inside]) - np.nanmean(correct[inside]))
        if p == "2":
            error += size / total * np.square(difference)
        elif p == "1":
            error += size / total * difference
        elif p == "infty":
            error = np.maximum(error, difference)
        else:
            raise AssertionError(p)
    return np.sqrt(error) if p == "2" else error


def world(n, seed, *, decimals=None):
    rng = np.random.default_rng(seed)
    confidence = rng.beta(2, 1, n)
    if decimals is not None:
        confidence = np.round(confidence, decimals)
    return confidence, (rng.random(n) < confidence**2).astype(float)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bin_size", [1, 10, 50, 100])
@pytest.mark.parametrize("n", [200, 250, 300, 505, 830, 1099])
def test_without_ties_both_forms_are_the_published_loop(n, bin_size, norm):
    confidence, correct = world(n, n)
    ours = hle_calibration_error(confidence, correct, norm=norm, bin_size=bin_size)
    assert ours == pytest.approx(published(confidence, correct, NORMS[norm], bin_size), abs=1e-13)
    full = published(confidence, correct, NORMS[norm], bin_size, all_bins=True)
    assert calibration_error(tally(confidence, correct), norm=norm, bin_size=bin_size) == pytest.approx(full)


@pytest.mark.parametrize("decimals", [0, 1, 2])
def test_with_ties_the_published_form_still_follows_numpys_own_sort(decimals):
    confidence, correct = world(730, decimals, decimals=decimals)
    assert hle_calibration_error(confidence, correct) == pytest.approx(
        published(confidence, correct), abs=1e-13
    )


def test_the_worked_examples():
    assert hle_calibration_error([0.2, 0.6, 0.9], [0, 1, 1], bin_size=1) == pytest.approx(0.2582, abs=5e-5)
    assert calibration_error(tally([0.2, 0.6, 0.9], [0, 1, 1]), bin_size=1) == pytest.approx(0.2646, abs=5e-5)
    assert hle_calibration_error(np.ones(250), np.zeros(250)) == pytest.approx(0.6325, abs=5e-5)
    assert calibration_error(tally(np.ones(250), np.zeros(250))) == 1.0


def test_the_published_form_cannot_see_the_most_confident_answers_and_ours_can():
    rng = np.random.default_rng(5)
    confidence = rng.uniform(0, 0.9, 900)
    correct = (rng.random(900) < confidence).astype(float)
    confidence, correct = np.append(confidence, np.full(100, 0.99)), np.append(correct, np.zeros(100))
    assert hle_calibration_error(confidence, correct) < 0.06
    assert calibration_error(tally(confidence, correct)) > 0.3


@pytest.mark.parametrize("n", [1, 99, 100, 199])
def test_where_the_published_form_crashes_or_calls_everything_perfect_it_is_refused(n):
    if n < 100:
        with pytest.raises(IndexError):
            published(np.ones(n), np.zeros(n))
    else:
        assert published(np.ones(n), np.zeros(n)) == 0
    with pytest.raises(DataError, match=f"at least 200 answers at 100 per bin; got {n}"):
        hle_calibration_error(np.ones(n), np.zeros(n))


@given(tied, st.integers(1, 20))
def test_a_tie_shares_its_mean_correctness(rows, bin_size):
    """Oracle: give every answer its tie's mean mark, then run the plain loop over all bins."""
    confidence, correct = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    shared = np.array([correct[confidence == c].mean() for c in confidence])
    expected = published(confidence, shared, "2", min(bin_size, len(rows)), all_bins=True)
    assert calibration_error(tally(confidence, correct), bin_size=bin_size) == pytest.approx(
        expected, abs=1e-9
    )


@given(st.one_of(tied, free), st.integers(1, 20), st.randoms())
def test_the_order_of_the_answers_changes_no_bit(rows, bin_size, random):
    shuffled = rows.copy()
    random.shuffle(shuffled)
    values = []
    for order in (rows, shuffled):
        o = tally(*zip(*order, strict=True))
        values.append([calibration_error(o, norm=norm, bin_size=bin_size) for norm in NORMS])
        values[-1] += [width_error(o, norm=norm, bins=bin_size) for norm in NORMS]
        if min(bin_size, len(rows)) > 1:
            values[-1].append(calibration_error(o, bin_size=bin_size, debias=True))
    assert np.array(values[0]).tobytes() == np.array(values[1]).tobytes()


@given(st.one_of(tied, free), st.integers(1, 20))
def test_gap_l1_rms_and_maximum_come_in_this_order(rows, bin_size):
    o = tally(*zip(*rows, strict=True))
    for errors in (
        [calibration_error(o, norm=norm, bin_size=bin_size) for norm in NORMS],
        [width_error(o, norm=norm, bins=bin_size) for norm in NORMS],
    ):
        chain = [abs(overconfidence(o)), *errors, 1]
        assert all(low <= high + 1e-12 for low, high in itertools.pairwise(chain))


@given(st.one_of(tied, free), st.integers(1, 20))
def test_three_copies_in_bins_three_times_as_large_change_nothing(rows, bin_size):
    once, thrice = tally(*zip(*rows, strict=True)), tally(*zip(*(rows * 3), strict=True))
    for norm in NORMS:
        value = calibration_error(once, norm=norm, bin_size=bin_size)
        assert calibration_error(thrice, norm=norm, bin_size=3 * bin_size) == pytest.approx(value, abs=1e-12)


def marks_in_bins(confidence, bin_size):
    """Size of each bin, and its mean mark as weights [n]: in a tie, each mark counts for all its answers."""
    n, first = confidence.size, 0
    tie = confidence[:, None] == confidence
    share = tie / tie.sum(axis=1)
    while first < n:
        end = first + bin_size if n - first >= 2 * bin_size else n
        yield end - first, share[first:end].mean(axis=0)
        first = end


@given(st.one_of(tied, free).filter(lambda rows: len(rows) > 1), st.integers(2, 20))
def test_debiasing_takes_off_the_variance_that_a_bins_labels_show(rows, bin_size):
    """Oracle: a mean with weights w is worth 1 / (sum of w**2) labels (Kish); untied, that is the size."""
    confidence, correct = (np.array(column, dtype=float) for column in zip(*sorted(rows), strict=True))
    square = 0
    for size, weights in marks_in_bins(confidence, bin_size):
        p, labels = weights @ correct, 1 / (weights**2).sum()
        square += size / len(rows) * ((weights @ confidence - p) ** 2 - p * (1 - p) / (labels - 1))
    o = tally(confidence, correct)
    assert calibration_error(o, bin_size=bin_size, debias=True) ** 2 == pytest.approx(
        max(square, 0), abs=1e-12
    )


@pytest.mark.parametrize(("n", "bin_size"), [(500, 5), (500, 100), (530, 100), (199, 100)])
def test_without_ties_debiasing_is_kumars(n, bin_size):
    confidence, correct = world(n, n)
    order, cuts = np.argsort(confidence), np.arange(1, n // bin_size) * bin_size
    square = sum(
        inside.size
        / n
        * ((confidence[inside] - correct[inside]).mean() ** 2 - correct[inside].var(ddof=1) / inside.size)
        for inside in np.split(order, cuts)
    )
    assert square > 0
    found = calibration_error(tally(confidence, correct), bin_size=bin_size, debias=True)
    assert found == pytest.approx(np.sqrt(square))


@pytest.mark.parametrize("decimals", [9, 1], ids=["continuous", "one decimal"])
def test_debiasing_takes_off_what_chance_adds(decimals):
    rng = np.random.default_rng(11)
    confidence = np.sort(np.round(rng.beta(3, 2, 1000), decimals))
    chance = confidence**3
    bins = np.array([weights for _, weights in marks_in_bins(confidence, 100)])
    without_chance = np.mean((bins @ (confidence - chance)) ** 2)
    added = np.mean(bins**2 @ (chance * (1 - chance)))
    outcomes = [tally(confidence, rng.random(1000) < chance) for _ in range(2000)]
    plain = np.array([calibration_error(o) for o in outcomes]) ** 2
    debiased = np.array([calibration_error(o, debias=True) for o in outcomes]) ** 2
    assert plain.mean() == pytest.approx(without_chance + added, abs=4 * plain.std() / np.sqrt(plain.size))
    assert (plain - debiased).mean() == pytest.approx(added, rel=0.05)


def test_debiasing_is_refused_where_there_is_nothing_to_learn_a_variance_from():
    o = tally([0.2, 0.6, 0.9], [0, 1, 1])
    with pytest.raises(DataError, match=r"two labels.*n = 3, bin_size = 1.*larger bins"):
        calibration_error(o, bin_size=1, debias=True)
    for norm in (1, "max"):
        with pytest.raises(DataError, match=f"norm 2 can be debiased; got norm {norm!r}"):
            calibration_error(o, norm=norm, debias=True)
    tie = tally([0.6] * 4, [0, 1, 1, 1])  # four labels speak in each bin of one
    assert calibration_error(tie, bin_size=1, debias=True) == 0  # .15**2 - .75 * .25 / 3 < 0


def test_a_norm_or_a_number_of_bins_that_does_not_exist_is_named():
    o = tally([0.2, 0.6], [0, 1])
    for metric in (calibration_error, width_error):
        with pytest.raises(DataError, match='norm must be 1, 2 or "max"; got 3'):
            metric(o, norm=3)
    with pytest.raises(DataError, match="bins must be at least 1; got 0"):
        width_error(o, bins=0)
    with pytest.raises(DataError, match="bin_size must be at least 1; got 0"):
        calibration_error(o, bin_size=0)


@given(st.one_of(tied, free), st.integers(1, 20))
def test_bins_of_equal_width_hold_their_upper_edge(rows, bins):
    confidence, correct = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    weights, gaps = [], []
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins) | ((confidence == 0) & (i == 0))
        if inside.any():
            weights.append(inside.mean())
            gaps.append(abs(confidence[inside].mean() - correct[inside].mean()))
    o = tally(confidence, correct)
    assert width_error(o, bins=bins) == pytest.approx(np.dot(weights, gaps), abs=1e-12)
    squares = np.dot(weights, np.square(gaps))
    assert width_error(o, norm=2, bins=bins) ** 2 == pytest.approx(squares, abs=1e-12)
    assert width_error(o, norm="max", bins=bins) == pytest.approx(max(gaps), abs=1e-12)


def test_a_decimal_on_an_edge_falls_where_it_reads():
    assert np.linspace(0, 1, 36)[7] < 0.2  # so that .2 would join the bin above
    for bins, decimal in ((35, 0.2), (10, 0.3), (15, 0.6), (100, 0.57)):
        o = tally([decimal, np.nextafter(decimal, 2)], [0, 1])
        assert width_error(o, bins=bins) == pytest.approx(0.5)
        together = tally([decimal, np.nextafter(decimal, 0)], [0, 1])
        assert width_error(together, bins=bins) == pytest.approx(abs(decimal - 0.5))


def test_a_leading_axis_gives_each_rows_own_value():
    rng = np.random.default_rng(0)
    level, count = np.linspace(0, 1, 30), rng.multinomial(517, np.full(30, 1 / 30), size=4)
    count[0, 3:9] += count[0, 12:18]
    count[0, 12:18] = 0  # levels that a resample lacks, the first and the last as well
    count[1, 0], count[1, 1] = 0, count[1, 0] + count[1, 1]
    count[2, -1], count[2, -2] = 0, count[2, -1] + count[2, -2]
    right = rng.binomial(count, level)
    for metric in (
        *(partial(calibration_error, norm=norm, bin_size=50) for norm in NORMS),
        partial(calibration_error, bin_size=50, debias=True),
        *(partial(width_error, norm=norm) for norm in NORMS),
    ):
        together = metric(Outcomes(level, count, right))
        alone = [metric(Outcomes(level, c, r)) for c, r in zip(count, right, strict=True)]
        present = [
            metric(Outcomes(level[c > 0], c[c > 0], r[c > 0])) for c, r in zip(count, right, strict=True)
        ]
        assert together.shape == (4,)
        np.testing.assert_array_equal(together, alone)
        np.testing.assert_allclose(together, present, rtol=1e-12)


def test_rows_with_different_numbers_of_answers_have_no_common_bins():
    rows = Outcomes(np.array([0.2, 0.6]), np.array([[1, 2], [2, 2]]), np.array([[0, 1], [1, 1]]))
    with pytest.raises(DataError, match="equally many answers; got 3 to 4"):
        calibration_error(rows)


@pytest.mark.parametrize(
    "confidence",
    [
        np.random.default_rng(1).uniform(0, 1, 1000),
        np.random.default_rng(4).beta(1.2, 5, 1000),
        np.random.default_rng(5).uniform(0.49, 0.51, 1000),
        np.round(np.random.default_rng(2).beta(1, 4, 1050), 1),
        np.full(430, 0.19),
        np.random.default_rng(3).uniform(0, 1, 60),
    ],
    ids=["uniform", "mean .19", "all near .5", "one decimal", "constant", "less than one bin"],
)
def test_the_floor_is_what_calibrated_models_score(confidence):
    rng = np.random.default_rng(7)
    squares = [
        calibration_error(tally(confidence, rng.random(confidence.size) < confidence)) ** 2
        for _ in range(3000)
    ]
    assert np.sqrt(np.mean(squares)) == pytest.approx(
        calibration_floor(tally(confidence, confidence > 2)), rel=0.05
    )


def test_without_ties_the_floor_depends_on_the_bins_and_not_on_n():
    for n in (1000, 10_000):
        c = np.linspace(0.001, 0.999, n)
        expected = np.sqrt((c * (1 - c)).mean() / 100)
        assert calibration_floor(tally(c, c > 2)) == pytest.approx(expected, rel=1e-9)
