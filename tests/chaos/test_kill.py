"""`kill -9` of all the processes of a run."""

import random

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

INSTANTS, SEED = 20, 9
LONGEST = 0.4
"""Of the time that an undisturbed run takes here; no attempt is left alone for longer."""


def test_killed_at_every_task_border_it_ends_as_an_undisturbed_run(place, calm):
    borders = list(calm.attempts[0].stages())
    attempt = place.run().follow(until=borders[0])
    while attempt.process.returncode != 0:
        assert attempt.process.returncode == -9, attempt.words
        borders = [stage for stage in borders if stage not in attempt.stages()]
        attempt = place.resume().follow(until=borders[0] if borders else None)

    assert len(place.attempts) > 8
    assert place.numbers() == calm.numbers()
    place.check_nothing_was_repeated()


def test_killed_at_every_point_where_something_becomes_durable(light, tmp_path):
    undisturbed = light.run().done()
    numbers, points = light.numbers(), len(light.book.read_text().splitlines())
    assert points > 2 * len(undisturbed.stages())
    for point in range(1, points + 1):
        light.begin_anew()
        killed = light.run(CHAOS_KILL_AT=str(point)).follow()
        assert killed.process.returncode == -9, f"point {point} of {points}: {killed.words}"
        light.resume().done()
        assert light.numbers() == numbers, f"point {point}"
        light.check_no_call_was_repeated()  # a job without its note is not finished


def test_killed_at_twenty_random_instants_it_ends_as_an_undisturbed_run(place, calm):
    instants = random.Random(SEED)  # noqa: S311 - no secret
    attempt, kills, caught = place.run(), 0, []
    while kills < INSTANTS:
        if attempt.kill_after(instants.uniform(0, LONGEST * calm.seconds)):
            kills += 1
            caught.append(len(attempt.stages()))
            attempt = place.go_on()
        else:
            check(place, calm)
            place.begin_anew()
            attempt = place.run()
    attempt.done()
    check(place, calm)
    assert len(set(caught)) > 3, f"kills should meet a run at many stages; these were over: {caught}"


def check(place, calm):
    assert place.attempts[-1].process.returncode == 0, place.attempts[-1].words
    assert place.numbers() == calm.numbers()
    place.check_nothing_was_repeated()
