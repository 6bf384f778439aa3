"""What a run has cost beyond this machine: requests to a judge's model, and GPUs."""

from collections.abc import Collection
from datetime import datetime

from calibration.artifacts import Store
from calibration.backends.ledger import Ledger
from calibration.judges.language import LanguageJudge
from calibration.schema import Schema


class Spending(Schema):
    """Dollars at list prices."""

    judge_usd: float = 0.0
    gpu_usd: float = 0.0
    unpriced: int = 0
    """Requests to a judge's model that are not in it: the service did not say what they used, or the price is
    not known."""

    @property
    def usd(self) -> float:
        """All of it."""
        return self.judge_usd + self.gpu_usd

    def __add__(self, other: "Spending") -> "Spending":
        """Both together."""
        return Spending(
            judge_usd=self.judge_usd + other.judge_usd,
            gpu_usd=self.gpu_usd + other.gpu_usd,
            unpriced=self.unpriced + other.unpriced,
        )

    def __str__(self) -> str:
        """In one line."""
        beside = f", and {self.unpriced} requests of unknown cost" if self.unpriced else ""
        return f"${self.usd:.2f} (judge ${self.judge_usd:.2f}, GPUs ${self.gpu_usd:.2f}{beside})"


def spent_on_judge(model: LanguageJudge, asker: str) -> Spending:
    """What the requests to a judge's model cost that were made on behalf of someone; see `asking_as`."""
    costs = model.costs(asker)
    return Spending(
        judge_usd=sum(cost.usd or 0.0 for cost in costs),
        unpriced=sum(cost.spent.requests if cost.usd is None else cost.spent.unknown for cost in costs),
    )


def spent_on_gpus(store: Store, work: Collection[str], since: datetime) -> Spending:
    """What the calls for some work cost that have ended since."""
    booked = Ledger(store).costs() if work else []
    return Spending(gpu_usd=sum(cost.usd for cost in booked if cost.key in work and cost.ended >= since))
