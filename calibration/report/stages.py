"""What the Prefect UI shows of one stage, as markdown."""

from collections import Counter
from collections.abc import Mapping

from calibration.report.page import data_uri, table
from calibration.report.words import number, readout
from calibration.stages.summary import PICTURE, Summary

MOST_SHOWN = 10
"""Reasons that have a line of their own."""


def answers_page(label: str, summary: Summary, picture: bytes | None) -> str:
    """One system's figures and its reliability diagram."""
    head = ("read by", "answers", "accuracy", "confidence", "RMS", "floor", "AUROC", "unreadable")
    rows = [
        (
            *(readout(row.readout), str(row.n), number(row.accuracy), number(row.mean_confidence)),
            *(number(row.rms), number(row.rms_floor), number(row.auroc)),
            str(row.n_unreadable),
        )
        for row in summary.rows
    ]
    unjudged = sum(summary.unjudged.values())
    parts = [
        f"# Answers: {label}",
        f"{summary.answers} answers, {unjudged} of them unjudged.",
        table(("unjudged because", "answers"), _counted(summary.unjudged)) if unjudged else "",
        "On the questions of the calibration and validation splits:" if rows else "",
        table(head, rows) if rows else "Every question is for training or for the report's test.",
        f"![reliability diagram]({data_uri(PICTURE, picture)})" if picture else "",
    ]
    return "\n\n".join(filter(None, parts))


def data_page(method: str, rows: int, left_out: Mapping[str, int]) -> str:
    """What a method learns from, and what it can't."""
    parts = [
        f"# Training data: {method}",
        f"{rows} rows to learn from; {sum(left_out.values())} answers or pairs are left out.",
        table(("left out because", "count"), _counted(left_out)) if left_out else "",
    ]
    return "\n\n".join(filter(None, parts))


def training_page(method: str, figures: Mapping[str, float]) -> str:
    """The last figures of a training."""
    rows = [(name.replace("_", " "), number(value)) for name, value in sorted(figures.items())]
    return f"# Training: {method}\n\n{table(('figure', 'at the end'), rows)}"


def _counted(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """The largest first; many small ones as one."""
    ordered = Counter(counts).most_common()
    shown = [(what, str(count)) for what, count in ordered[:MOST_SHOWN]]
    rest = sum(count for _, count in ordered[MOST_SHOWN:])
    return [*shown, ("other reasons", str(rest))] if rest else shown
