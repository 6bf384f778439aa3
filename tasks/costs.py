"""What judging costs, in the Prefect UI."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prefect.artifacts import acreate_table_artifact

from calibration.judges import Judge
from calibration.judges.cascade import model_behind
from calibration.judges.money import Cost
from tasks.journal import current_journal
from tasks.telling import tell

KEY = "judging-costs"


@asynccontextmanager
async def showing_costs(judge: Judge) -> AsyncIterator[None]:
    """However the body ends, show what asking the judge's model has cost, in this run and in all."""
    model, journal = model_behind(judge), current_journal()
    journal.asked = model
    try:
        yield
    finally:
        if model:
            shown = [_row("this run", cost) for cost in model.costs(journal.asker)]
            shown += [_row("all runs", cost) for cost in model.costs()]
            words = f"Costs of judging by {judge.version}"
            await tell(lambda: acreate_table_artifact(shown, key=KEY, description=words))


def _row(scope: str, cost: Cost) -> dict[str, object]:
    """The dollars among the first: the page shows seven columns, and hides the rest behind a scroll bar."""
    used = cost.spent.used
    return {
        "in": scope,
        "model": cost.model,
        "dollars": "price unknown" if cost.usd is None else round(cost.usd, 6),
        "requests": cost.spent.requests,
        "tokens in": used.prompt,
        "of them cached": used.cached,
        "tokens out": used.output,
        "thoughts": used.thoughts,
        "requests of unknown cost": cost.spent.unknown,
        "service": cost.provider,
        "prices of": str(cost.facts.as_of) if cost.facts else "",
    }
