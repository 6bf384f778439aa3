"""`slm-calibration audit`: tables that people have, good and bad, in a process of its own."""

import json
import os
from datetime import datetime, time, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calibration.artifacts import file_sha256
from calibration.audit import Audit
from calibration.errors import DataError
from calibration.routing.policy import Router
from tests.commands import run_many


def audit(table, *, columns=None, base=None, **settings):
    """An audit in this process, and its remarks; a base has the columns of the table but its group."""
    columns = columns or {}
    if base is not None:
        shared = {role: column for role, column in columns.items() if role != "group"}
        settings |= {"base": {"path": base, "columns": shared}, "base_name": base.stem}
    table = {"path": table, "columns": columns}
    remarks = []
    return Audit.model_validate({"name": "mine", "table": table, **settings}).run(remarks.append), remarks


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
    "one column twice": (lambda t: t, ["--correct", "confidence"], ["confidence and correct", "both"]),
    "an empty column name": (lambda t: t, ["--id", ""], ["columns.id", "at least 1 character"]),
    "no truth marks": (
        lambda t: t.assign(truth=""),
        ["--truth", "truth"],
        ["'truth' with 0 marks", "at least one truly right", "leave the column out"],
    ),
    "truth of one kind": (
        lambda t: t.assign(truth=["1" if mark and i % 9 == 0 else "" for i, mark in enumerate(t["correct"])]),
        ["--truth", "truth"],
        [".csv column 'truth' with", "at least one truly wrong", "leave the column out"],
    ),
    "a judge worse than chance": (
        lambda t: t.assign(truth=1 - t["correct"]),
        ["--truth", "truth"],
        [".csv column 'truth' with 600 marks", "better than chance", "leave the column out"],
    ),
    "an unknown setting": (lambda t: t, ["--set", "prices.llm_coast=1"], ["llm_coast", "llm_cost"]),
    "a setting without its table": (
        lambda t: t,
        ["--set", "llm_accuracy=0.8"],
        ["audit: llm_accuracy: no such setting; did you mean prices.llm_accuracy?"],
    ),
    "an experiment's setting": (
        lambda t: t,
        ["--set", "splits.train=0.8"],
        ["audit: splits: no such setting; see slm-calibration audit --help"],
    ),
    "a setting of the wrong type": (
        lambda t: t,
        ["--set", "prices.llm_accuracy=high"],
        ["audit: prices.llm_accuracy: ", "'high'"],
    ),
    "a goal without its aim": (
        lambda t: t,
        ["--set", "router.kind=certified"],
        ["audit: router.accuracy: Field required"],
    ),
    "a negative seed": (lambda t: t, ["--seed", "-1"], ["audit: seed: ", "-1"]),
    "a date to come": (lambda t: t, ["--measured", "2999-01-01"], ["measured", "past", "'2999-01-01'"]),
    "no date": (lambda t: t, ["--measured", "yesterday"], ["measured", "such as 2026-01-31", "'yesterday'"]),
    "a date before all dates": (lambda t: t, ["--measured", "0001-01-01T00:00+14:00"], ["measured", "past"]),
    "an empty name": (lambda t: t, ["--name", ""], ["audit: name: ", "printable", "''"]),
    "a name with a slash": (lambda t: t, ["--name", "../mine"], ["audit: name: ", "'../mine'"]),
    "a name of two lines": (lambda t: t, ["--name", "a\nb"], ["audit: name: ", r"'a\nb'"]),
    "the name of a row of reference": (lambda t: t, ["--name", "constant"], ["audit: name: ", "'constant'"]),
    "a base's column without a base": (lambda t: t, ["--base-correct", "p"], ["--base-correct", "'p'"]),
    "a base's name without a base": (lambda t: t, ["--base-name", "old"], ["--base-name", "'old'"]),
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


PAIRED = {
    "a base by row number": (["--base", "other.csv"], ["base", "`id`"]),
    "calibration by row number": (["--calibration", "other.csv"], ["calibration", "`id`"]),
    "two equal names": (["--base", "other.csv", "--name", "other", "--id", "id"], ["name", "'other'"]),
    "files of one name": (["--base", "sub/one.csv", "--id", "id"], ["'one' beside 'one'", "another name"]),
    "a base that is not the base": (["--base", "other.csv", "--name", "base", "--id", "id"], ["'base'"]),
    "a base that is the table": (["--base", "copy.csv", "--id", "id"], ["copy.csv", "one.csv", "the same"]),
    "calibration on the table": (
        ["--calibration", "copy.csv", "--id", "id"],
        ["copy.csv must", "than one.csv; both hold the same"],
    ),
    "calibration on its questions": (
        ["--calibration", "other.csv", "--id", "id"],
        ["other.csv", "one.csv", "100 stand in both", "'q500'", "row 2", "row 502"],
    ),
    "a base about other questions": (
        ["--base", "other.csv", "--id", "id"],
        ["one.csv row 2", "'q0'", "other.csv"],
    ),
}


