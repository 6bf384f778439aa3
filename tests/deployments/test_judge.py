"""`slm-calibration judge` and `judge-audit`, in a process of its own, against a Gemini of our own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.commands import run_many as commands_in_one_process
from tests.judges.gemini_server import GeminiServer, Say, error

KEY = "AIza-planted-7d31c0ffee"
PER_ANSWER = (600 * 0.30 + 20 * 2.50) / 1e6
"""Dollars of one request to the server."""


@pytest.fixture
def serve():
    running = []

    def start(plan=None, **settings):
        running.append(GeminiServer(plan, **settings).__enter__())
        return running[-1]

    yield start
    for server in running:
        server.__exit__()


def environment(server=None, key=KEY):
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith(("GOOGLE_", "GEMINI_", "SLM_"))
    }
    where = {"GOOGLE_GEMINI_BASE_URL": server.url} if server else {}
    return kept | where | ({"GEMINI_API_KEY": key} if key else {})


def run_many(folder, commands, server=None, key=KEY):
    """Run several commands in one new process, against a server; the key is never printed."""
    return commands_in_one_process(folder, commands, environment=environment(server, key), unsaid=KEY)


def answers(n=40):
    """Every other one is right; the last two are one answer under two ids."""
    rows = [
        {
            "id": f"a{i}",
            "question": f"What is {i}?",
            "gold": f"gold {i}",
            "answer": f"gold {i}" if i % 2 else f"other {i}",
            "conf": round(i / n, 3),
        }
        for i in range(n - 1)
    ]
    return pd.DataFrame([*rows, rows[-1] | {"id": "again"}])


def read(path):
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_gemini_judges_a_table_and_is_not_asked_again(tmp_path, serve):
    server = serve()
    answers().to_csv(tmp_path / "mine.csv", index=False)
    [(code, out, err)], heavy = run_many(tmp_path, [["judge", "mine.csv", "--judge", "gemini"]], server)
    assert code == 0, err
    assert heavy == []
    assert server.count == 39
    table = read(tmp_path / "mine.verdicts.csv")
    assert list(table["id"]) == list(answers()["id"])
    assert list(table["verdict"]) == ["incorrect", "correct"] * 19 + ["incorrect"] * 2
    assert set(table["judge"]) == {"gemini:gemini-3.5-flash-lite:simpleqa@1"}
    assert set(table["model_version"]) == {"gemini-3.5-flash-lite"}
    assert list(table["extracted"]) == list(table["answer"])
    assert list(table["conf"].astype(float)) == list(answers()["conf"])
    assert "19 correct, 21 incorrect" in out
    assert "accuracy 0.4750\n" in out
    assert f"23,400 tokens in, 780 out, ${39 * PER_ANSWER:.4f} at the prices of 20" in out
    assert "40 of 40, 1 kept" in err

    first = (tmp_path / "mine.verdicts.csv").read_bytes()
    [(code, out, err)], _ = run_many(tmp_path, [["judge", "mine.csv", "--judge", "gemini"]], server)
    assert code == 0, err
    assert server.count == 39
    assert "0 tokens in, 0 out, $0.0000" in out
    assert "40 kept" in err
    assert (tmp_path / "mine.verdicts.csv").read_bytes() == first


def test_the_key_is_sent_and_stands_nowhere_else(tmp_path, serve):
    def echo(seen):
        return error(500, "INTERNAL", f"key {KEY} is bad") if seen.time == 1 and seen.number < 4 else None

    server = serve(echo)
    answers(8).to_csv(tmp_path / "mine.csv", index=False)
    quick = ["--set", "judge.retry_seconds=0.01"]
    [(code, _, err)], _ = run_many(tmp_path, [["judge", "mine.csv", "--judge", "gemini", *quick]], server)
    assert code == 0, err
    assert {seen.key for seen in server.seen} == {KEY}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "judge.sqlite" for path in files)
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_any_table_with_any_names_goes_in_and_out(tmp_path, kind):
    table = answers(6).rename(columns={"id": "nr", "question": "q", "gold": "target", "answer": "said"})
    listed = [["nothing", gold] for gold in table["target"]]
    if kind == "csv":
        table.assign(target=["|".join(golds) for golds in listed]).to_csv(tmp_path / "t.csv", index=False)
    elif kind == "jsonl":
        table.assign(target=listed).to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    else:
        table.assign(target=listed).to_parquet(tmp_path / "t.parquet")
    command = ["judge", f"t.{kind}", "--judge", "exact", "--id", "nr", "--question", "q", "--gold", "target"]
    command += ["--answer", "said", "--out", f"done.{kind}", *(["--gold-separator", "|"] * (kind == "csv"))]
    [(code, out, err)], _ = run_many(tmp_path, [command], key=None)
    assert code == 0, err
    assert "2 correct, 4 incorrect" in out
    done = tmp_path / f"done.{kind}"
    if kind == "jsonl":
        rows = pd.DataFrame([json.loads(line) for line in done.read_text().splitlines()])
    else:
        rows = pd.read_parquet(done) if kind == "parquet" else read(done)
    assert list(rows["id"]) == list(answers(6)["id"])
    assert list(rows["verdict"]) == ["incorrect", "correct", "incorrect", "correct", "incorrect", "incorrect"]
    golds = rows["gold"].map(json.loads) if kind == "csv" else rows["gold"].map(list)
    assert golds.tolist() == listed


def test_what_cannot_be_judged_is_no_error_of_the_model_and_fails_above_the_limit(tmp_path, serve):
    def plan(seen):
        return Say(block="PROHIBITED_CONTENT") if seen.case["answer"] in ("gold 1", "other 2") else None

    server = serve(plan)
    answers(20).to_csv(tmp_path / "mine.csv", index=False)
    command = ["judge", "mine.csv", "--judge", "gemini", "--out", "out.csv"]
    loose = [*command, "--max-unjudged", "0.1"]
    done, _ = run_many(tmp_path, [command, loose], server)
    assert [code for code, _, _ in done] == [1, 0]
    _, out, err = done[0]
    assert err.strip().splitlines()[-1].startswith("slm-calibration: at most 1.0% of the answers may stay")
    assert "2 of 20 did" in err
    assert "8 correct, 10 incorrect, 2 unjudged" in out
    assert "accuracy 0.4444; 0.4000 to 0.5000 whatever the unjudged are" in out
    assert "unjudged, 2: blocked: PROHIBITED_CONTENT" in out
    assert server.count == 17 + 2 * 2
    table = read(tmp_path / "out.csv")
    assert list(table["id"][table["verdict"] == "unjudged"]) == ["a1", "a2"]


def test_money_stops_it_and_more_money_goes_on_from_there(tmp_path, serve):
    server = serve()
    answers(30).to_csv(tmp_path / "mine.csv", index=False)
    command = ["judge", "mine.csv", "--judge", "gemini", "--set", "judge.concurrency=1", "--set"]
    done, _ = run_many(tmp_path, [[*command, "judge.max_usd=0.004"], [*command, "judge.max_usd=1"]], server)
    assert [code for code, _, _ in done] == [1, 0]
    assert "max_usd = 0.004" in done[0][2]
    assert "cost: " in done[0][1]
    endpoint, *rest = done[0][2].strip().splitlines()
    assert endpoint.endswith(f"go to {server.url}, with the key in GEMINI_API_KEY")
    assert len(rest) <= 2
    assert server.count == 29
    assert set(server.cases.values()) == {1}


def test_ctrl_c_keeps_what_is_answered(tmp_path, serve):
    process = None

    def plan(seen):
        if seen.number == 25:
            process.send_signal(signal.SIGINT)

    server = serve(plan, latency=0.05)
    answers(200).to_csv(tmp_path / "mine.csv", index=False)
    command = [sys.executable, "-m", "deployments.cli", "judge", "mine.csv", "--judge", "gemini"]
    start = "import sys; from deployments.cli import main; main(sys.argv[1:])"
    command[1:3] = ["-c", start]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(server),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.strip().splitlines()[-1].startswith("slm-calibration: stopped. Every verdict so far is kept")
    asked = server.count
    assert out.startswith(f"cost: {asked} requests, {600 * asked:,} tokens in")
    assert len(out.splitlines()) == 1
    assert 25 <= asked < 199
    [(code, _, err)], _ = run_many(tmp_path, [command[3:]], server)
    assert code == 0, err
    assert set(server.cases.values()) == {1}
    assert server.count == 199
    assert len(read(tmp_path / "mine.verdicts.csv")) == 200


def spoil(column, text):
    def change(table):
        table[column] = table[column].astype(object)
        table.loc[2, column] = text
        return table

    return change


def same(table):
    return table


BAD = {
    "no rows": (lambda t: t.iloc[:0], [], ["rows under its header"]),
    "a missing column": (lambda t: t.drop(columns="gold"), [], ["'gold'", "'answer'"]),
    "another missing column": (same, ["--id", "number"], ["'number'"]),
    "an empty question": (spoil("question", ""), [], ["row 4", "'question'"]),
    "an empty id": (spoil("id", " "), [], ["row 4", "'id'"]),
    "an id for two answers": (spoil("id", "a1"), [], ["row 4", "row 3", "'gold 1'", "other 2"]),
    "a list of numbers": (spoil("gold", "[1, 2]"), [], ["row 4", "'gold'", "got 1"]),
    "a column of the judge": (lambda t: t.assign(verdict="x"), [], ["row 2", "'verdict'", "'x'"]),
    "a mark that is none": (same, ["--against", "conf"], ["row 3", "'conf'", "0.05"]),
    "an unknown judge": (same, ["--judge", "oracle"], ["oracle", "gemini"]),
    "an unknown setting": (same, ["--set", "judge.modell=x"], ["modell", "model"]),
    "a setting of something else": (same, ["--set", "seed=1"], ["seed", "no such setting"]),
    "a retired model": (same, ["--set", "judge.model=gemini-2.0-flash"], ["2026-06-01", "3.5-flash-lite"]),
    "no price": (same, ["--set", "judge.model=gemini-9", "--set", "judge.max_usd=1"], ["max_usd", "price"]),
    "no model": (same, ["--judge", "cascade"], ["judge.model", "--set judge.NAME=VALUE"]),
    "a share above 1": (same, ["--max-unjudged", "2"], ["--max-unjudged", "2.0"]),
    "no folder": (same, ["--out", "nowhere/out.csv"], ["--out", "nowhere"]),
    "no table": (same, ["--out", "out.txt"], ["--out", ".parquet"]),
}


def test_each_bad_input_is_one_line_asks_nobody_and_leaves_nothing(tmp_path, serve):
    server, commands = serve(), []
    for number, (change, options, _) in enumerate(BAD.values()):
        change(answers(20)).to_csv(tmp_path / f"bad{number}.csv", index=False)
        commands.append(["judge", f"bad{number}.csv", "--judge", "gemini", *options])
    done, _ = run_many(tmp_path, commands, server)
    for name, (code, out, err), (_, _, wanted) in zip(BAD, done, BAD.values(), strict=True):
        assert (code, out) == (2, ""), (name, err)
        assert len(err.strip().splitlines()) == 1, (name, err)
        for words in wanted:
            assert words in err, (name, err)
    assert server.count == 0
    assert not list(tmp_path.glob("*.verdicts.csv"))


def test_files_that_are_no_tables_are_refused_by_name(tmp_path):
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "latin.csv").write_bytes("id,question,gold,answer\n1,né,é,é\n".encode("latin-1"))
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "lines.jsonl").write_text('{"id": "1"}\n{"id": \n')
    (tmp_path / "notes.txt").write_text("hello")
    names = "empty.csv", "latin.csv", "folder.csv", "broken.parquet", "lines.jsonl", "notes.txt", "absent.csv"
    done, _ = run_many(tmp_path, [["judge", name, "--judge", "exact"] for name in names])
    for name, (code, _, err) in zip(names, done, strict=True):
        assert code == 2
        assert len(err.strip().splitlines()) == 1, err
        assert name in err


def test_without_a_key_it_says_which_and_exact_needs_none(tmp_path):
    answers(6).to_csv(tmp_path / "mine.csv", index=False)
    commands = [["judge", "mine.csv", "--judge", kind] for kind in ("gemini", "exact")]
    done, _ = run_many(tmp_path, commands, key=None)
    assert [code for code, _, _ in done] == [2, 0]
    assert "GEMINI_API_KEY" in done[0][2]


def test_the_input_is_never_overwritten(tmp_path):
    answers(6).to_csv(tmp_path / "mine.csv", index=False)
    before = (tmp_path / "mine.csv").read_bytes()
    [(code, _, err)], _ = run_many(tmp_path, [["judge", "mine.csv", "--judge", "exact", "--out", "mine.csv"]])
    assert code == 2
    assert "another file" in err
    assert (tmp_path / "mine.csv").read_bytes() == before


def test_two_markings_are_compared(tmp_path):
    table = answers(20)
    table["mark"] = [1 if i % 2 else 0 for i in range(20)]
    table.loc[[0, 2], "mark"] = 1  # wrong by exact
    table["mark"] = table["mark"].astype(object)
    table.loc[19, "mark"] = ""
    table.to_csv(tmp_path / "mine.csv", index=False)
    [(code, out, err)], _ = run_many(
        tmp_path, [["judge", "mine.csv", "--judge", "exact", "--against", "mark"]]
    )
    assert code == 0, err
    assert "19 answers marked by both, 1 left out" in out
    assert "agreement   0.8947" in out
    assert f"sensitivity {9 / 11:.4f}" in out
    assert "9 of 11" in out
    assert "specificity 1.0000" in out
    assert "kappa       0.7912" in out  # 17 of 19 agree, by chance (9 * 11 + 10 * 8) / 19 of them


def large(n=3000):
    """Verdicts of a judge of sensitivity .85 and specificity .95, and the truth."""
    rng = np.random.default_rng(3)
    truth = rng.random(n) < 0.4
    marked = np.where(truth, rng.random(n) < 0.85, rng.random(n) > 0.95)
    table = pd.DataFrame(
        {
            "id": [f"q{i}" for i in range(n)],
            "question": [f"Which is number {i}?" for i in range(n)],
            "gold": "Ann",
            "answer": np.where(truth, "Ann", "Eve"),
            "verdict": np.where(marked, "correct", "incorrect"),
            "confidence": rng.random(n).round(4),
        }
    )
    return table, truth


@pytest.fixture
def audited(tmp_path):
    """A sample drawn by the command and filled in."""
    table, truth = large()
    table.to_csv(tmp_path / "v.csv", index=False)
    [(code, out, err)], heavy = run_many(tmp_path, [["judge-audit", "sample", "v.csv", "--n", 400]])
    assert code == 0, err
    assert heavy == []
    assert "400 answers drawn by mark, 200 of" in out
    sample = read(tmp_path / "v.sample.csv")
    sample["truth"] = [str(int(truth[int(key[1:])])) for key in sample["id"]]
    sample.to_csv(tmp_path / "filled.csv", index=False)
    return table, truth


def test_a_judge_is_audited(tmp_path, audited):
    read_back = ["judge-audit", "read", "v.csv", "filled.csv"]
    done, _ = run_many(tmp_path, [read_back, [*read_back, "--confidence", "confidence", "--out", "x.csv"]])
    assert [code for code, _, _ in done] == [0, 0], done
    rates = {line.split()[0]: line for line in done[0][1].splitlines()}
    for name, rate in (("sensitivity", 0.85), ("specificity", 0.95)):
        low, high = (float(part.strip("()")) for part in rates[name].split(" ")[2::2])
        assert low < rate < high
    assert "the judge is right on 0.0000" in done[0][1]
    assert done[1][1].count("\nconfidence 0.") == 3
    assert len(read(tmp_path / "v.audited.csv")) == 3000


def test_its_table_is_what_the_audit_of_a_system_reads(tmp_path, audited):
    _, truth = audited
    measure = [
        "audit",
        "v.audited.csv",
        "--id",
        "id",
        "--correct",
        "verdict",
        "--truth",
        "truth",
        "--out",
        "out",
    ]
    done, _ = run_many(tmp_path, [["judge-audit", "read", "v.csv", "filled.csv"], measure])
    assert [code for code, _, _ in done] == [0, 0], done
    [row] = json.loads((tmp_path / "out" / "report.json").read_text())["judge"]
    assert row["audited"] == 400
    assert row["accuracy"]["low"] < truth.mean() < row["accuracy"]["high"]


def test_a_persons_work_is_not_overwritten_and_a_bad_sample_is_one_line(tmp_path, audited):
    filled = read(tmp_path / "filled.csv")
    filled.loc[2, "truth"] = "maybe"
    filled.to_csv(tmp_path / "odd.csv", index=False)
    before = (tmp_path / "v.sample.csv").read_bytes()
    commands = [
        ["judge-audit", "sample", "v.csv"],
        ["judge-audit", "read", "v.csv", "odd.csv"],
        ["judge-audit", "read", "v.csv", "absent.csv"],
        ["judge-audit", "read", "filled.csv", "filled.csv"],
        ["judge-audit", "sample", "v.csv", "--n", "1", "--out", "s.csv"],
        ["judge-audit", "sample", "v.csv", "--seed", "-4", "--out", "s.csv"],
        ["judge-audit", "table", "latest"],
    ]
    wanted = ["v.sample.csv", "row 4", "absent.csv", "'verdict'", "--n", "--seed", "none yet"]
    done, _ = run_many(tmp_path, commands)
    for (code, out, err), words in zip(done, wanted, strict=True):
        assert (code, out) == (2, ""), err
        assert len(err.strip().splitlines()) == 1, err
        assert words in err
    assert (tmp_path / "v.sample.csv").read_bytes() == before
    assert not (tmp_path / "v.audited.csv").exists()


@pytest.mark.skipif(
    "SLM_CALIBRATION_DATA" not in os.environ, reason="SLM_CALIBRATION_DATA names no folder with data"
)
def test_real_answers_give_the_figures_of_the_documentation(tmp_path):
    folder = Path(os.environ["SLM_CALIBRATION_DATA"]) / "gemma2-nq"
    common = ["--judge", "exact", "--gold", "target", "--answer", "extracted_answer"]
    common += ["--missing", "FAILED TO PARSE", "--against", "extracted_prom46_score"]
    commands = [
        ["judge", folder / f"nq_gemma2_0_shot_{part}.csv.gz", *common, "--out", f"{part}.csv"]
        for part in ("test", "train")
    ]
    done, _ = run_many(tmp_path, commands, key=None)
    assert [code for code, _, _ in done] == [0, 0], done
    for (_, out, _), figures in zip(
        done, (("0.9419", "0.7818", "128 of 181", "813 of 818"), ("0.9535", "0.8194")), strict=True
    ):
        for figure in figures:
            assert figure in out
    written = Path(__file__).parents[2].joinpath("docs", "judging.md").read_text(encoding="utf-8")
    for figure in (".942", ".782", ".707", ".994", ".954", ".819", ".755"):
        assert figure in written
