"""The pictures of a report, drawn from the confidences and marks of each system.

Every function returns a matplotlib `Figure` and leaves matplotlib's settings as they were; `encode` gives
the same bytes for the same figure. A system has one colour in all pictures (Okabe and Ito's palette, which
colour-blind readers can tell apart).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.optimize import isotonic_regression

from calibration.metrics.errors import BIN_SIZE
from calibration.metrics.outcomes import FloatArray, Outcomes, tally
from calibration.report.words import is_one_bin, number, post_hoc, readout, shorten, shown
from calibration.results import CostQualityRow, Curve, Evaluation, Row
from calibration.routing.rates import RoutingRow, rate

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST_KEPT = 20
"""Answers that a risk-coverage curve starts with: a share among fewer is noise."""

SAME = 1e-9
"""Numbers that differ by less are the same; equal mean confidences belong to the same answers."""

SIMULATIONS = 200
"""Calibrated models simulated for the consistency band of one panel."""

_BASE, _WRONG = "#4d4d4d", "#cfcfcf"
_INK, _HINT, _BAND = "#333333", "#777777", "#dde6ee"
_PANEL_WIDTHS = (3.1, 3.1, 2.6, 2.0)
"""Inches of a panel in a grid of 1, 2, 3 or 4 columns."""
_METHODS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES = ("-", (0, (4, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1, 1.5)))

_STYLE: dict[Any, Any] = {  # matplotlib's own type of a key is a list of 300 literals
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.labelsize": 8.5,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#8a8a8a",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "text.color": _INK,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "legend.fontsize": 8,
    "legend.frameon": False,
    # Without a salt the ids inside an SVG are random.
    "svg.hashsalt": "calibration",
}


def draw(evaluation: Evaluation) -> dict[str, bytes]:
    """Draw every picture of a report, each as PNG and SVG.

    Args:
        evaluation: Its curves are drawn; its rows and routing give the numbers written into the pictures.

    Returns:
        File name -> file. Systems without a readable confidence have nothing to draw; without any other the
        result is empty, and `cost_quality` is left out when nothing is known of a larger model. The same
        evaluation gives the same bytes.
    """
    curves, base = [curve for curve in evaluation.curves if curve.confidence], evaluation.base
    if not curves:
        return {}
    pictures = {
        "reliability": reliability(curves, evaluation.rows, base=base),
        "histogram": histogram(curves, evaluation.routing, base=base),
        "risk_coverage": risk_coverage(curves, evaluation.rows, base=base),
    }
    if evaluation.cost_quality:
        prices = evaluation.cost_quality
        pictures["cost_quality"] = cost_quality(curves, evaluation.routing, prices, base=base)
    kinds: tuple[Literal["png", "svg"], ...] = ("png", "svg")
    return {f"{name}.{kind}": encode(figure, kind) for name, figure in pictures.items() for kind in kinds}


def encode(figure: "Figure", kind: Literal["png", "svg"], dpi: int = 125) -> bytes:
    """The figure as a file; no date and no program name, so equal figures give equal bytes."""
    buffer = BytesIO()
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    with _style():
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def reliability(curves: Sequence[Curve], rows: Sequence[Row] = (), *, base: str | None = None) -> "Figure":
    """Share of right answers against confidence, one panel a curve.

    Points are bins of `BIN_SIZE` answers with Clopper-Pearson 95 % intervals, the line is the isotonic fit,
    the band holds 95 % of the isotonic fits of calibrated models with the same confidences (pointwise), the
    strip below counts the answers in each twentieth of the confidence.

    Args:
        curves: At least one, each with at least one answer.
        rows: Where RMS and floor of the panel titles come from.
        base: The system to draw in grey beside others.

    Source: Dimitriadis, Gneiting and Jordan 2021, "Stable reliability diagrams" (isotonic line and band).
    """
    with _style():
        figure, cells = _panels(curves, heights=(2.1, 0.4), numbers=1, legend=_reliability_legend())
        colours = _colours(curves, base)
        for curve, (main, strip) in cells:
            row = _row(curve, rows)
            _title(main, curve, *([_rms_words(row)] if row else []))
            _reliability_panel(main, tally(curve.confidence, curve.correct), colours[curve.system])
            strip.hist(curve.confidence, bins=20, range=(0, 1), color=colours[curve.system], alpha=0.6)
            strip.set(xlabel="confidence", yticks=[strip.get_ylim()[1] / 1.05])
            strip.yaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    return figure


def histogram(
    curves: Sequence[Curve], routing: Sequence[RoutingRow] = (), *, base: str | None = None
) -> "Figure":
    """How often each confidence was given, right answers upwards and wrong ones downwards.

    Args:
        curves: At least one, each with at least one answer.
        routing: The thresholds to mark in the panel of the same system, readout and map.
        base: The system to draw in grey beside others.
    """
    with _style():
        figure, cells = _panels(curves, heights=(1.9,), numbers=2, legend=_histogram_legend())
        colours = _colours(curves, base)
        for curve, (panel,) in cells:
            rules = [row for row in routing if _key(row) == _key(curve)]
            _title(panel, curve, *(_kept_words(row) for row in rules))
            _histogram_panel(panel, curve, colours[curve.system], rules)
    return figure


def risk_coverage(curves: Sequence[Curve], rows: Sequence[Row] = (), *, base: str | None = None) -> "Figure":
    """Share of wrong answers among the most confident ones, against the share of answers kept.

    Random keeping gives a horizontal line at the system's error rate, an oracle keeps all right answers
    first. A curve depends on the order of the confidences only, so a system is drawn once, not once a map.

    Args:
        curves: At least one, each with at least one answer.
        rows: Where the AURC of the legend comes from.
        base: The system to draw in grey beside others.
    """
    with _style():
        figure, axes = _single()
        for curve, look in _once_a_readout(curves, base):
            wrong, row = _wrong_among_kept(curve), _row(curve, rows)
            kept = np.arange(1, len(wrong) + 1)
            share, oracle = kept / len(kept), np.maximum(0, kept - (len(kept) - wrong[-1])) / kept
            shown = slice(min(FEWEST_KEPT, len(kept)) - 1, None)
            name = _name(curve) + (f"   AURC {number(row.aurc)}" if row else "")
            axes.plot(share[shown], (wrong / kept)[shown], linewidth=1.6, label=name, **look)
            thin = {"color": look["color"], "linewidth": 0.9, "alpha": 0.7}
            axes.plot(share, oracle, **thin)
            axes.axhline(wrong[-1] / len(kept), linestyle=":", **thin)
        axes.set(xlim=(0, 1.01), xlabel="share of questions kept, the most confident first")
        axes.set_ylim(0, min(1.01, axes.get_ylim()[1]))
        axes.set_ylabel("share of wrong answers among them")
        _hint(axes, "random order, in the same colour", linestyle=":")
        _hint(axes, "oracle, in the same colour")
        figure.legend(loc="upper left", bbox_to_anchor=(0.635, 0.98))
    return figure


def cost_quality(
    curves: Sequence[Curve],
    routing: Sequence[RoutingRow],
    prices: Sequence[CostQualityRow],
    *,
    base: str | None = None,
) -> "Figure":
    """Accuracy of small and large model together, against the share of questions that are escalated.

    A straight line escalates at random; a point is a threshold of the routing table. Questions without a
    readable confidence are always escalated, so a curve may start right of 0. Systems without a routing row
    or without a price row are not drawn.

    Args:
        curves: At least one, each with at least one answer.
        routing: The operating points.
        prices: The large model's accuracy, and the APGR of the legend, by system and readout.
        base: The system to draw in grey beside others.
    """
    assumed = {(row.system, row.readout): row for row in prices}
    with _style():
        figure, axes = _single()
        for curve, look in _once_a_readout(curves, base):
            row = assumed.get((curve.system, curve.readout))
            points = [
                point for point in routing if (point.system, point.readout) == (curve.system, curve.readout)
            ]
            if row is None or not points:
                continue
            share, accuracy = _together(curve, points[0].escalated.total, row.llm_accuracy)
            name = f"{_name(curve)}   APGR {number(row.apgr.value)}"
            axes.plot(share, accuracy, linewidth=1.6, label=name, **look)
            axes.plot(share[[-1, 0]], accuracy[[-1, 0]], ":", color=look["color"], linewidth=0.9, alpha=0.7)
            for point in points:
                _operating_point(axes, point, look["color"])
        axes.set(xlim=(-0.01, 1.01), xlabel="share of questions escalated to the large model")
        axes.set_ylabel("accuracy of both together")
        _hint(axes, "escalated at random, in the same colour", linestyle=":")
        _hint(axes, "cost-optimal threshold", linestyle="", marker="o")
        _hint(axes, "reference threshold", linestyle="", marker="o", markerfacecolor="white")
        _hint(axes, "square: after a post-hoc map", linestyle="", marker="s")
        figure.legend(loc="upper left", bbox_to_anchor=(0.635, 0.98))
    return figure


def _together(curve: Curve, total: int, large: float) -> tuple[FloatArray, FloatArray]:
    """Share escalated and accuracy of both models when 0, 1, ... n of `total` answers are kept."""
    wrong = np.concatenate([[0.0], _wrong_among_kept(curve)])
    kept = np.arange(len(wrong))
    return (total - kept) / total, (kept - wrong + (total - kept) * large) / total


def _wrong_among_kept(curve: Curve) -> FloatArray:
    """Wrong answers among the 1, 2, ... n most confident; equal confidences share theirs evenly."""
    o = tally(curve.confidence, curve.correct)
    ends = np.concatenate([[0], np.cumsum(o.count[::-1])])
    wrong = np.concatenate([[0], np.cumsum((o.count - o.right)[::-1])])
    return np.asarray(np.interp(np.arange(1, ends[-1] + 1), ends, wrong))


def _bins(o: Outcomes) -> Outcomes:
    """Bins of `BIN_SIZE` answers, the remainder in the last one; equal confidences stay together.

    A confidence goes where its middle answer goes, so bins are exact where nothing is tied. The `level` of
    a bin is its mean confidence.
    """
    middle = np.cumsum(o.count) - (o.count + 1) / 2
    last = max(1, int(o.n) // BIN_SIZE) - 1
    index = np.minimum(middle // BIN_SIZE, last).astype(np.int64)
    count, right, total = (np.bincount(index, weights=w) for w in (o.count, o.right, o.count * o.level))
    full = count > 0
    return Outcomes(total[full] / count[full], count[full].astype(np.int64), right[full].astype(np.int64))


def _consistency_band(o: Outcomes) -> FloatArray:
    """Ends of the 95 % band of isotonic fits under calibration; shape [2, levels]."""
    right = np.random.default_rng(0).binomial(o.count, o.level, size=(SIMULATIONS, len(o.level)))
    fits = [isotonic_regression(row / o.count, weights=o.count).x for row in right]
    return np.asarray(np.quantile(fits, (0.025, 0.975), axis=0))


def _reliability_panel(axes: "Axes", o: Outcomes, colour: str) -> None:
    some = np.unique(np.linspace(0, len(o.level) - 1, 150).astype(int))  # as fine as the eye needs
    axes.fill_between(o.level[some], *_consistency_band(o)[:, some], color=_BAND, linewidth=0)
    axes.plot([0, 1], [0, 1], color="#8a8a8a", linewidth=0.8, linestyle=":")
    fit = isotonic_regression(o.right / o.count, weights=o.count)
    ends = np.unique(np.concatenate([fit.blocks[:-1], fit.blocks[1:] - 1]))  # the fit is flat between them
    axes.plot(o.level[ends], fit.x[ends], color=colour, linewidth=1.2, alpha=0.75)
    bins = _bins(o)
    share = bins.right / bins.count
    exact = [rate(int(right), int(count)) for right, count in zip(bins.right, bins.count, strict=True)]
    bars = np.abs(np.array([[r.low for r in exact], [r.high for r in exact]], dtype=float) - share)
    axes.errorbar(bins.level, share, bars, fmt="o", color=colour, markersize=3.6, elinewidth=0.9)
    axes.set(ylim=(-0.02, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], ylabel="share right")
    _short_numbers(axes)
    axes.tick_params(labelbottom=False)


def _histogram_panel(axes: "Axes", curve: Curve, colour: str, rules: Sequence[RoutingRow]) -> None:
    confidence, correct = np.asarray(curve.confidence), np.asarray(curve.correct)
    edges = np.linspace(0, 1, 21)
    right, wrong = (np.histogram(confidence[mask], edges)[0] for mask in (correct, ~correct))
    centres, width = edges[:-1] + 0.025, 0.046
    axes.bar(centres, right, width, color=colour)
    axes.bar(centres, -wrong, width, color=_WRONG)
    axes.axhline(0, color="#8a8a8a", linewidth=0.8)
    for rule in rules:
        if 0 <= rule.threshold <= 1:  # a cost-optimal threshold outside keeps all answers, or none
            axes.axvline(rule.threshold, color="black", linewidth=1.1, linestyle=_rule_dash(rule))
    axes.set(xticks=[0, 0.5, 1], xlabel="confidence", ylabel="answers")
    _short_numbers(axes)
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.0f}")


def _panels(
    curves: Sequence[Curve], heights: tuple[float, ...], numbers: int, legend: "list[Artist]"
) -> tuple["Figure", list[tuple[Curve, tuple["Axes", ...]]]]:
    """A grid with one cell a curve, each a stack of axes that share x; every map begins a new row.

    Of a single system the maps stand side by side.

    All lengths are inches: panels keep their size whatever is written around them.

    Args:
        curves: At least one.
        heights: Of the axes in a cell, the upper first.
        numbers: Lines of numbers under the name of each panel.
        legend: Its entries, one under the other at the bottom.
    """
    from matplotlib.figure import Figure

    maps = dict.fromkeys(curve.map for curve in curves)
    blocks = [[curve for curve in curves if curve.map == name] for name in maps]
    blocks = blocks if max(map(len, blocks)) > 1 else [list(curves)]
    widest = max(map(len, blocks))
    columns = widest if widest <= len(_PANEL_WIDTHS) else min(len(_PANEL_WIDTHS), -(-widest // 2))
    places, lines = [], 0
    for block in blocks:
        places += [(curve, lines + i // columns, i % columns) for i, curve in enumerate(block)]
        lines += -(-len(block) // columns)
    width, title, below = _PANEL_WIDTHS[columns - 1], 0.42 + 0.15 * numbers, 0.42
    cell = title + sum(heights) + 0.08 * (len(heights) - 1) + below
    bottom = 0.2 + 0.17 * len(legend)
    figure = Figure(figsize=(0.52 + columns * (width + 0.4), lines * cell + bottom))
    figure.legend(handles=legend, loc="lower left", bbox_to_anchor=(0, 0))
    cells = []
    for curve, line, column in places:
        stack: list[Axes] = []
        top = bottom + (lines - line) * cell - title
        for height in heights:
            share = {"sharex": stack[0]} if stack else {}
            stack.append(_axes(figure, (0.52 + column * (width + 0.4), top - height, width, height), **share))
            top -= height + 0.08
        stack[0].set_xlim(-0.02, 1.02)
        stack[0].yaxis.label.set_visible(column == 0)
        cells.append((curve, tuple(stack)))
    return figure, cells


def _axes(figure: "Figure", place: tuple[float, float, float, float], **options: Any) -> "Axes":  # noqa: ANN401
    """Axes with left, bottom, width and height in inches."""
    width, height = figure.get_size_inches()
    left, bottom, across, up = place
    return figure.add_axes((left / width, bottom / height, across / width, up / height), **options)


def _operating_point(axes: "Axes", row: RoutingRow, colour: str) -> None:
    """Filled where the threshold is cost-optimal, square where the confidences were mapped."""
    marker = "o" if row.map == "none" else "s"
    face = colour if _is_optimal(row) else "white"
    share = row.escalated.count / row.escalated.total
    axes.plot(share, row.system_accuracy, marker, color=colour, markerfacecolor=face, markersize=5.5)


def _single() -> tuple["Figure", "Axes"]:
    """One wide panel with room for a legend at its right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 4.3))
    axes = _axes(figure, (0.55, 0.5, 5.2, 3.65))
    _short_numbers(axes)
    return figure, axes