def test_two_tables_that_do_not_fit_are_one_line_that_names_both(tmp_path):
    table = answers(1100)
    table.iloc[:600].to_csv(tmp_path / "one.csv", index=False)
    table.iloc[:600].to_csv(tmp_path / "copy.csv", index=False)
    table.iloc[500:].to_csv(tmp_path / "other.csv", index=False)
    (tmp_path / "sub").mkdir()
    answers(600, seed=1).to_csv(tmp_path / "sub" / "one.csv", index=False)
    done, _ = run_many(tmp_path, [["audit", "one.csv", *options] for options, _ in PAIRED.values()])
    for name, (code, out, err), (_, wanted) in zip(PAIRED, done, PAIRED.values(), strict=True):
        assert (code, out) == (2, ""), (name, err)
        assert len(err.strip().splitlines()) == 1, (name, err)
        for words in wanted:
            assert words in err, (name, err)
    assert not (tmp_path / "runs").exists()


def test_nothing_but_an_earlier_audit_is_replaced(tmp_path):
    (tmp_path / "sub").mkdir()
    for place in (tmp_path, tmp_path / "sub"):
        answers(200).to_csv(place / "gemma-2.5.csv", index=False)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "report.md").write_text("mine")
    (tmp_path / "empty").mkdir()
    mine = ["audit", "gemma-2.5.csv"]
    commands = [
        [*mine, "--out", "notes"],
        [*mine, "--out", "gemma-2.5.csv"],
        [*mine, "--out", "gemma-2.5.csv/sub"],
        [*mine, "--out", "empty"],
        mine,
        ["audit", "sub/gemma-2.5.csv"],
    ]
    done, _ = run_many(tmp_path, commands)
    (tmp_path / "empty" / "router_policy-of_an_earlier_base.json").write_text("{}")
    (tmp_path / "empty" / "notes.txt").write_text("mine")
    again, _ = run_many(tmp_path, [[*mine, "--out", "empty", "--seed", "1"]])
    assert [code for code, _, _ in done] == [2, 2, 2, 0, 0, 2], done
    for _, _, err in done:
        assert len(err.strip().splitlines()) <= 1, err
    assert "notes holds other files" in done[0][2]
    assert "is a file" in done[1][2]
    assert "holds the audit of gemma-2.5.csv, and" in done[5][2]
    assert [(path.name, path.read_text()) for path in (tmp_path / "notes").iterdir()] == [
        ("report.md", "mine")
    ]
    assert again[0][0] == 0, again
    assert json.loads((tmp_path / "empty" / "report.json").read_text())["seed"] == 1
    assert [path.name for path in (tmp_path / "empty").glob("router*")] == ["router_policy.json"]
    assert (tmp_path / "empty" / "notes.txt").read_text() == "mine"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["audit-gemma-2.5"]


def test_rows_have_the_same_ids_and_folds_in_every_format_and_their_own_numbers(tmp_path):
    table = answers(200).drop(columns="id")
    high = table.astype(object)
    high.loc[4, "confidence"] = "high"
    for name, frame in (("good", table), ("bad", high.astype(str))):
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
        frame.to_parquet(tmp_path / f"{name}.parquet")
        lines = frame.to_json(orient="records", lines=True).splitlines()
        (tmp_path / f"{name}.jsonl").write_text("\n" + "\n\n".join(lines))
    found = [audit(tmp_path / f"good.{kind}")[0] for kind in ("csv", "parquet", "jsonl")]
    assert found[0].rows == found[1].rows == found[2].rows
    assert found[0].rows[1].map == "platt_crossfit"  # its folds hash the ids
    for kind, number in (("csv", 6), ("parquet", 5), ("jsonl", 10)):
        with pytest.raises(DataError, match=rf"bad\.{kind} row {number}: 'confidence' .*'high'"):
            audit(tmp_path / f"bad.{kind}")


