"""The pictures: same bytes, right numbers, and no settings left behind."""

import struct
from math import comb

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.container import ErrorbarContainer

from calibration.report.figures import (
    FEWEST_KEPT,
    cost_quality,
    draw,
    encode,
    histogram,
    reliability,
    risk_coverage,
)
from calibration.results import CostQualityRow, Curve, Evaluation, Row, Value
from calibration.routing.rates import route
from calibration.routing.rules import REFERENCE, Prices, cost_optimal

NAMES = ("reliability", "histogram", "risk_coverage", "cost_quality")


def curve(confidence, correct, *, system="dpo", readout="stated_expected", map_name="none"):
    return Curve(
        system=system,
        readout=readout,
        map=map_name,
        confidence=tuple(map(float, confidence)),
        correct=tuple(map(bool, correct)),
    )


def routing(drawn, prices=None):
    prices = prices or Prices(llm_accuracy=0.8)
    return tuple(
        route(
            drawn.confidence,
            drawn.correct,
            rule,
            prices,
            system=drawn.system,
            readout=drawn.readout,
            map_name=drawn.map,
        )
        for rule in (REFERENCE, cost_optimal(prices))
    )


def price(drawn, llm_accuracy=0.8):
    nothing = Value(value=None, low=None, high=None)
    return CostQualityRow(
        system=drawn.system,
        readout=drawn.readout,
        llm_accuracy=llm_accuracy,
        apgr=Value(value=0.6, low=0.5, high=0.7),
        calls_for_half=nothing,
        calls_for_most=nothing,
    )


def lines_of(axes):
    return {line.get_label(): line for line in axes.lines}


