"""What judging may still cost."""

from calibration.judges.ledger import Spent
from calibration.judges.models import ModelFacts
from calibration.judges.provider import Usage


class Money:
    """Dollars spent on one model and dollars held for the requests under way.

    A request is held at the most that it can cost until its cost is known, so that the limit cannot be
    passed. One whose cost is never told counts as that much for good.
    """

    def __init__(self, facts: ModelFacts | None, limit: float | None, before: Spent) -> None:
        """Begin with what was spent in earlier rounds."""
        self._facts, self._limit, self._held = facts, limit, 0.0
        self.is_known = facts is not None and facts.usd(Usage()) is not None
        self.spent = self._usd(before.used) + self._usd(before.at_most)

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
        # Without prices no limit can have been set, and nothing is shown.
        return (self._facts.usd(usage) if self._facts else None) or 0.0