def test_files_that_are_no_tables_are_refused_by_name(tmp_path):
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "latin.csv").write_bytes("confidence,correct,né\n0.5,1,é\n".encode("latin-1"))
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "notes.txt").write_text("hello")
    long = f"{'x' * 300}.csv"
    names = ("empty.csv", "latin.csv", "folder.csv", "broken.parquet", "notes.txt", "absent.csv", long, "")
    done, _ = run_many(tmp_path, [["audit", name, "--name", "mine"] for name in names])
    for name, (code, _, err) in zip(names, done, strict=True):
        assert code == 2
        assert len(err.strip().splitlines()) == 1, err
        assert name in err


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
    assert (first["system"], first["model"], first["n"]) == ("mine", "mine", 598)
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
    assert {row["system"] for row in report["rows"]} == {"before", "after", "constant"}
    assert (report["base"], report["recommended"]) == ("before", "after")
    for name, policy in report["policies"].items():
        assert policy["digests"]["data"] == file_sha256(tmp_path / f"{name}.csv")
    assert "after reaches" in out


def test_an_audited_judge_is_corrected_for(tmp_path):
    table = answers(4000)
    rng = np.random.default_rng(3)
    truth = table["correct"].to_numpy()
    table["correct"] = np.where(truth == 1, rng.random(4000) < 0.85, rng.random(4000) > 0.95).astype(int)
    table["truth"] = [str(mark) if i % 5 == 0 else "" for i, mark in enumerate(truth)]
    table.to_csv(tmp_path / "judged.csv", index=False)
    [(code, out, err)], _ = run_many(tmp_path, [["audit", "judged.csv", "--truth", "truth", "--out", "out"]])
    assert code == 0, err
    assert "note: Figures of judged corrected for its judge rest on 800 marks" in out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    [row] = report["judge"]
    assert row["audited"] == 800
    assert row["sensitivity"]["low"] < 0.85 < row["sensitivity"]["high"]
    assert row["accuracy"]["low"] < truth.mean() < row["accuracy"]["high"]
    assert report["policies"]["judged"]["judge"]["specificity"] == row["specificity"]["value"]


def test_two_columns_of_one_table_are_two_systems(tmp_path):
    table = answers(300)
    table.assign(other=table["confidence"] ** 2).to_csv(tmp_path / "t.csv", index=False)
    of_table, of_base = ({"id": "id", "confidence": name} for name in ("other", "confidence"))
    base = {"path": tmp_path / "t.csv", "columns": of_base}
    found = Audit.model_validate(
        {"name": "squared", "table": {**base, "columns": of_table}, "base": base, "base_name": "plain"}
    ).run()
    read = {row.system: row.mean_confidence for row in found.rows if row.map == "none"}
    assert read["plain"] == pytest.approx(table["confidence"].mean())
    assert read["squared"] == pytest.approx((table["confidence"] ** 2).mean())


def judged(n=600, seed=0, every=3, **settings):
    """Answers whose judge is right in .85 of the right and .95 of the wrong; some have a person's mark."""
    table, rng = answers(n, seed, **settings), np.random.default_rng(seed + 10)
    truth = table["correct"].to_numpy()
    marks = np.where(truth == 1, rng.random(n) < 0.85, rng.random(n) > 0.95).astype(int)
    person = [str(mark) if i % every == 0 else "" for i, mark in enumerate(truth)]
    return table.assign(correct=marks, truth=person)


def test_the_judge_of_one_system_is_not_that_of_the_other(tmp_path):
    judged(seed=1, sharpness=1.0, gap=0.0).to_csv(tmp_path / "after.csv", index=False)
    judged().drop(columns="truth").to_csv(tmp_path / "bare.csv", index=False)
    judged().assign(truth="").to_csv(tmp_path / "empty.csv", index=False)
    judged(every=4).to_csv(tmp_path / "before.csv", index=False)
    columns = {"id": "id", "truth": "truth"}
    for name in ("bare", "empty"):
        found, remarks = audit(tmp_path / "after.csv", columns=columns, base=tmp_path / f"{name}.csv")
        assert [row.system for row in found.judge] == ["mine"]
        assert found.policies[name].judge is None
        assert found.policies["mine"].judge is not None
        about = {(row.system, row.is_about_truth) for row in found.guarantees}
        assert about == {("mine", True), (name, False)}
        assert any(f"{name}.csv holds no person's marks" in sentence for sentence in remarks)
        assert set(remarks) <= set(found.notes)
    found, _ = audit(tmp_path / "after.csv", columns=columns, base=tmp_path / "before.csv")
    assert [(row.system, row.audited) for row in found.judge] == [("mine", 200), ("before", 150)]
    for row in found.judge:
        assert found.policies[row.system].judge.sensitivity == row.sensitivity.value
    assert found.judge[0].sensitivity != found.judge[1].sensitivity


