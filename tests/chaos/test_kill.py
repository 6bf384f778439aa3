"""`kill -9` of all the processes of a run."""

import os
import random

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

INSTANTS, SEED, PASSES = int(os.environ.get("CHAOS_INSTANTS", "1")), 9, 8
"""So many random instants in each stage; how often a run is made until there were so many."""


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


def test_killed_at_random_instants_in_every_stage_it_ends_as_an_undisturbed_run(place, calm):
    instants = random.Random(SEED)  # noqa: S311 - no secret
    lasted, missing = calm.attempts[0].durations(), dict.fromkeys(calm.attempts[0].stages(), INSTANTS)
    passes = 0
    while any(missing.values()) and passes < PASSES:
        if passes:
            place.begin_anew()
        passes += 1
        attempt, over = place.run(), set()
        while stage := attempt.under_way(place, {name for name in missing if missing[name]} - over):
            # A stage that was over too soon is met earlier in the next pass.
            attempt.kill_after(instants.uniform(0, lasted[stage] * share_of(stage) / passes))
            # It counts for every stage that the kill has met, and for none when it came too late.
            for met in attempt.met(place):
                missing[met] = max(0, missing.get(met, 0) - 1)
            over |= attempt.stages().keys()
            attempt = place.go_on()
        attempt.done()
        check(place, calm)
    assert not any(missing.values()), f"after {passes} passes, instants are missing: {missing}"


def share_of(stage):
    """How much of a stage an instant may lie in: what has checkpoints comes further with each attempt."""
    return min(0.9, 3 / INSTANTS) if stage.startswith(("obtain", "train")) else 0.9


def check(place, calm):
    assert place.attempts[-1].process.returncode == 0, place.attempts[-1].words
    assert place.numbers() == calm.numbers()
    place.check_nothing_was_repeated()