@contextmanager
def _style() -> Iterator[None]:
    """Our settings on top of matplotlib's own; a reader's matplotlibrc changes nothing, nor do we."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def _colours(curves: Sequence[Curve], base: str | None) -> dict[str, str]:
    """One colour a system: grey for the base that others are compared with, the palette in order for them."""
    systems = list(dict.fromkeys(curve.system for curve in curves))
    greys = {base: _BASE} if base in systems and len(systems) > 1 else {}
    methods = [name for name in systems if name not in greys]
    return greys | {name: _METHODS[i % len(_METHODS)] for i, name in enumerate(methods)}


def _once_a_readout(curves: Sequence[Curve], base: str | None) -> Iterator[tuple[Curve, dict[str, Any]]]:
    """The first curve of every system and readout, with its colour and its dash."""
    colours = _colours(curves, base)
    first = {(curve.system, curve.readout): curve for curve in reversed(curves)}
    drawn: dict[str, int] = {}
    for curve in curves:
        if first[curve.system, curve.readout] is curve:
            dash = drawn.setdefault(curve.system, 0)
            drawn[curve.system] += 1
            yield curve, {"color": colours[curve.system], "linestyle": _DASHES[dash % len(_DASHES)]}


def _key(row: Row | RoutingRow | Curve) -> tuple[str, str, str]:
    return row.system, row.readout, row.map


def _row(curve: Curve, rows: Sequence[Row]) -> Row | None:
    """The row of the table that is about the same answers: several models and splits can share a name."""
    mean = float(np.mean(curve.confidence))
    alike = (row for row in rows if _key(row) == _key(curve) and row.n == len(curve.correct))
    known = ((abs(row.mean_confidence - mean), row) for row in alike if row.mean_confidence is not None)
    return next((row for distance, row in known if distance < SAME), None)


def _is_optimal(row: RoutingRow) -> bool:
    return row.rule == "cost-optimal"


def _rule_dash(row: RoutingRow) -> str:
    return "-" if _is_optimal(row) else ":"


def _rms_words(row: Row) -> str:
    row = shown(row)
    beside = "one bin" if is_one_bin(row.n) else f"floor {number(row.rms_floor)}"
    return f"RMS {number(row.rms)}  ({beside})"


def _name(curve: Curve) -> str:
    return f"{shorten(curve.system, 24)}, {readout(curve.readout)}"


def _title(axes: "Axes", curve: Curve, *lines: str) -> None:
    """Who it is in bold, how it was read, and the numbers, one under the other."""
    small = [readout(curve.readout), *lines]
    _above(axes, f"{shorten(curve.system, 24)} {post_hoc(curve.map)}", len(small), weight="bold")
    for line, text in enumerate(reversed(small)):
        _above(axes, text, line, fontsize=7.5, color="#555555")


def _above(axes: "Axes", text: str, line: int, **look: Any) -> None:  # noqa: ANN401 - what a text takes
    place = (0, 5 + 10.8 * line)
    axes.annotate(text, (0, 1), place, xycoords="axes fraction", textcoords="offset points", **look)


def _kept_words(row: RoutingRow) -> str:
    kept, right = row.kept_accuracy.total, row.kept_accuracy.count
    return f"{number(row.threshold, 2)} keeps {kept}: {right} right, {kept - right} wrong"


def _short_numbers(axes: "Axes") -> None:
    def short(value: float, _: float) -> str:
        if abs(value - round(value)) < SAME:
            return f"{value:.0f}"
        return number(value, 1 if abs(10 * value - round(10 * value)) < SAME else 2)

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(short)


def _hint(axes: "Axes", label: str, **look: Any) -> None:  # noqa: ANN401 - whatever a matplotlib line takes
    """An entry of the legend without a line of its own."""
    axes.plot([], [], color=_HINT, linewidth=0.9, label=label, **look)


def _reliability_legend() -> "list[Artist]":
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    bins = f"bins of {BIN_SIZE} answers, with 95 % interval"
    return [
        Line2D([], [], color=_HINT, marker="o", markersize=3.6, linewidth=0.9, label=bins),
        Line2D([], [], color=_HINT, linewidth=1.2, label="isotonic fit"),
        Patch(color=_BAND, label="where the fit of a calibrated model lies (95 %)"),
    ]


def _histogram_legend() -> "list[Artist]":
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Patch(color=_HINT, label="right answers, in the system's colour"),
        Patch(color=_WRONG, label="wrong answers"),
        Line2D([], [], color="black", linewidth=1.1, label="cost-optimal threshold"),
        Line2D([], [], color="black", linewidth=1.1, linestyle=":", label="reference threshold"),
    ]
