from datetime import UTC, datetime, timedelta

from calibration.artifacts import Store
from calibration.backends.ledger import Call, Ledger
from calibration.spending import Spending, spent_on_gpus


def test_a_run_is_charged_for_its_own_calls_since_it_began():
    store = Store.from_environment()
    ledger, now = Ledger(store), datetime.now(UTC)
    for key, seconds in [("ours", 1800), ("theirs", 3600), ("ours", 3600)]:
        call = Call(
            key=key,
            kind="train",
            environment=None,
            call="c",
            gpu="A100",
            minutes=60,
            usd_per_hour=2.0,
            priced="2026-01-01",
            begun=now,
        )
        ledger.note(call)
        ledger.close(call, "done", seconds)
    # The second call of the same work goes on where the first was; its seconds count from there.
    assert spent_on_gpus(store, {"ours"}, now).gpu_usd == 2.0
    assert spent_on_gpus(store, {"ours"}, now + timedelta(hours=1)).usd == 0
    assert spent_on_gpus(store, set(), now).usd == 0


def test_what_is_not_known_is_said():
    both = Spending(judge_usd=0.5, unpriced=2) + Spending(gpu_usd=1.25, unpriced=1)
    assert str(both) == "$1.75 (judge $0.50, GPUs $1.25, and 3 requests of unknown cost)"
