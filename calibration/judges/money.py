"""What judging may still cost, and what it has cost."""

from dataclasses import dataclass

from calibration.judges.ledger import Spent
from calibration.judges.models import ModelFacts
from calibration.judges.provider import Usage


class Money:
    """Dollars spent on one model and dollars held for the requests under way.

    A request is held at the most that it can cost until its cost is known, so that the limit cannot be
    passed. One whose cost is never told counts as that much for good.
    """

    def __init__(self, facts: ModelFacts | None, limit: float | None, spent: float) -> None:
        """Begin with what was spent in earlier rounds."""
        self._facts, self._limit, self._held = facts, limit, 0.0
        self.is_known = facts is not None and facts.usd(Usage()) is not None
        self.spent = spent

    def allows(self, at_most: Usage) -> bool:
        """Whether a request that uses at most this can go out."""
        return self._limit is None or self.spent + self._held + self._usd(at_most) <= self._limit

    def hold(self, at_most: Usage) -> None:
        """A request goes out."""
        self._held += self._usd(at_most)

    def settle(self, at_most: Usage, used: Usage) -> float:
        """It is over; return what it cost."""
        cost = self._usd(used)
        self._held -= self._usd(at_most)
        self.spent += cost
        return cost

    def _usd(self, usage: Usage) -> float:
        return _usd(self._facts, usage)


def dollars(facts: ModelFacts | None, spent: Spent) -> float:
    """What requests cost; one whose cost nobody told, as much as it can have cost."""
    return _usd(facts, spent.used) + _usd(facts, spent.at_most)


def _usd(facts: ModelFacts | None, usage: Usage) -> float:
    # Without prices no limit can have been set, and nothing is shown.
    return (facts.usd(usage) if facts else None) or 0.0


@dataclass(frozen=True)
class Cost:
    """What the requests of one kind to one model used, and what that comes to."""

    provider: str
    model: str
    spent: Spent
    facts: ModelFacts | None
    """With the prices of such requests."""

    @property
    def usd(self) -> float | None:
        """Dollars for what the service counted; None where the price is not known."""
        return self.facts.usd(self.spent.used) if self.facts else None

    def __str__(self) -> str:
        """In one line."""
        used, unknown = self.spent.used, self.spent.unknown
        tokens = f"{used.prompt:,} tokens in, {used.output + used.thoughts:,} out"
        priced = self.usd is not None and self.facts
        dollars = f"${self.usd:.4f} at the prices of {priced.as_of}" if priced else "price unknown"
        missing = f"; {unknown} requests of unknown cost beside it" if unknown else ""
        return f"{self.spent.requests:,} requests, {tokens}, {dollars}{missing}"
