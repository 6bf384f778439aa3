"""The calls that were begun on Modal and not yet collected."""

from datetime import UTC, datetime

from calibration.artifacts import Store
from calibration.backends.ledger import Call, Ledger
from calibration.backends.modal import Modal
from calibration.errors import ConfigurationError


async def listed(store: Store) -> list[str]:
    """One line for each open call, and what was spent."""
    ledger = Ledger(store)
    lines = [await _line(call) for call in ledger.open()]
    spent, ever = ledger.spent(), sum(cost.usd for cost in ledger.costs())
    return [*lines, f"{spent:.2f} USD spent within 24 hours, {ever:.2f} in all (working time at list prices)"]


async def cancelled(store: Store, keys: list[str]) -> list[str]:
    """Stop open calls; no key means all of them.

    Raises:
        ConfigurationError: No open call has a key that begins so.
    """
    ledger = Ledger(store)
    known = ledger.open()
    for key in keys:
        if not any(call.key.startswith(key) for call in known):
            names = ", ".join(call.key[:12] for call in known)
            raise ConfigurationError(
                f"key must be that of an open call, {names or 'of which there are none'}; got {key!r}"
            )
    chosen = [call for call in known if not keys or call.key.startswith(tuple(keys))]
    for call in chosen:
        if call.call:
            await Modal(environment=call.environment).cancel(call, store)
        else:
            ledger.forget(call)
    return [f"cancelled {call.kind} {call.key[:12]} {call.call}" for call in chosen]


async def _line(call: Call) -> str:
    minutes = (datetime.now(UTC) - call.begun).total_seconds() / 60
    if not call.call:
        state = "was never begun, or its id was lost"
    elif await Modal(environment=call.environment).is_over(call):
        state = "over; the next run collects it"
    else:
        state = "going on"
    return (
        f"{call.key[:12]}  {call.kind:6}  {call.gpu:10}  begun {minutes:.0f} minutes ago, "
        f"up to {call.most_usd:.2f} USD  {call.call}  {state}"
    )
