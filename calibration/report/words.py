"""How a report writes numbers and names for people; pictures, page and markdown share it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

READOUTS = {
    "geometric_mean": "answer probability",
    "joint": "joint answer probability",
    "geometric_mean_all": "probability of all tokens",
    "stated_greedy": "stated number",
    "stated_expected": "expected stated number",
}
"""What a readout is called; any other name is shown as it is."""

MAPS = {"none": "as is", "platt": "+ Platt", "platt_crossfit": "+ Platt, cross-fitted"}
"""What a post-hoc map is called; any other name is shown as it is."""

OUTCOMES = {"pass": "pass", "fail": "fail", "undecided": "can't tell"}
"""What an outcome is called: undecided means not enough questions."""


SIGNS = {"pass": "✓", "fail": "✗", "undecided": "?"}
"""What stands beside an outcome, for readers who do not see its colour."""


@dataclass(frozen=True)
class Criterion:
    """How one line of a verdict is written."""

    name: str
    short: str
    """What a sentence says that a system fails on."""
    sign: str = "≥"
    """How the value must stand to the threshold."""


CRITERIA = {
    "rms_hle_reduction": Criterion("RMS error removed, as in HLE", "calibration error"),
    "rms_reduction": Criterion("RMS error removed, all bins", "calibration error"),
    "brier_after_map": Criterion("Brier skill gained, both mapped", "gain over the mapped base"),
    "auroc_after_map": Criterion("AUROC gained, both mapped", "ranking"),
    "accuracy": Criterion("change of accuracy, relative", "accuracy"),
    "readable": Criterion("readable confidences", "readability"),
    "effective_levels": Criterion("effective levels of confidence", "variety of confidences"),
    "top_two_share": Criterion("share of the top two levels", "variety of confidences", "≤"),
    "shift": Criterion("RMS error removed, unseen topics", "unseen topics", ">"),
    "answer_types": Criterion("RMS error removed, worst type", "answer types", ">"),
    "span_low": Criterion("confidence reaches down to", "span of confidences", "≤"),
    "span_high": Criterion("confidence reaches up to", "span of confidences"),
    "held_out": Criterion("measured on held-out questions", "held-out questions"),
}


FIGURES = {
    "accuracy": ("accuracy", "Share of right answers, readable or not"),
    "mean_confidence": ("mean confidence", "Of the readable answers; above the accuracy: overconfident"),
    "rms": ("RMS", "Root mean square gap between confidence and accuracy over bins of 100 answers"),
    "rms_floor": ("RMS floor", "What a perfectly calibrated model with these confidences scores by chance"),
    "rms_debiased": ("RMS, debiased", "What is left of it without chance's share"),
    "rms_hle": ("RMS, HLE", "As published with HLE: the most confident bin is never counted"),
    "l1": ("L1", "Mean gap over the same bins"),
    "max_error": ("largest gap", "Of the worst of these bins"),
    "ece": ("ECE", "Mean gap over 15 bins of equal width, as most papers report it"),
    "smooth_ece": ("smooth ECE", "The gap without bins, smoothed over its own width"),
    "brier": ("Brier", "Mean squared difference between confidence and correctness; lower is better"),
    "miscalibration": ("miscalibration", "Part of the Brier score that a perfect post-hoc map would remove"),
    "discrimination": ("discrimination", "What the confidence knows of the answers; no map adds to it"),
    "uncertainty": ("uncertainty", "Brier score of a constant at the accuracy"),
    "log_loss": ("log loss", "Mean of -ln of the probability given to what happened; lower is better"),
    "auroc": ("AUROC", "Probability that a right answer is more confident than a wrong one; .5 is chance"),
    "average_precision": ("average precision", "Mean accuracy of the answers kept, over the right ones"),
    "aurc": ("AURC", "Mean share of wrong answers among the most confident; lower is better"),
    "excess_aurc": ("excess AURC", "AURC beyond that of an oracle with the same accuracy"),
    "augrc": ("AUGRC", "Mean share of all answers that are wrong and kept; lower is better"),
    "rejection_ratio": ("rejection ratio", "Share of an oracle's gain over random rejection; 0 is chance"),
    "levels": ("distinct confidences", "How many values occur"),
    "effective_levels": ("effective levels", "How many are really used, to two decimals; 1 for a constant"),
    "top_two_share": ("top two", "Share of the two most frequent confidences"),
}
"""Name and meaning of every figure of a row, in the order in which they are shown."""


def readout(name: str) -> str:
    """The words for a readout."""
    return READOUTS.get(name, name)


def post_hoc(name: str) -> str:
    """The words for a post-hoc map."""
    return MAPS.get(name, name)


def criterion(name: str) -> Criterion:
    """The words for a line of a verdict; an unknown one is shown by its own name.

    >>> criterion("top_two_share").sign, criterion("new_line").name
    ('≤', 'new line')
    """
    plain = name.replace("_", " ")
    return CRITERIA.get(name, Criterion(plain, plain))


def number(value: float | None, digits: int | None = None) -> str:
    """A number as tables write it: no zero before the point, n/a for no value.

    Args:
        value: What to write.
        digits: Behind the point; unset, three for shares and one for what is larger.

    >>> number(0.0871), number(-0.5, 2), number(1.0, 1), number(58.23), number(None)
    ('.087', '-.50', '1.0', '58.2', 'n/a')
    """
    if value is None:
        return "n/a"
    digits = digits if digits is not None else 3 if abs(value) < 2 else 1
    text = f"{abs(value):.{digits}f}"
    sign = "-" if value < 0 and float(text) else ""
    return sign + (text[1:] if text.startswith("0.") else text)


def figure(value: float | None) -> str:
    """A figure of a row: a count stays whole.

    >>> figure(1278), figure(0.25), figure(None)
    ('1278', '.250', 'n/a')
    """
    return str(value) if isinstance(value, int) else number(value)


def joined(names: Iterable[str]) -> str:
    """Names in a sentence, each once.

    >>> joined(["accuracy", "ranking", "accuracy", "variety"])
    'accuracy, ranking and variety'
    """
    *others, last = dict.fromkeys(names)
    return f"{', '.join(others)} and {last}" if others else last


def interval(low: float | None, high: float | None, digits: int | None = None) -> str:
    """Both ends of an interval; n/a when there is none.

    >>> interval(0.12, 0.3), interval(None, None), interval(0.1, None, 1)
    ('.120 to .300', 'n/a', '.1 to n/a')
    """
    return "n/a" if low is None and high is None else f"{number(low, digits)} to {number(high, digits)}"


def amount(value: float) -> str:
    """A sum of money with three significant digits, never in powers of ten.

    >>> amount(0.00123456), amount(12.3456), amount(0.0), amount(1234.5)
    ('0.00123', '12.3', '0', '1,234')
    """
    if value == 0:
        return "0"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def duration(seconds: float) -> str:
    """A span of time in its two largest units.

    >>> duration(0.04), duration(8.26), duration(75), duration(3720)
    ('0.0 s', '8.3 s', '1 min 15 s', '1 h 02 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def shorten(text: str, limit: int = 160) -> str:
    """At most `limit` characters, the last an ellipsis where something was cut.

    >>> shorten("a long answer", 7)
    'a long…'
    """
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
