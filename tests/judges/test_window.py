"""The window, by a clock that the test turns."""

import asyncio
import inspect
import time

import pytest

from calibration.judges.window import Window


class Clock:
    """Seconds that pass only when somebody sleeps, or the test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def window(clock):
    return Window(100, clock=clock, sleep=clock.sleep, jitter=lambda: 1.0)


async def fill(window, clock):
    """Take all the room there is, a moment later; return when each was let in."""
    clock.now += 0.001
    return [await window.enter() for _ in range(int(window.limit) - window.inside)]


def round_trip(window, clock):
    """Fill the window and answer everything."""

    async def go():
        inside = await fill(window, clock)
        for entered in inside:
            window.answered(entered)
        for _ in inside:
            window.leave()

    asyncio.run(go())


def refuse(window, clock, retry_after=None):
    """Fill the window and refuse the first; the others are answered."""

    async def go():
        first, *others = await fill(window, clock)
        window.refused(first, retry_after)
        window.leave()
        for entered in others:
            window.answered(entered)
            window.leave()

    asyncio.run(go())


def test_a_clock_that_is_set_changes_nothing():
    assert inspect.signature(Window).parameters["clock"].default is time.monotonic


def test_it_begins_with_twenty_or_what_it_may(window):
    assert window.limit == 20
    assert Window(8).limit == 8


def test_it_opens_to_the_top_while_nothing_is_refused_and_no_further(window, clock):
    for _ in range(8):
        round_trip(window, clock)
    assert window.limit == 100


def test_it_does_not_open_for_room_that_is_not_used(window):
    async def one():
        window.answered(await window.enter())

    asyncio.run(one())
    assert window.limit == 20


def test_a_refusal_closes_it_by_a_quarter_once_for_all_that_were_under_way(window, clock):
    async def go():
        for entered in await fill(window, clock):
            window.refused(entered, 0.0)
            window.leave()

    asyncio.run(go())
    assert window.limit == 15
    asyncio.run(go())
    assert window.limit == 11.25


def test_after_a_refusal_it_opens_by_about_one_a_round_trip(window, clock):
    refuse(window, clock, 0.0)
    before = window.limit
    round_trip(window, clock)
    assert before < window.limit <= before + 1.1


def test_it_never_closes_altogether(window, clock):
    for _ in range(40):
        refuse(window, clock, 0.0)
    assert window.limit == 1
    for _ in range(3):
        round_trip(window, clock)
    assert window.limit >= 2


def test_nobody_enters_before_the_service_allows_it(window, clock):
    refuse(window, clock, 2.5)
    refused = clock.now
    asyncio.run(window.enter())
    assert clock.now - refused == pytest.approx(2.5)


def test_a_shorter_pause_does_not_shorten_a_longer_one(window, clock):
    async def go():
        first, second = await window.enter(), await window.enter()
        window.refused(first, 10.0)
        window.refused(second, 1.0)

    asyncio.run(go())
    assert window.resume_at == clock.now + 10


def test_without_a_hint_pauses_double_up_to_a_minute_until_an_answer_comes(window, clock):
    pauses = []
    for _ in range(8):
        entered = asyncio.run(window.enter())
        window.refused(entered, None)
        window.leave()
        pauses.append(window.resume_at - clock.now)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    entered = asyncio.run(window.enter())
    window.answered(entered)
    window.refused(entered, None)
    assert window.resume_at - clock.now == 1


def test_it_knows_how_long_nothing_will_have_been_answered(window, clock):
    clock.now += 7
    assert window.unanswered_for() == 7
    window.refused(clock.now, 60.0)
    assert window.unanswered_for() == 67


def test_whoever_waits_enters_as_others_leave_and_never_more_than_there_is_room_for(clock):
    async def go():
        window = Window(2, clock=clock, sleep=clock.sleep)
        inside = []

        async def work():
            await window.enter()
            inside.append(window.inside)
            await asyncio.sleep(0)
            window.leave()

        await asyncio.gather(*(work() for _ in range(50)))
        assert window.inside == 0
        return inside

    inside = asyncio.run(go())
    assert len(inside) == 50
    assert max(inside) == 2