def test_every_picture_is_there_as_png_and_svg(figures):
    assert set(figures) == {f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")}


def test_drawing_twice_gives_the_same_bytes(evaluation, figures):
    assert draw(evaluation) == figures


def test_a_readers_own_matplotlib_settings_change_nothing_and_stay(evaluation, figures):
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": "mine"}):
        before = dict(mpl.rcParams)
        assert draw(evaluation) == figures
        assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", NAMES)
def test_png_is_a_png_as_wide_as_a_page_column(figures, name):
    content = figures[f"{name}.png"]
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert 900 <= width <= 1400
    assert 400 <= height <= 1400
    assert len(content) < 250_000


def test_files_say_neither_when_nor_by_what_they_were_made(figures):
    for content in figures.values():
        assert b"Matplotlib" not in content
        assert b"<dc:date>" not in content


def test_points_are_bins_of_a_hundred_with_their_clopper_pearson_interval():
    rng = np.random.default_rng(0)
    confidence = rng.random(350)
    correct = rng.random(350) < confidence
    main = reliability([curve(confidence, correct)]).axes[0]
    (bars,) = (c for c in main.containers if isinstance(c, ErrorbarContainer))
    order = np.argsort(confidence)
    bins = [order[:100], order[100:200], order[200:]]
    np.testing.assert_allclose(bars[0].get_xdata(), [confidence[b].mean() for b in bins])
    np.testing.assert_allclose(bars[0].get_ydata(), [correct[b].mean() for b in bins])
    ends = np.array([segment[:, 1] for segment in bars[2][0].get_segments()])
    for (low, high), b in zip(ends, bins, strict=True):
        n, right = len(b), int(correct[b].sum())
        # The defining property: each end makes what was seen a 2.5 % tail event.
        tail = np.array([_binomial(n, k, low) for k in range(right, n + 1)]).sum()
        head = np.array([_binomial(n, k, high) for k in range(right + 1)]).sum()
        np.testing.assert_allclose([tail, head], 0.025, rtol=1e-6)


def _binomial(n, k, p):
    return comb(n, k) * p**k * (1 - p) ** (n - k)


def test_equal_confidences_stay_in_one_point_with_their_own_accuracy():
    main = reliability([curve([0.1] * 250 + [0.9] * 130, [1] * 50 + [0] * 200 + [1] * 65 + [0] * 65)]).axes[0]
    (bars,) = (c for c in main.containers if isinstance(c, ErrorbarContainer))
    assert list(bars[0].get_xdata()) == pytest.approx([0.1, 0.9])
    assert list(bars[0].get_ydata()) == pytest.approx([0.2, 0.5])


def test_a_level_with_many_answers_does_not_swallow_the_bin_it_begins_in():
    main = reliability([curve([0.1] * 60 + [0.5] * 250, [0] * 60 + [1, 0] * 125)]).axes[0]
    (bars,) = (c for c in main.containers if isinstance(c, ErrorbarContainer))
    assert list(bars[0].get_xdata()) == pytest.approx([0.1, 0.5])
    assert list(bars[0].get_ydata()) == pytest.approx([0, 0.5])


def test_the_band_holds_a_calibrated_model_nineteen_times_in_twenty():
    assert 0.9 < share_inside_the_band(lambda confidence: confidence) < 0.99


def test_the_band_does_not_hold_an_overconfident_model():
    assert share_inside_the_band(lambda confidence: confidence**3) < 0.3


def share_inside_the_band(truth):
    rng = np.random.default_rng(3)
    grid, inside = np.linspace(0.1, 0.9, 33), []
    for _ in range(12):
        confidence = rng.random(400)
        main = reliability([curve(confidence, rng.random(400) < truth(confidence))]).axes[0]
        band = main.collections[0].get_paths()[0]
        fit = np.interp(grid, *main.lines[1].get_xydata().T)
        inside.append(band.contains_points(np.column_stack([grid, fit])).mean())
    return np.mean(inside)


def test_the_titles_carry_rms_and_floor_of_the_matching_row(evaluation):
    row = next(r for r in evaluation.rows if (r.system, r.map, r.split) == ("dpo", "none", "test"))
    figure = reliability([c for c in evaluation.curves if c.system == "dpo"], evaluation.rows)
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert f"RMS .{row.rms * 1000:03.0f}  (floor .{row.rms_floor * 1000:03.0f})" in shown


@pytest.mark.parametrize("change", [{"n": 249}, {"mean_confidence": 0.9}, {"map": "platt"}])
def test_the_row_of_another_split_or_model_lends_no_numbers(evaluation, change):
    drawn = next(c for c in evaluation.curves if (c.system, c.map) == ("dpo", "none"))
    row = next(r for r in evaluation.rows if (r.system, r.map, r.split) == ("dpo", "none", "test"))
    other = row.model_copy(update={"rms": 0.999} | change)
    (title, *_), (alone, *_) = (
        [text.get_text() for text in reliability([drawn], rows).axes[0].texts if "RMS" in text.get_text()]
        or [""]
        for rows in ([other, row], [other])
    )
    assert "RMS" in title
    assert ".999" not in title
    assert alone == ""


def test_base_stands_left_of_the_trained_and_maps_stand_below(evaluation):
    figure = reliability(evaluation.curves)
    corner = {a.texts[0].get_text(): a.get_position().p0 for a in figure.axes if a.texts}
    assert corner["base as is"][0] < corner["dpo as is"][0] < corner["implicit as is"][0]
    assert corner["base + Platt"][0] == corner["base as is"][0]
    assert corner["base + Platt"][1] < corner["base as is"][1]


def test_a_system_has_one_colour_in_every_picture(evaluation):
    def colour_of(figure, system):
        label = next(label for a in figure.axes for label in lines_of(a) if label.startswith(f"{system},"))
        return lines_of(figure.axes[0])[label].get_color()

    ranking = risk_coverage(evaluation.curves, evaluation.rows, base="base")
    cost = cost_quality(evaluation.curves, evaluation.routing, evaluation.cost_quality, base="base")
    colours = [colour_of(ranking, s) for s in ("base", "dpo", "implicit")]
    assert len(set(colours)) == 3
    assert colours == [colour_of(cost, s) for s in ("base", "dpo", "implicit")]


def colour_of_line(curves, system, base):
    lines = lines_of(risk_coverage(curves, base=base).axes[0])
    return next(line.get_color() for label, line in lines.items() if label.startswith(f"{system},"))


def test_the_base_is_grey_beside_others_whatever_its_name():
    before, after = (curve([0.2, 0.8] * 20, [0, 1] * 20, system=name) for name in ("v1", "v2"))
    grey = colour_of_line([before, after], "v1", base="v1")
    assert len(set(mpl.colors.to_rgb(grey))) == 1
    assert colour_of_line([before, after], "v2", base="v2") == grey
    colours = {colour_of_line([before, after], "v2", base="v1"), colour_of_line([before], "v1", base="v1")}
    assert all(len(set(mpl.colors.to_rgb(colour))) > 1 for colour in colours)


@pytest.mark.parametrize(
    ("map_name", "title"), [("none", "RMS .300  (one bin)"), ("platt_crossfit", "RMS n/a  (one bin)")]
)
def test_a_single_bin_is_called_one_and_no_merit_of_a_cross_fitted_map(map_name, title):
    drawn = curve([0.5] * 150, [1] * 30 + [0] * 120, map_name=map_name)
    row = Row(
        system="dpo",
        model="m",
        readout="stated_expected",
        map=map_name,
        split="test",
        n=150,
        n_unjudged=0,
        n_unreadable=0,
        mean_confidence=0.5,
        rms=0.3,
        rms_floor=0.04,
    )
    assert title in [text.get_text() for text in reliability([drawn], [row]).axes[0].texts]


def test_histogram_shows_every_answer_once_and_the_counts_of_the_routing_table():
    drawn = curve([0.0, 0.3, 0.7, 0.9, 1.0], [0, 1, 1, 0, 1])
    rows = routing(drawn)
    panel = histogram([drawn], rows).axes[0]
    heights = [patch.get_height() for patch in panel.patches]
    assert sum(h for h in heights if h > 0) == 3
    assert sum(h for h in heights if h < 0) == -2
    # .7 is not above .7: the reference keeps two, the cost-optimal threshold .6 keeps three.
    words = [text.get_text() for text in panel.texts]
    assert ".70 keeps 2: 1 right, 1 wrong" in words
    assert ".60 keeps 3: 2 right, 1 wrong" in words


def test_risk_coverage_ends_at_the_error_rate_and_shares_ties_evenly():
    figure = risk_coverage([curve([0.5] * 100, [1] * 30 + [0] * 70)])
    line = lines_of(figure.axes[0])["dpo, expected stated number"]
    np.testing.assert_allclose(line.get_ydata(), 0.7)
    assert line.get_xdata()[0] == FEWEST_KEPT / 100
    assert line.get_xdata()[-1] == 1


def test_risk_coverage_keeps_the_most_confident_first():
    drawn = curve([0.1] * 60 + [0.9] * 40, [0] * 60 + [1, 0] * 20)
    line = risk_coverage([drawn]).axes[0].lines[0]
    risk = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert [risk[0.2], risk[0.4], risk[0.7], risk[1.0]] == pytest.approx([0.5, 0.5, 50 / 70, 0.8])


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(40)))
def test_risk_coverage_does_not_depend_on_the_order_of_the_answers(order):
    rng = np.random.default_rng(5)
    confidence, correct = rng.integers(0, 5, 40) / 4, rng.random(40) < 0.5

    def drawn(index):
        figure = risk_coverage([curve(confidence[index], correct[index])])
        return figure.axes[0].lines[0].get_ydata()

    np.testing.assert_array_equal(drawn(np.arange(40)), drawn(np.array(order)))


