"""The command as a person types it: in a process of its own, without any server running."""

import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest

from tests.commands import run_many


def drop_column(table):
    return table.drop(columns="answer")


def double_a_row(table):
    return pd.concat([table, table.iloc[[4]]])


def spoil(column, text):
    def change(table):
        table[column] = table[column].astype(object)
        table.loc[2, column] = text
        return table

    return change


BAD = {
    "no rows": ((lambda table: table.iloc[:0], ""), ["answers.csv"]),
    "a missing column": ((drop_column, ""), ["answers.csv", "'answer'"]),
    "a question twice": ((double_a_row, ""), ["answers.csv", "row 6", "302"]),
    "a logprob that is no number": (
        (spoil("logprobs", "[NaN, -0.1]"), ""),
        ["answers.csv", "row 4", "logprobs"],
    ),
    "a positive logprob": ((spoil("logprobs", "[0.5, -0.1]"), ""), ["answers.csv", "row 4", "0.5"]),
    "a label that is none": ((spoil("label", "maybe"), ""), ["answers.csv", "row 4", "maybe"]),
    "an unknown method": ((lambda t: t, '[methods.x]\nkind = "magic"\n'), ["methods.x", "magic"]),
    "a misspelt setting": (
        (lambda t: t, "[prices]\nllm_coast = 1\n"),
        ["llm_coast", "did you mean llm_cost"],
    ),
    "an empty split": ((lambda t: t.iloc[:1], ""), ["split", "empty"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_with_its_place_and_leaves_nothing_behind(case, cli, recorded, tmp_path):
    (change, text), wanted = BAD[case]
    done = cli("run", recorded(change, text))
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for words in wanted:
        assert words in done.stderr
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "store").exists()


def test_a_store_that_cannot_be_written_is_refused_before_anything_runs(cli, recorded, tmp_path):
    (tmp_path / "file").write_text("")
    done = cli("--store", tmp_path / "file" / "store", "run", recorded())
    assert done.returncode == 2
    assert "must be a writable folder" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_an_unknown_experiment_or_run_is_answered_with_those_there_are(cli):
    done = cli("run", "pockett")
    assert done.returncode == 2
    assert "pocket" in done.stderr
    done = cli("report", "latest")
    assert done.returncode == 2
    assert "there are none yet" in done.stderr


def test_a_dry_run_prints_the_stages_and_runs_nothing(cli, tmp_path):
    done = cli("run", "pocket", "--dry-run")
    assert done.returncode == 0, done.stderr
    for words in ("obtain pocket", "infer pocket stated", "train dpo", "judge implicit plain", "evaluate"):
        assert words in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_sweep_or_a_remeasurement_that_cannot_be_is_one_line_that_says_why(tmp_path):
    sweep = ("run", "pocket", "--flow", "sweep")
    commands = {
        (*sweep,): "a sweep must be over a setting",
        (*sweep, "--over", "methods.dpo.betta=1,2"): "methods.dpo-betta-1.betta: no such setting",
        (*sweep, "--over", "prices.value=1,2"): "methods.dpo.SETTING",
        ("remeasure", "nobody"): "there are none yet",
    }
    done, heavy = run_many(tmp_path, commands)
    assert heavy == []
    for (code, _, error), words in zip(done, commands.values(), strict=True):
        assert code == 2
        assert words in error
        assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_recorded_answers_are_measured_reported_and_cached(cli, recorded, tmp_path):
    experiment = recorded()
    done = cli("run", experiment)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
    first = json.loads((tmp_path / "runs" / "latest" / "report.json").read_text())
    assert {stage["state"] for stage in first["stages"]} == {"Completed"}
    [base] = [
        row
        for row in first["rows"]
        if (row["system"], row["readout"], row["map"]) == ("base", "geometric_mean_all", "none")
    ]
    assert base["mean_confidence"] > base["accuracy"] + 0.2

    done = cli("run", experiment)
    again = json.loads((tmp_path / "runs" / "latest" / "report.json").read_text())
    assert {stage["state"] for stage in again["stages"]} == {"Cached"}
    assert again["rows"] == first["rows"]
    assert again["run"] != first["run"]

    listed = cli("runs").stdout
    assert first["run"] in listed
    assert again["run"] in listed
    assert cli("report", first["run"]).stdout.startswith("# recorded: calibration report")


def test_what_cannot_be_continued_or_repeated_is_said_in_one_line(cli, recorded, tmp_path):
    experiment = recorded()
    assert cli("run", experiment, "--on", "at_once=1").returncode == 0
    done = cli("resume", "latest", "--refresh", "jugde")
    assert done.returncode == 0
    assert re.search(
        r"--refresh must be how a stage begins, .*judge somebody plain.*got 'jugde'", done.stderr
    )

    # One that could not begin shows nothing of an earlier attempt, however that ended.
    done = cli("remeasure", "latest")
    assert done.returncode == 0, done.stderr
    remeasured = json.loads((tmp_path / "runs" / "latest" / "run.json").read_text())
    assert json.loads(remeasured["backend"])["at_once"] == 1
    (tmp_path / "runs" / remeasured["baseline"] / "router_policy.json").rename(tmp_path / "policy")
    done = cli("resume", "latest")
    assert (done.returncode, done.stdout) == (2, "")
    assert "must have a router policy" in done.stderr
    (tmp_path / "policy").rename(tmp_path / "runs" / remeasured["baseline"] / "router_policy.json")

    # An attempt that fails early shows nothing of an earlier one that came to its report.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "artifacts").write_text("in the way")
    done = cli("--store", tmp_path / "other", "resume", remeasured["baseline"], "--refresh", "judge")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "--refresh must" not in done.stderr
    assert "continue it: slm-calibration resume recorded-" in done.stderr

    (tmp_path / "runs" / remeasured["baseline"] / "baseline.json").unlink()
    done = cli("run", experiment, "--flow", "compare", "--refresh", "judge")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "must have measured its models; resume it first" in done.stderr


@pytest.mark.skipif(
    "SLM_CALIBRATION_DATA" not in os.environ, reason="SLM_CALIBRATION_DATA names no folder with data"
)
def test_real_answers_of_gemma_2_2b_give_the_known_numbers(cli, tmp_path):
    file = Path(os.environ["SLM_CALIBRATION_DATA"]) / "gemma2-nq" / "nq_gemma2_0_shot_test.csv.gz"
    places = ("data.path", "judge.path", "models.gemma-2-2b-it.engine.path")
    done = cli("run", "gemma2-nq", *(word for place in places for word in ("--set", f"{place}={file}")))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "runs" / "latest" / "report.json").read_text())["rows"]
    found = {row["readout"]: row for row in rows if row["system"] == "base" and row["map"] == "none"}
    every, span = found["geometric_mean_all"], found["geometric_mean"]
    assert (every["n"], round(every["accuracy"], 3)) == (1000, 0.181)
    assert (round(every["rms"], 3), round(every["rms_hle"], 3)) == (0.440, 0.414)
    assert (span["n"], span["n_unreadable"]) == (999, 1)
    assert (round(span["rms"], 3), round(span["rms_hle"], 3)) == (0.340, 0.260)
