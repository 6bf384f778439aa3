"""What is known of the models that can judge: prices, thinking, and when they are gone.

A table of facts with their date and source, and nothing that a model decides by itself. An experiment can
correct and extend it under `judge.facts`.
"""

import re
from datetime import date

from calibration.judges.provider import Usage
from calibration.schema import Schema


class ModelFacts(Schema):
    """One model. Prices are US dollars per million tokens, outside of batches."""

    as_of: date
    """When the facts were looked up."""
    source: str
    """Where."""
    input_usd: float | None = None
    """Price of a million tokens of the prompt; unset where it is not known."""
    cached_input_usd: float | None = None
    """Price of a million tokens of the prompt that were cached; unset, that of any other."""
    output_usd: float | None = None
    """Price of a million tokens of the reply, thoughts included."""
    thinking: tuple[str, ...] = ()
    """The amounts of thinking that can be asked for, the least first: levels, or numbers of tokens. Empty
    where they are not known; then none is asked for."""
    retired_on: date | None = None
    """The day from which it is not served, or another model in its place."""
    replacement: str | None = None
    """The model to use instead."""

    def usd(self, usage: Usage) -> float | None:
        """What these tokens cost; None when the price is not known.

        >>> KNOWN["gemini-3.5-flash-lite"].usd(Usage(prompt=1_000_000, output=100_000))
        0.55
        """
        if self.input_usd is None or self.output_usd is None:
            return None
        cached_usd = self.input_usd if self.cached_input_usd is None else self.cached_input_usd
        return (
            (usage.prompt - usage.cached) * self.input_usd
            + usage.cached * cached_usd
            + (usage.output + usage.thoughts) * self.output_usd
        ) / 1e6


_LISTED = {"as_of": date(2026, 11, 23), "source": "ai.google.dev/gemini-api/docs, deprecations and pricing"}
_SHUT = {**_LISTED, "retired_on": date(2026, 6, 1), "replacement": "gemini-3.5-flash-lite"}
_LEVELS = ("minimal", "low", "medium", "high")

KNOWN = {
    "gemini-3.5-flash-lite": ModelFacts(
        **_LISTED, input_usd=0.30, cached_input_usd=0.03, output_usd=2.50, thinking=_LEVELS
    ),
    "gemini-3.1-flash-lite": ModelFacts(
        **_LISTED, input_usd=0.25, cached_input_usd=0.025, output_usd=1.50, thinking=_LEVELS
    ),
    "gemini-3.8-flash": ModelFacts(**_LISTED, thinking=("low", "medium", "high")),
    "gemini-2.5-flash-lite": ModelFacts(**_LISTED, input_usd=0.10, output_usd=0.40, thinking=("0",)),
    "gemini-2.5-flash": ModelFacts(
        **_LISTED,
        input_usd=0.30,
        output_usd=2.50,
        thinking=("0",),
        retired_on=date(2026, 12, 1),
        replacement="gemini-3.5-flash-lite",
    ),
    "gemini-2.5-pro": ModelFacts(**_LISTED, retired_on=date(2026, 12, 1), replacement="gemini-3.8-flash"),
    "gemini-2.0-flash": ModelFacts(**_SHUT),
    "gemini-2.0-flash-lite": ModelFacts(**_SHUT),
}
"""By family: `gemini-2.0-flash-001` is found under `gemini-2.0-flash`."""

_VERSION = re.compile(r"(?:-(?:\d{3}|\d{2}-\d{2,4}|\d{4}-\d{2}-\d{2}|\d{8}|preview|exp))+$")


def family(model: str) -> str:
    """The name of a model without the version behind it; other letters are another family.

    >>> family("models/gemini-2.0-flash-001"), family("gemini-3.1-flash-lite-preview-06-17")
    ('gemini-2.0-flash', 'gemini-3.1-flash-lite')
    >>> family("gemini-3.5-flash") == family("gemini-3.5-flash-lite")
    False
    """
    return _VERSION.sub("", model.removeprefix("models/"))
