"""What a dry run says, for every shipped experiment, on stand-ins of its data."""

import math
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calibration.backends.local import Local
from calibration.backends.modal import Modal
from calibration.config import load_experiment
from calibration.errors import ConfigurationError
from calibration.preflight import preflight
from deployments.cli import main
from deployments.plan import Speed, load_assumptions, plan

EXPERIMENTS = Path(__file__).parents[2] / "deployments" / "experiments"
SHIPPED = ("seed", "gemma-2-2b", "qwen2.5-1.5b")


@pytest.fixture
def changes(tmp_path, monkeypatch):
    """For each shipped experiment, the places of small stand-ins for its data."""
    monkeypatch.setenv("GEMINI_API_KEY", "of nobody")
    cell = "{'topic': 'Art', 'answer_type': 'Person', 'urls': []}"
    rows = [(cell, f"Which painter made picture {n} of museum {7 * n}?", f"Painter {n}") for n in range(2000)]
    simpleqa = tmp_path / "simple_qa_test_set.csv"
    pd.DataFrame(rows, columns=["metadata", "problem", "answer"]).to_csv(simpleqa, index=False)
    facts = tmp_path / "facts.csv"
    pd.DataFrame(
        [(f"Where is river {n} of land {3 * n}?", f"Land {n}") for n in range(300)],
        columns=["question", "answer"],
    ).to_csv(facts, index=False)
    table = f'{{kind="table",path="{facts}"}}'
    mixture = [f"data.sets.{name}={table}" for name in ("triviaqa", "nq")]
    mixture.append(f"data.sets.simpleqa.path={simpleqa}")
    return {"seed": [f"data.path={simpleqa}"], "gemma-2-2b": mixture, "qwen2.5-1.5b": mixture}


@pytest.fixture
def experiment(changes):
    def load(name, *more):
        return load_experiment(EXPERIMENTS / f"{name}.toml", [*changes[name], *more])

    return load


def planned(experiment, on=None, *assumed):
    return plan(experiment, preflight(experiment), on or Modal(), load_assumptions(assumed))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_dry_run_says_stages_jobs_gpu_time_and_dollars(name, changes, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = [word for change in changes[name] for word in ("--set", change)]
    main(["run", name, "--dry-run", "--backend", "modal", *settings])
    said = capsys.readouterr().out
    for method in ("dpo", "implicit"):
        [train] = [line.split() for line in said.splitlines() if line.startswith(f"train {method} ")]
        assert train[2:4] == ["1", "A100-40GB"]
        # Dollars are minutes at the list price.
        assert float(train[6]) == pytest.approx(float(train[4]) / 60 * 2.10, abs=0.01)
    assert "list prices of 2026-05-07" in said
    assert "assumed, not measured" in said
    assert "start_seconds=90" in said
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / ".calibration").exists()


def test_every_stage_of_the_seed_is_planned_once(experiment):
    stages = [line.stage for line in planned(experiment("seed")).lines]
    assert len(set(stages)) == len(stages)
    models = ("gemma-2-9b-it", "gemma-2-2b-it", "qwen2.5-1.5b-instruct")
    wanted = {f"obtain {model}" for model in models} | {f"infer {model} plain" for model in models}
    wanted |= {"infer gemma-2-2b-it stated", "infer dpo stated", "infer implicit plain", "train dpo"}
    assert wanted <= set(stages)
    assert "infer gemma-2-9b-it stated" not in stages


def test_shards_are_jobs_and_each_of_them_costs_its_start(experiment):
    def line(*more):
        return next(
            line for line in planned(experiment("seed", *more)).lines if line.stage == "infer dpo stated"
        )

    one, ten = line(), line("shards.size=200")
    assert (one.jobs, ten.jobs) == (1, 10)
    given = load_assumptions()
    start = given.start_seconds + 2 * 2.61 / given.load_gb_per_second
    assert (ten.machine_minutes - one.machine_minutes) * 60 == pytest.approx(9 * start)
    assert ten.usd / one.usd == pytest.approx(ten.machine_minutes / one.machine_minutes)
    # Ten shards, four at a time: three rounds.
    assert ten.minutes * 60 == pytest.approx(3 * (start + 200 / 2000 * (60 * one.minutes - start)), rel=0.01)


