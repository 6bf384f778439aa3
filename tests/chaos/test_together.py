"""Two runs at the same time, in two processes on one store."""

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


def at_once(place, *changes):
    """Begin a run for each change of settings at the same time; the stages that each has completed."""
    attempts = [
        place.begin("--runs", place.folder / f"runs-{number}", "run", place.experiment, *change)
        for number, change in enumerate(changes)
    ]
    stages = [attempt.done().stages() for attempt in attempts]
    return [{name for name, state in ended.items() if state == "Completed"} for ended in stages], stages


def test_the_same_experiment_twice_at_once_does_every_stage_once(place, calm):
    (one, other), stages = at_once(place, (), ())

    assert set(stages[0]) == set(stages[1]) == set(calm.attempts[0].stages())
    assert not one & other
    assert one | other == set(stages[0])
    assert place.numbers(runs="runs-0") == place.numbers(runs="runs-1") == calm.numbers()
    place.check_nothing_was_repeated()


def test_two_that_share_their_measured_models_measure_them_once(place, calm):
    (one, other), stages = at_once(place, (), ("--set", "methods.dpo.beta=0.3"))

    differ = {name for name in stages[0] if "dpo" in name} | {"evaluate", "draw"}
    assert one & other <= differ
    assert one | other == set(stages[0])
    assert place.numbers(runs="runs-0") == calm.numbers()
    place.check_nothing_was_repeated()
    place.run("--set", "methods.dpo.beta=0.3").done()
    assert place.numbers() == place.numbers(runs="runs-1")


def test_two_that_are_judged_at_once_take_turns_at_the_ledger(light):
    light.court.latency = 0.2
    # Other splits make other stages of the same questions: no lock of a stage keeps the two apart.
    (one, other), stages = at_once(light, (), ("--set", "splits.test=0.6", "--set", "splits.calibration=0.4"))
    assert one == other == set(stages[0])
    assert light.court.count == len(light.court.cases) == 300
