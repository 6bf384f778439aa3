"""`slm-calibration audit`: tables that people have, good and bad, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calibration.routing.policy import Router

MANY = """
import contextlib, io, json, sys
from deployments.cli import main
done = []
for arguments in json.loads(sys.stdin.read()):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as stop:
            code = stop.code
    done.append([code, out.getvalue(), err.getvalue()])
heavy = [name for name in ("torch", "prefect", "transformers", "datasets") if name in sys.modules]
print(json.dumps([done, heavy]))
"""


def run_many(folder, commands):
    """Run several commands in one new process: (exit code, output, error) of each, heavy packages loaded."""
    done = subprocess.run(
        [sys.executable, "-c", MANY],
        input=json.dumps([[str(word) for word in command] for command in commands]),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def answers(n=600, seed=0, sharpness=0.5, gap=1.5):
    """A table of an overconfident system; the questions and their difficulty do not depend on the seed."""
    facts, own = np.random.default_rng(5), np.random.default_rng(seed)
    known = facts.normal(-0.5, 1.5, n)
    right = facts.random(n) < 1 / (1 + np.exp(-known))
    confidence = 1 / (1 + np.exp(-(sharpness * known + own.normal(0, 1, n) + gap)))
    kinds = np.where(np.arange(n) % 3 == 0, "Date", "Person")
    return pd.DataFrame(
        {
            "id": [f"q{i}" for i in range(n)],
            "confidence": confidence.round(4),
            "correct": right.astype(int),
            "kind": kinds,
        }
    )


def spoil(column, text):
    def change(table):
        table[column] = table[column].astype(object)
        table.loc[2, column] = text
        return table

    return change


BAD = {
    "no rows": (lambda t: t.iloc[:0], [], ["rows under its header"]),
    "one row": (lambda t: t.iloc[:1], [], ["at least 100 rows", "got 1 of 1", "row 2"]),
    "fewer rows than a bin": (lambda t: t.iloc[:99], [], ["at least 100 rows", "got 99 of 99", "row 100"]),
    "all right": (lambda t: t.assign(correct=1), [], ["all 600 are alike", "row 2", "'1'"]),
    "all wrong": (lambda t: t.assign(correct=0), [], ["all 600 are alike", "row 2", "'0'"]),
    "not a number": (spoil("confidence", "NaN"), [], ["row 4", "'confidence'", "'NaN'"]),
    "infinite": (spoil("confidence", "inf"), [], ["row 4", "'confidence'", "'inf'"]),
    "percent": (spoil("confidence", "87"), [], ["row 4", "'87'", "Divide percentages by 100"]),
    "a percent sign": (spoil("confidence", "87 %"), [], ["row 4", "'87 %'", "Divide percentages by 100"]),
    "negative": (spoil("confidence", "-0.1"), [], ["row 4", "'-0.1'"]),
    "text": (spoil("confidence", "very sure"), [], ["row 4", "'very sure'"]),
    "a mark that is none": (spoil("correct", "maybe"), [], ["row 4", "'correct'", "'maybe'"]),
    "a missing column": (lambda t: t.drop(columns="correct"), [], ["'correct'", "'kind'"]),
    "an id twice": (lambda t: pd.concat([t, t.iloc[[7]]]), ["--id", "id"], ["row 602", "row 9", "'q7'"]),
    "an unknown setting": (lambda t: t, ["--set", "prices.llm_coast=1"], ["llm_coast", "llm_cost"]),
}


def test_each_bad_table_is_one_line_with_row_and_value_and_leaves_nothing(tmp_path):
    commands = []
    for number, (change, options, _) in enumerate(BAD.values()):
        change(answers()).to_csv(tmp_path / f"bad{number}.csv", index=False)
        commands.append(["audit", f"bad{number}.csv", *options])
    done, _ = run_many(tmp_path, commands)
    for name, (code, out, err), (_, _, wanted) in zip(BAD, done, BAD.values(), strict=True):
        assert (code, out) == (2, ""), (name, err)
        assert len(err.strip().splitlines()) == 1, (name, err)
        assert "Traceback" not in err
        for words in wanted:
            assert words in err, (name, err)
    assert not (tmp_path / "runs").exists()


def test_files_that_are_no_tables_are_refused_by_name(tmp_path):
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "latin.csv").write_bytes("confidence,correct,né\n0.5,1,é\n".encode("latin-1"))
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "notes.txt").write_text("hello")
    names = ("empty.csv", "latin.csv", "folder.csv", "broken.parquet", "notes.txt", "absent.csv")
    done, _ = run_many(tmp_path, [["audit", name] for name in names])
    for name, (code, _, err) in zip(names, done, strict=True):
        assert code == 2
        assert len(err.strip().splitlines()) == 1, err
        assert name in err


def test_two_systems_must_have_answered_the_same_questions(tmp_path):
    answers().to_csv(tmp_path / "one.csv", index=False)
    answers().iloc[5:].to_csv(tmp_path / "other.csv", index=False)
    [(code, _, err)], _ = run_many(tmp_path, [["audit", "one.csv", "--base", "other.csv", "--id", "id"]])
    assert code == 2
    assert "row 2" in err
    assert "'q0'" in err
    assert "other.csv" in err


def test_one_table_gives_a_whole_report_without_torch_or_prefect(tmp_path):
    table = answers()
    table.loc[3, "confidence"] = np.nan
    table.loc[4, "correct"] = np.nan
    table.to_json(tmp_path / "mine.jsonl", orient="records", lines=True)
    table.to_parquet(tmp_path / "mine.parquet")
    command = ["--id", "id", "--group", "kind", "--name", "mine"]
    commands = [["audit", f"mine.{kind}", *command, "--out", kind] for kind in ("jsonl", "parquet")]
    done, heavy = run_many(tmp_path, commands)
    assert [code for code, _, _ in done] == [0, 0], done
    assert heavy == []
    reports = [json.loads((tmp_path / kind / "report.json").read_text()) for kind in ("jsonl", "parquet")]
    assert reports[0]["rows"] == reports[1]["rows"]
    first = reports[0]["rows"][0]
    assert (first["system"], first["model"], first["n"]) == ("base", "mine", 598)
    assert (first["n_unreadable"], first["n_unjudged"]) == (1, 1)
    assert first["intervals"]["rms"]["low"] < first["rms"] < first["intervals"]["rms"]["high"]
    assert {row["group"] for row in reports[0]["groups"]} == {"Date", "Person"}
    names = {path.name for path in (tmp_path / "jsonl").iterdir()}
    assert {"report.html", "report.md", "report.json", "router_policy.json", "reliability.png"} <= names
    assert "mine is right in" in done[0][1]


def test_a_second_system_is_judged_against_the_first(tmp_path):
    n = 3000
    answers(n).to_csv(tmp_path / "before.csv", index=False)
    better = answers(n, seed=1, sharpness=1.0, gap=0.0).sample(frac=1, random_state=0)
    better.rename(columns={"confidence": "p"}).to_csv(tmp_path / "after.csv", index=False)
    command = ["audit", "after.csv", "--confidence", "p", "--base", "before.csv", "--base-confidence"]
    [(code, out, err)], _ = run_many(tmp_path, [[*command, "confidence", "--id", "id", "--group", "kind"]])
    assert code == 0, err
    report = json.loads((tmp_path / "runs" / "audit-after" / "report.json").read_text())
    verdicts = {v["level"]: v for v in report["verdicts"] if not v["literal"]}
    lines = {line["name"]: line["outcome"] for line in verdicts["minimum"]["lines"]}
    assert verdicts["minimum"]["outcome"] == "pass", verdicts["minimum"]
    assert lines["rms_reduction"] == lines["brier_after_map"] == lines["accuracy"] == "pass"
    assert {row["system"] for row in report["rows"]} == {"base", "after", "constant"}
    assert "after reaches" in out


def test_an_audited_judge_is_corrected_for(tmp_path):
    table = answers(4000)
    rng = np.random.default_rng(3)
    truth = table["correct"].to_numpy()
    table["correct"] = np.where(truth == 1, rng.random(4000) < 0.85, rng.random(4000) > 0.95).astype(int)
    table["truth"] = [str(mark) if i % 5 == 0 else "" for i, mark in enumerate(truth)]
    table.to_csv(tmp_path / "judged.csv", index=False)
    [(code, _, err)], _ = run_many(tmp_path, [["audit", "judged.csv", "--truth", "truth", "--out", "out"]])
    assert code == 0, err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    [row] = report["judge"]
    assert row["audited"] == 800
    assert row["sensitivity"]["low"] < 0.85 < row["sensitivity"]["high"]
    assert row["accuracy"]["low"] < truth.mean() < row["accuracy"]["high"]
    assert report["policies"]["base"]["judge"]["specificity"] == row["specificity"]["value"]


def test_a_policy_can_be_certified_on_answers_of_its_own(tmp_path):
    easy = answers(3000, gap=0.0, sharpness=2.0)
    easy.iloc[:1500].to_csv(tmp_path / "known.csv", index=False)
    easy.iloc[1500:].to_csv(tmp_path / "new.csv", index=False)
    goal = ["--set", "router.kind=certified", "--set", "router.accuracy=0.7"]
    command = ["audit", "new.csv", "--calibration", "known.csv", *goal, "--out", "out"]
    [(code, out, err)], _ = run_many(tmp_path, [command])
    assert code == 0, err
    policy = json.loads((tmp_path / "out" / "router_policy.json").read_text())
    assert policy["measured_on"] == "test"
    assert policy["certificate"]["right"] >= 0.7 * policy["certificate"]["kept"] > 0
    assert policy["expected"]["kept_accuracy"]["high"] >= 0.7
    router = Router.load(tmp_path / "out" / "router_policy.json")
    assert router.decide("a sure one?", confidence=0.99).keep
    assert not router.decide("an unsure one?", confidence=0.01).keep
    assert "Keep an answer of base" in out


@pytest.mark.skipif(
    "SLM_CALIBRATION_DATA" not in os.environ, reason="SLM_CALIBRATION_DATA names no folder with data"
)
def test_real_answers_of_gemma_2_2b_give_the_known_numbers(tmp_path):
    file = Path(os.environ["SLM_CALIBRATION_DATA"]) / "gemma2-nq" / "nq_gemma2_0_shot_test.csv.gz"
    common = ["audit", file, "--correct", "extracted_prom46_score", "--missing", "FAILED TO PARSE"]
    columns = ("seq_prob", "extracted_seq_prob")
    done, _ = run_many(tmp_path, [[*common, "--confidence", name, "--out", name] for name in columns])
    assert [code for code, _, _ in done] == [0, 0], done
    every, span = (json.loads((tmp_path / name / "report.json").read_text())["rows"][0] for name in columns)
    assert (every["n"], round(every["accuracy"], 3)) == (1000, 0.181)
    assert (round(every["rms"], 3), round(every["rms_hle"], 3)) == (0.440, 0.414)
    assert (span["n"], span["n_unreadable"]) == (999, 1)
    assert (round(span["rms"], 3), round(span["rms_hle"], 3)) == (0.340, 0.260)
    assert (round(every["auroc"], 3), round(span["auroc"], 3)) == (0.744, 0.755)
