"""What a re-measurement found, for people: a page, markdown, and plain text for a terminal."""

from collections.abc import Mapping

from calibration.drift import Change, Comparison, Decision, Drift
from calibration.report import words
from calibration.report.page import RunInfo, table, template
from calibration.report.words import interval, number

NAMES = {
    "accuracy": "accuracy",
    "mean_confidence": "mean confidence",
    "gap": "gap after the map",
    "rms": "RMS error after the map",
    "auroc": "AUROC",
}
"""What a figure is called."""
MEANINGS = {
    "accuracy": "Share of right answers",
    "mean_confidence": "As the model gives it, before the map",
    "gap": "Mean probability by the policy's map, minus the accuracy; 0: the map fits on average",
    "rms": "RMS calibration error of those probabilities, without what chance adds",
    "auroc": "Probability that a right answer is more confident than a wrong one; no map changes it",
}
BADGES: Mapping[Decision, str] = {
    "unchanged": "pass",
    "refit": "fail",
    "retrain": "fail",
    "cannot tell": "undecided",
}
"""The colour of a decision."""
_HEAD = ("figure", "then", "now", "change", "interval")


def answer(drift: Drift, run: str) -> str:
    """What was found, and what to do, in sentences."""
    name = drift.model if drift.system == "base" else drift.system
    todo = {
        "unchanged": f"The policy of {drift.base} still holds.",
        "refit": f"A new map suffices: follow the policy of {run} in place of that of {drift.base}, "
        "which is marked as stale.",
        "retrain": f"No new map mends that: train again. The policy of {drift.base} is marked as stale.",
        "cannot tell": f"The policy of {drift.base} stays in force.",
    }[drift.decision]
    return f"{name}, measured again: {drift.decision}. {_sentence(drift.reason)} {todo}"


def summary(drift: Drift, run: str) -> str:
    """The answer, and the figures in columns, as plain text."""
    lines = [answer(drift, run)]
    for comparison in drift.comparisons:
        found = f"{heading(comparison)}: {comparison.decision}. {needs(comparison)}"
        lines += ["", found.rstrip(), *_columns(comparison)]
    return "\n".join(lines) + "\n"


def markdown(drift: Drift, info: RunInfo) -> str:
    """The same in markdown."""
    parts = [f"# {info.experiment}: measured again", answer(drift, info.run)]
    for comparison in drift.comparisons:
        found = f"**{comparison.decision}**: {_sentence(comparison.reason)} {needs(comparison)}"
        parts += [f"## {heading(comparison)}", found.rstrip()]
        if comparison.changes:
            parts.append(table(_HEAD, [_cells(change) for change in comparison.changes]))
    parts.append(f"{info.run}, started {info.started}, compared with {drift.base}")
    return "\n\n".join(parts) + "\n"


def html(drift: Drift, info: RunInfo) -> str:
    """The same as one page that needs no other."""
    return template("drift.html.jinja").render(
        drift=drift,
        info=info,
        answer=answer(drift, info.run),
        heading=heading,
        needs=needs,
        sentence=_sentence,
        cells=_cells,
        badge=BADGES,
        meanings=MEANINGS,
        system=drift.model if drift.system == "base" else drift.system,
        readout=words.readout(drift.readout),
    )


def heading(comparison: Comparison) -> str:
    """What was compared, in words."""
    if comparison.questions == "new questions":
        text = f"{comparison.n_after} answers to new questions, {comparison.n_before} to old ones"
    else:
        text = f"{comparison.n_after} answers to the same questions"
        text += f", {comparison.n_identical} of them exactly as before"
    return text + (f"; {comparison.n_left_out} left out" if comparison.n_left_out else "")


def needs(comparison: Comparison) -> str:
    """How many answers would tell, as a sentence; empty where these tell."""
    if comparison.decision != "cannot tell":
        return ""
    if comparison.needed is None:
        return "The old answers are too few for any number of new ones to tell."
    return f"If nothing changed, {comparison.needed} answers would probably show it."


def _sentence(reason: str) -> str:
    return f"{reason[0].upper()}{reason[1:]}."


def _cells(change: Change) -> tuple[str, ...]:
    figures = (change.before, change.after, change.change)
    return (NAMES[change.name], *map(number, figures), interval(change.low, change.high))


def _columns(comparison: Comparison) -> list[str]:
    rows = [_HEAD, *(_cells(change) for change in comparison.changes)] if comparison.changes else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.rjust(w) if i else text.ljust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