def test_an_assumption_can_be_changed_and_a_wrong_one_is_named(experiment):
    slow = planned(experiment("seed"), None, "step_seconds=2.5")
    fast = planned(experiment("seed"))
    assert slow.minutes > 2 * fast.minutes
    with pytest.raises(ConfigurationError, match="--assume: start_second: no such setting"):
        load_assumptions(["start_second=1"])
    with pytest.raises(ConfigurationError, match=r"--assume: sequences: .*greater than or equal to 1; got 0"):
        load_assumptions(["sequences=0"])


def test_an_unknown_model_or_gpu_is_said_to_be_unknown_and_not_guessed(experiment):
    odd = planned(experiment("seed", "models.gemma-2-2b-it.weights.repo=ours/chatty"))
    assert "infer gemma-2-2b-it plain" in odd.unknown
    assert "train dpo" in odd.unknown
    assert "infer gemma-2-9b-it plain" not in odd.unknown
    known = planned(
        experiment("seed", "models.gemma-2-2b-it.weights.repo=ours/chatty"),
        None,
        'parameters={"ours/chatty"=2.61,"google/gemma-2-9b-it"=9.24,"Qwen/Qwen2.5-1.5B-Instruct"=1.54}',
    )
    assert known.unknown == []
    assert known.usd == pytest.approx(planned(experiment("seed")).usd)
    new = planned(experiment("seed"), Modal(infer_gpu="GB300", usd_per_hour={"GB300": 9.0}))
    assert "infer gemma-2-9b-it plain" in new.unknown


def test_what_is_set_aside_is_what_the_open_calls_could_cost(experiment):
    # Two trainings of 180 minutes at 2.10 an hour are more than four answers of 60 minutes.
    assert planned(experiment("seed")).aside == pytest.approx(2 * 3 * 2.10)
    many = planned(experiment("seed", "shards.size=10", "shards.at_once=5"))
    assert many.aside == pytest.approx(4 * 5 * 2.10)


def test_this_machine_has_stages_and_no_estimate(experiment):
    local = planned(experiment("seed"), Local())
    assert {line.where for line in local.lines} == {"here", "gemini-3.5-flash-lite"}
    assert all(line.machine_minutes is None for line in local.lines)


def test_the_assumptions_are_dated_and_own_up(experiment):
    given = load_assumptions()
    assert given.measured is False
    assert given.as_of >= date(2026, 1, 1)
    assert given.billions("somebody/model-7b-chat") == 7


@pytest.mark.parametrize(
    ("questions", "size", "at_once"), [(1, 1, 1), (10, 3, 2), (1000, 1000, 4), (97, 7, 5)]
)
def test_time_and_cost_are_those_of_a_list_of_jobs_worked_off(questions, size, at_once):
    speed = Speed(start=5.0, question=0.25)
    jobs = [min(size, questions - begin) for begin in range(0, questions, size)]
    assert speed.machine(questions, size) == pytest.approx(sum(5 + 0.25 * count for count in jobs))
    # An oracle that looks at every hundredth of a second.
    ends, waiting, clock = [], list(jobs), 0
    busy = np.zeros(at_once, dtype=int)
    while waiting or busy.max() > clock:
        for lane in np.flatnonzero(busy <= clock)[: len(waiting)]:
            busy[lane] = clock + round(100 * (5 + 0.25 * waiting.pop(0)))
            ends.append(busy[lane])
        clock += 1
    assert speed.wall(questions, size, at_once) == pytest.approx(max(ends) / 100)
    assert math.ceil(questions / size) == len(ends)