def test_marks_of_a_person_on_answers_that_nobody_judged_are_counted(tmp_path):
    table = judged().astype({"correct": object})
    table.loc[[0, 3, 4], "correct"] = ["", "n/a", "n/a"]
    table.to_csv(tmp_path / "t.csv", index=False)
    found, remarks = audit(tmp_path / "t.csv", columns={"truth": "truth", "missing": ("n/a", "0")})
    assert found.judge[0].audited == 198
    assert found.rows[0].n_unjudged == 3  # a mark 0 stays a mark
    assert "rest on 198 marks in 'truth', taken to be drawn at random" in remarks[0]
    assert remarks[1].startswith("2 more marks in 'truth' stand beside answers that the judge did not mark")


def test_small_groups_are_taken_together_and_empty_cells_are_a_group(tmp_path):
    table = answers(600)
    table["kind"] = [f"rare {i // 6}" if i < 90 else "" if i < 200 else "Other" for i in range(600)]
    table.to_csv(tmp_path / "t.csv", index=False)
    before = answers(600, seed=1).drop(columns="kind").sample(frac=1, random_state=0)
    before.to_csv(tmp_path / "before.csv", index=False)
    columns = {"id": "id", "group": "kind"}
    found, remarks = audit(tmp_path / "t.csv", columns=columns, base=tmp_path / "before.csv")
    of_each = {"(groups of fewer than 20)": 90, "(not given)": 110, "Other": 400}
    sizes = {(row.system, row.group): row.n for row in found.groups}
    assert sizes == {(name, kind): n for name in ("mine", "before") for kind, n in of_each.items()}
    right = {(row.system, row.group): row.accuracy for row in found.groups}
    assert right["mine", "Other"] == right["before", "Other"] == table["correct"][200:].mean()
    assert remarks == [
        "Each of 15 of the 17 groups of 'kind' holds fewer than 20 answers: they are taken together."
    ]
    assert {group.group for group in found.policies["mine"].groups} == set(of_each)


def test_groups_that_are_all_but_unique_do_not_swell_the_report(tmp_path):
    answers(600).to_csv(tmp_path / "t.csv", index=False)
    found, remarks = audit(tmp_path / "t.csv", columns={"group": "id"})
    assert (found.groups, found.policies["mine"].groups) == ((), ())
    assert remarks == [
        "Each of the 600 groups of 'id' holds fewer than 20 answers: nothing is said by group."
    ]


def test_one_small_group_keeps_its_name(tmp_path):
    answers().assign(kind=["rare"] * 10 + ["common"] * 590).to_csv(tmp_path / "t.csv", index=False)
    found, remarks = audit(tmp_path / "t.csv", columns={"group": "kind"})
    assert ({row.group for row in found.groups}, remarks) == ({"rare", "common"}, [])


def test_the_policy_lives_from_when_the_answers_were_given(tmp_path):
    answers().rename(columns={"confidence": "joint"}).to_csv(tmp_path / "t.csv", index=False)
    for ago in (10, 100):
        day = (datetime.now().astimezone() - timedelta(days=ago)).date()
        found, remarks = audit(tmp_path / "t.csv", columns={"confidence": "joint"}, measured=day.isoformat())
        policy = found.policies["mine"]
        assert policy.created == datetime.combine(day, time()).astimezone()
        assert (policy.expires - policy.created).days == 90
        assert (policy.system, policy.readout) == ("mine", "confidence")  # though "joint" names a readout
        assert ["Measure again" in sentence for sentence in remarks] == ([True] if ago == 100 else [])


def test_a_policy_can_be_certified_on_answers_of_its_own(tmp_path):
    easy = answers(3000, gap=0.0, sharpness=2.0)
    easy.iloc[:1500].to_csv(tmp_path / "known.csv", index=False)
    easy.iloc[1500:].to_csv(tmp_path / "new.csv", index=False)
    goal = ["--set", "router.kind=certified", "--set", "router.accuracy=0.7"]
    command = ["audit", "new.csv", "--calibration", "known.csv", "--id", "id", *goal, "--out", "out"]
    [(code, out, err)], _ = run_many(tmp_path, [command])
    assert code == 0, err
    policy = json.loads((tmp_path / "out" / "router_policy.json").read_text())
    assert policy["measured_on"] == "test"
    assert policy["certificate"]["right"] >= 0.7 * policy["certificate"]["kept"] > 0
    assert policy["expected"]["kept_accuracy"]["high"] >= 0.7
    router = Router.load(tmp_path / "out" / "router_policy.json")
    assert router.decide("a sure one?", confidence=0.99).keep
    assert not router.decide("an unsure one?", confidence=0.01).keep
    assert "Keep an answer of new" in out


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