def test_operating_points_lie_on_the_curve_of_their_system():
    rng = np.random.default_rng(6)
    confidence = rng.random(300)
    drawn = curve(confidence, rng.random(300) < confidence)
    axes = cost_quality([drawn], routing(drawn), [price(drawn)]).axes[0]
    line = axes.lines[0]
    order = np.argsort(line.get_xdata())
    for point in axes.lines[2:4]:
        (x,), (y,) = point.get_xdata(), point.get_ydata()
        assert y == pytest.approx(np.interp(x, line.get_xdata()[order], line.get_ydata()[order]), abs=1e-12)


def test_escalating_everything_gives_the_large_models_accuracy():
    drawn = curve(np.linspace(0, 1, 50), [0, 1] * 25)
    line = cost_quality([drawn], routing(drawn), [price(drawn)]).axes[0].lines[0]
    assert dict(zip(line.get_xdata(), line.get_ydata(), strict=True))[1.0] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("confidence", "correct"),
    [
        (np.linspace(0, 1, 30), [0, 1, 1] * 10),
        (np.linspace(0, 1, 200), [1] * 200),
        (np.linspace(0, 1, 200), [0] * 200),
        ([0.4] * 150, [1, 0, 0] * 50),
        ([0.0] * 60 + [1.0] * 60, [1] * 60 + [0] * 60),
        ([0.5], [1]),
    ],
    ids=["thirty", "all right", "all wrong", "one level", "only 0 and 1", "one answer"],
)
def test_extreme_systems_can_be_drawn(confidence, correct):
    drawn = curve(confidence, correct, system="odd $name_")
    prices = (price(drawn),)
    empty = Evaluation(rows=(), curves=(drawn,), routing=routing(drawn), cost_quality=prices, counts={})
    assert len(draw(empty)) == 8


def test_nothing_is_drawn_of_a_system_without_a_readable_confidence():
    assert draw(Evaluation(rows=(), curves=(curve([], []),), counts={})) == {}


def test_the_large_models_accuracy_is_the_one_assumed_though_nothing_was_escalated():
    sure = curve([0.9] * 50, [1, 1, 1, 0, 0] * 10)
    axes = cost_quality([sure], routing(sure), [price(sure, llm_accuracy=0.65)]).axes[0]
    line = lines_of(axes)["dpo, expected stated number   APGR .600"]
    assert dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) == pytest.approx(
        {(50 - kept) / 50: (kept * 0.6 + (50 - kept) * 0.65) / 50 for kept in range(51)}
    )


def test_without_a_large_model_there_is_no_cost_picture():
    sure = curve([0.9] * 50, [1] * 50)
    pictures = draw(Evaluation(rows=(), curves=(sure,), routing=routing(sure), counts={}))
    assert set(pictures) == {f"{name}.{kind}" for name in NAMES[:3] for kind in ("png", "svg")}


def test_many_systems_wrap_into_rows_and_keep_their_size():
    curves = [curve([0.2, 0.8] * 20, [0, 1] * 20, system=f"method {i}") for i in range(7)]
    panels = [axes for axes in reliability(curves).axes if axes.texts]
    assert len(panels) == 7
    assert len({round(axes.get_position().x0, 6) for axes in panels}) == 4
    assert len({round(axes.get_position().width, 6) for axes in panels}) == 1


def test_encoding_does_not_change_the_figure():
    figure = reliability([curve([0.2, 0.8] * 20, [0, 1] * 20)])
    assert encode(figure, "png") == encode(figure, "png")
    assert encode(figure, "svg").startswith(b"<?xml")
