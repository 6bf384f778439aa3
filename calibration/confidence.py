"""From the tokens of an answer to one number in [0, 1].

Two things are decided here and nowhere else: which tokens belong to the answer (`answer_span`), and how
their log-probabilities, or the number the model wrote, become a confidence (`read_confidence`). Engines,
trainers and reports all use these functions, so a model is trained on the number it is read by.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from calibration.records import Elicitation, Generation

Readout = Literal["geometric_mean", "joint", "geometric_mean_all", "stated_greedy", "stated_expected"]
"""How a generation becomes a confidence.

`geometric_mean`: exp of the mean log-probability over the answer span. `joint`: exp of their sum.
`geometric_mean_all`: the mean over every sampled token, the end token included, as the original
specification has it. `stated_greedy`: the number the model wrote. `stated_expected`: the mean of the
number under the model's own distribution over 0.00 ... 1.00.
"""

READOUTS: dict[Elicitation, tuple[Readout, ...]] = {
    "plain": ("geometric_mean", "joint", "geometric_mean_all"),
    "stated": ("stated_greedy", "stated_expected"),
}
"""The readouts that each way of asking allows."""

SPAN_RULE = "answer-tokens@1"
"""Version of the rule in `answer_span`; a change of the rule changes this name."""

GRID = tuple(step / 100 for step in range(101))
"""The confidences that two decimals can state."""

_NUMBER = re.compile(r"confidence\s*:\s*(?P<number>\d+(?:\.\d+)?)(?P<percent>\s*%)?", re.IGNORECASE)
_ANSWER = re.compile(r"\s*(?:answer\s*:)?[ \t]*", re.IGNORECASE)


@dataclass(frozen=True)
class Reply:
    """What was read out of a generated text; the offsets are characters into it."""

    answer: str
    start: int
    stop: int
    stated: float | None = None
    number_start: int | None = None


def read_reply(text: str, elicitation: Elicitation) -> Reply:
    r"""Find the answer, and the stated number, in what a model generated.

    A plain reply is the answer, without the white space around it. A stated reply is
    "Answer: X\nConfidence: 0.83"; the first number after "Confidence:" counts when it lies in [0, 1] or
    is a percentage in [0, 100]. Anything else leaves `stated` None: it is never guessed.

    >>> read_reply("Answer: Paris\nConfidence: 0.83", "stated").stated
    0.83
    >>> read_reply("Answer: Paris\nConfidence: very", "stated").answer
    'Paris'
    """
    if elicitation == "plain":
        return _trimmed(text, 0, len(text))
    number = _NUMBER.search(text)
    opening = _ANSWER.match(text)
    start = opening.end() if opening else 0
    line_end = text.find("\n", start)
    stop = min(
        len(text) if line_end < 0 else line_end,
        number.start() if number and number.start() >= start else len(text),
    )
    reply = _trimmed(text, start, max(start, stop))
    if number is None:
        return reply
    value = float(number["number"]) / (100 if number["percent"] else 1)
    if value > 1:
        return reply
    return Reply(reply.answer, reply.start, reply.stop, value, number.start("number"))


def _trimmed(text: str, start: int, stop: int) -> Reply:
    piece = text[start:stop]
    start += len(piece) - len(piece.lstrip())
    answer = piece.strip()
    return Reply(answer, start, start + len(answer))


def answer_span(tokens: Sequence[str], start: int, stop: int) -> tuple[int, ...]:
    r"""Positions of the tokens that carry the answer: they overlap its characters and are not white space.

    Args:
        tokens: The text of each token; joined, they are the generated text (end tokens may follow).
        start: First character of the answer.
        stop: One past its last character.

    >>> answer_span(["Frank", " Morris", " ", "\n", "<eos>"], 0, 12)
    (0, 1)
    """
    span, offset = [], 0
    for position, token in enumerate(tokens):
        if offset < stop and offset + len(token) > start and token.strip():
            span.append(position)
        offset += len(token)
    return tuple(span)


def token_at(tokens: Sequence[str], character: int) -> int:
    """Position of the token that holds one character of the joined text."""
    offset = 0
    for position, token in enumerate(tokens):
        offset += len(token)
        if character < offset:
            return position
    raise IndexError(f"character {character} lies behind the last of {len(tokens)} tokens")


def geometric_mean(logprobs: Sequence[float]) -> float | None:
    """Length-normalised probability exp(mean log p), in [0, 1]; None for no tokens.

    >>> round(geometric_mean([math.log(0.5), math.log(0.5)]), 12)
    0.5
    """
    return math.exp(math.fsum(logprobs) / len(logprobs)) if logprobs else None


def joint(logprobs: Sequence[float]) -> float | None:
    """Probability of the whole sequence exp(sum log p), in [0, 1]; None for no tokens."""
    return math.exp(math.fsum(logprobs)) if logprobs else None


def expected(grid: Sequence[float]) -> float | None:
    """Mean of the stated number under the model's distribution over 0.00 ... 1.00.

    Args:
        grid: 101 probabilities; what they lack of 1 went to text that is no number, and is left out of
            the mean.

    Returns:
        In [0, 1]; None when numbers have less than half of the probability: the model was not stating one.
    """
    mass = math.fsum(grid)
    if mass < 0.5:
        return None
    return min(1.0, math.fsum(p * c for p, c in zip(grid, GRID, strict=True)) / mass)


def read_confidence(generation: Generation, readout: Readout) -> float | None:
    """One generation's confidence in [0, 1], or None when it has none under this readout.

    None means unreadable (an empty answer, no number stated). It is counted and reported, and a router
    escalates it; it is never replaced by a number.
    """
    if readout == "stated_greedy":
        return generation.stated
    if readout == "stated_expected":
        return None if generation.stated is None else expected(generation.stated_grid)
    if readout == "geometric_mean_all":
        return geometric_mean(generation.logprobs)
    in_span = [generation.logprobs[position] for position in generation.span]
    return joint(in_span) if readout == "joint" else geometric_mean(in_span)
