"""What other libraries say of the same data; where one of them is wrong, by how much and why.

tests/golden/make_metrics.py made the values and names the versions.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from calibration.errors import DataError
from calibration.metrics.errors import calibration_error, hle_calibration_error, width_error
from calibration.metrics.outcomes import Outcomes, tally
from calibration.metrics.ranking import aurc, auroc, average_precision
from calibration.metrics.scores import brier, brier_parts, log_loss
from calibration.metrics.smooth import smooth_error

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "metrics.json").read_text())["datasets"]
NORMS = {"1": 1, "2": 2, "infty": "max"}
WIDTH_NORMS = {"l1": 1, "l2": 2, "max": "max"}


def rows(name):
    return np.array(GOLDEN[name]["confidence"]), np.array([float(mark) for mark in GOLDEN[name]["correct"]])


def outcomes(name):
    return tally(*rows(name))


def having(field):
    return pytest.mark.parametrize("name", [name for name, golden in GOLDEN.items() if field in golden])


def is_tied(name):
    return len(set(GOLDEN[name]["confidence"])) < len(GOLDEN[name]["confidence"])


@pytest.mark.parametrize("name", [name for name in GOLDEN if not is_tied(name)])
def test_the_published_function(name):
    confidence, correct = rows(name)
    for norm, bin_size, expected in GOLDEN[name]["hle"]:
        if confidence.size < 2 * bin_size:  # it raises, or counts no bin and calls anything perfect
            assert expected == ("IndexError" if confidence.size < bin_size else 0)
            with pytest.raises(DataError, match=f"at least {2 * bin_size} answers"):
                hle_calibration_error(confidence, correct, norm=NORMS[norm], bin_size=bin_size)
        else:
            found = hle_calibration_error(confidence, correct, norm=NORMS[norm], bin_size=bin_size)
            assert found == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_published_function_with_its_last_bin_and_shared_ties(name):
    for norm, bin_size, expected in GOLDEN[name]["all_bins"]:
        found = calibration_error(outcomes(name), norm=NORMS[norm], bin_size=bin_size)
        assert found == pytest.approx(expected, abs=1e-12)


def test_the_published_function_does_not_see_the_answers_a_router_keeps():
    """The hundred most confident answers say .99 and are wrong."""
    published = {(norm, size): value for norm, size, value in GOLDEN["last bin wrong"]["hle"]}
    assert published["2", 100] == pytest.approx(0.0309, abs=5e-5)
    assert calibration_error(outcomes("last bin wrong")) == pytest.approx(0.3147, abs=5e-5)


def test_the_published_function_follows_the_order_of_the_file():
    """One confidence for all answers: sorted by their marks, they seem to be off by .16 or by .36."""
    constant = GOLDEN["constant"]
    assert constant["hle_wrong_first"] == pytest.approx(0.159, abs=5e-4)
    assert constant["hle_right_first"] == pytest.approx(0.357, abs=5e-4)
    confidence, correct = rows("constant")
    for order in (np.argsort(correct), np.argsort(-correct)):
        assert calibration_error(tally(confidence[order], correct[order])) == pytest.approx(
            abs(0.19 - correct.mean()), abs=1e-12
        )


@having("debiased_square")
def test_the_debiased_error_is_that_of_uncertainty_calibration(name):
    for bin_size, square in GOLDEN[name]["debiased_square"].items():
        found = calibration_error(outcomes(name), bin_size=int(bin_size), debias=True)
        assert found**2 == pytest.approx(max(square, 0), abs=1e-14)


@having("ece")
@pytest.mark.parametrize("library", ["scikit-learn", "uncertainty-calibration"])
def test_bins_of_equal_width_closed_on_the_right(name, library):
    for bins, expected in GOLDEN[name]["ece"][library].items():
        assert width_error(outcomes(name), bins=int(bins)) == pytest.approx(expected, abs=1e-12)


def closed_on_the_left(name, bins, norm, last):
    """Error over the bins [edge, next edge); `last` is the index of the one that holds 1."""
    confidence, correct = rows(name)
    index = np.minimum(np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="right") - 1, last)
    count, excess = np.bincount(index), np.abs(np.bincount(index, weights=confidence - correct))
    gaps, weights = excess[count > 0] / count[count > 0], count[count > 0] / count.sum()
    if norm == "max":
        return gaps.max()
    return weights @ gaps if norm == "l1" else np.sqrt(weights @ gaps**2)


@having("ece")
def test_netcal_closes_its_bins_on_the_left(name):
    for bins, expected in GOLDEN[name]["ece"]["netcal"].items():
        left = closed_on_the_left(name, int(bins), "l1", last=int(bins) - 1)
        assert left == pytest.approx(expected, abs=1e-12)
        if not is_tied(name) or "0 or 1" in name:  # no answer lies on an edge
            assert width_error(outcomes(name), bins=int(bins)) == pytest.approx(expected, abs=1e-12)


def test_netcal_puts_one_decimal_into_another_bin_than_the_next():
    """Its edge is .30000000000000004, so that .3 joins .2 but .4 does not join .3."""
    assert GOLDEN["one decimal"]["ece"]["netcal"]["10"] == pytest.approx(0.0378, abs=5e-5)
    assert width_error(outcomes("one decimal"), bins=10) == pytest.approx(0.0478, abs=5e-5)


def test_torchmetrics_gives_certain_answers_a_bin_of_their_own():
    """So that over- and underconfidence, which belong to one bin, add up."""
    o, golden = outcomes("60 % at 0 or 1"), GOLDEN["60 % at 0 or 1"]["ece"]
    for norm in WIDTH_NORMS:
        for bins, expected in golden[f"torchmetrics {norm}"].items():
            phantom = closed_on_the_left("60 % at 0 or 1", int(bins), norm, last=int(bins))
            assert phantom == pytest.approx(expected, abs=1e-12)
    assert golden["torchmetrics l1"]["10"] == pytest.approx(0.3663, abs=5e-5)
    assert width_error(o, bins=10) == pytest.approx(0.3580, abs=5e-5)


@pytest.mark.parametrize("name", ["calibrated", "overconfident", "underconfident", "base rate .19"])
@pytest.mark.parametrize("norm", WIDTH_NORMS)
def test_torchmetrics_where_no_answer_is_certain_or_on_an_edge(name, norm):
    for bins, expected in GOLDEN[name]["ece"][f"torchmetrics {norm}"].items():
        found = width_error(outcomes(name), norm=WIDTH_NORMS[norm], bins=int(bins))
        assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["calibrated", "overconfident", "underconfident", "two decimals"])
def test_mapie_makes_one_interval_fewer_than_asked_for(name):
    for bins, expected in GOLDEN[name]["ece"]["mapie"].items():
        assert width_error(outcomes(name), bins=int(bins) - 1) == pytest.approx(expected, abs=1e-12)


@having("smooth")
def test_relplot_counts_answers_at_the_ends_half(name):
    o = outcomes(name)
    whole = np.where((o.level == 0) | (o.level == 1), 1, 2)
    halved = Outcomes(o.level, o.count * whole, o.right * whole)
    assert smooth_error(halved) == pytest.approx(GOLDEN[name]["smooth"], abs=2e-3)


def test_relplot_is_far_off_where_many_answers_are_certain():
    """test_smooth.py holds ours against the integral that defines it."""
    assert GOLDEN["60 % at 0 or 1"]["smooth"] == pytest.approx(0.1949, abs=5e-5)
    assert smooth_error(outcomes("60 % at 0 or 1")) == pytest.approx(0.2313, abs=5e-5)


@having("brier")
def test_scores_and_ranking(name):
    o, golden = outcomes(name), GOLDEN[name]
    for metric in (brier, log_loss, auroc, average_precision):
        assert metric(o) == pytest.approx(golden[metric.__name__], abs=1e-12)
    parts = brier_parts(o)
    for part, expected in golden["brier_parts"].items():
        assert getattr(parts, part) == pytest.approx(expected, abs=1e-12)


@having("auarc")
def test_the_area_under_the_risk_curve_is_what_mapies_accuracy_lacks(name):
    assert aurc(outcomes(name)) == pytest.approx(1 - GOLDEN[name]["auarc"], abs=1e-12)
