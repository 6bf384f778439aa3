import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from calibration.artifacts import Store
from calibration.backends.ledger import Call, Ledger
from calibration.errors import ConfigurationError


@pytest.fixture
def ledger():
    return Ledger(Store.from_environment())


def call(key="k", **changes):
    settings = {"kind": "train", "environment": None, "gpu": "H100", "minutes": 30, "call": "fc-1"}
    price = {"usd_per_hour": 4.0, "priced": "2026-05-07", "begun": datetime.now(UTC)}
    return Call(key=key, **{**settings, **price, **changes})


def test_a_call_without_an_id_is_set_aside_but_cannot_be_found(ledger):
    ledger.reserve(call(call=""), max_usd=2.0)
    assert ledger.find("k") is None
    assert [open_call.most_usd for open_call in ledger.open()] == [2.0]
    ledger.note(call())
    assert ledger.find("k").call == "fc-1"


def test_open_calls_and_those_that_ended_lately_count_against_the_budget(ledger):
    ledger.note(call("open"))
    ledger.note(call("ended"))
    ledger.close(ledger.find("ended"), "done", 1800.0)
    # 2 set aside, 2 spent, and 2 for the new one.
    ledger.check(call("new"), max_usd=6.0)
    with pytest.raises(
        ConfigurationError, match=r"up to 2\.00 USD; of 5\.99, 2\.00 were spent .* 2\.00 are set"
    ):
        ledger.reserve(call("new"), max_usd=5.99)
    assert ledger.find("new") is None


def test_its_own_reservation_does_not_count_against_a_call_that_is_begun_again(ledger):
    ledger.reserve(call(call=""), max_usd=2.0)
    ledger.reserve(call(call=""), max_usd=2.0)


def test_what_was_spent_long_ago_does_not_count(ledger):
    ledger.note(call())
    ledger.close(call(), "done", 3600.0)
    assert ledger.spent() == 4.0
    assert ledger.spent(timedelta(0)) == 0.0


def test_working_time_of_earlier_calls_for_the_same_work_is_not_booked_twice(ledger):
    for outcome, worked in (("cancelled", 100.0), ("failed", 250.0), ("done", 300.0)):
        ledger.note(call())
        ledger.close(call(), outcome, worked)
    assert [cost.seconds for cost in ledger.costs()] == [100.0, 150.0, 50.0]
    assert ledger.open() == []


def test_an_open_call_has_outgrown_the_budget_only_when_it_costs_more_than_was_set_aside_and_than_there_is(
    ledger,
):
    ledger.note(call())
    # 2 USD were set aside for 1800 seconds.
    assert not ledger.has_outgrown(call(), 1800.0, max_usd=1.0)
    assert not ledger.has_outgrown(call(), 2700.0, max_usd=3.0)
    assert ledger.has_outgrown(call(), 2701.0, max_usd=3.0)
    # Beside another one there is less.
    ledger.note(call("other"))
    assert ledger.has_outgrown(call(), 1801.0, max_usd=4.0)


def test_two_runs_never_set_the_same_money_aside(ledger):
    with ThreadPoolExecutor(8) as threads:
        tries = [threads.submit(ledger.reserve, call(f"k{n}"), max_usd=5.0) for n in range(8)]
    assert [one.exception() is None for one in tries].count(True) == 2
    assert len(ledger.open()) == 2


def test_two_who_want_the_same_work_take_turns_and_others_do_not_wait(ledger):
    inside, most = set(), []

    async def work(key, name):
        async with ledger.alone(key):
            inside.add(name)
            most.append(set(inside))
            await asyncio.sleep(0)
            inside.discard(name)

    async def all_at_once():
        await asyncio.wait_for(asyncio.gather(work("a", "a1"), work("a", "a2"), work("b", "b")), 30)

    asyncio.run(all_at_once())
    assert {"a1", "b"} in most or {"a2", "b"} in most
    assert not any({"a1", "a2"} <= together for together in most)
