"""The whole pipeline on the smallest world and model: real pretraining, real decoding, real training."""

import argparse
import asyncio
import json
import os
import re
import signal
from pathlib import Path

import pandas as pd
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from calibration.artifacts import Store
from calibration.backends.local import Local
from calibration.config import Experiment
from calibration.records import Question
from calibration.runs import Run, runs_root
from calibration.stages.baseline import Baseline
from deployments.judge import table as write_verdicts
from flows.pipeline import baseline, calibrate, compare
from flows.remeasure import remeasure
from flows.sweep import sweep
from tasks.journal import listening
from tests.told import every

QUICK = {"epochs": 1, "learning_rate": 1e-3}
EXPERIMENT = {
    "name": "small",
    "data": {
        "kind": "world",
        "entities_per_topic": 24,
        "pool_size": 6,
        "statement_share": 0.1,
        "stated_share": 0.4,
    },
    "splits": {"train": 0.4, "calibration": 0.2, "validation": 0.1, "test": 0.3, "shift_topics": ["Sports"]},
    "models": {
        "tiny": {
            "weights": {
                "kind": "pocket",
                "width": 64,
                "layers": 2,
                "heads": 2,
                "key_value_heads": 1,
                "feed_forward": 128,
                "tokens_per_step": 512,
                "epochs": 2,
            }
        }
    },
    "judge": {"kind": "exact"},
    "methods": {
        "dpo": {"kind": "dpo", "optimisation": QUICK},
        "implicit": {"kind": "implicit", "optimisation": QUICK},
    },
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One store and one folder of runs for all tests here, which build on each other's results."""
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(autouse=True)
def environment(folders, monkeypatch):
    monkeypatch.setenv("SLM_CALIBRATION_STORE", str(folders / "store"))
    monkeypatch.setenv("SLM_CALIBRATION_RUNS", str(folders / "runs"))
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: folders / "store" / "cache"}):
        yield


def experiment(**methods):
    return Experiment.model_validate({**EXPERIMENT, "methods": methods or EXPERIMENT["methods"]})


def run(flow, chosen, **parameters):
    """Run a flow to its end; return its run and how each of its stages ended."""
    state = asyncio.run(flow(chosen, return_state=True, **parameters))
    book = Run.find(runs_root(), parameters.get("run") or "latest")
    return state, book, {stage.name: stage.state for stage in book.stages()}


@pytest.fixture(scope="module")
def first(folders):
    """The first run, made when a test first asks for it."""
    return {}


@pytest.fixture
def whole(first):
    if not first:
        state, book, stages = run(calibrate, experiment())
        assert state.is_completed(), state.message
        first.update(book=book, stages=stages)
    return first["book"], first["stages"]


def test_a_run_goes_from_the_world_to_the_verdict(whole):
    book, stages = whole
    assert set(stages.values()) == {"Completed"}
    report = json.loads((book.folder / "report.json").read_text())
    assert (report["run"], report["experiment"], report["seed"]) == (book.folder.name, "small", 0)
    systems = {(row["system"], row["readout"], row["map"], row["split"]) for row in report["rows"]}
    for wanted in [
        ("base", "geometric_mean", "none", "test"),
        ("base", "joint", "none", "test"),
        ("base", "stated_greedy", "none", "test"),
        ("base", "stated_expected", "none", "test"),
        ("dpo", "stated_expected", "none", "test"),
        ("implicit", "geometric_mean", "none", "test"),
        ("implicit", "geometric_mean", "none", "shift"),
    ]:
        assert wanted in systems, wanted
    assert any(row["system"] == "constant" for row in report["rows"])
    assert {(v["system"], v["level"]) for v in report["verdicts"]} == {
        (system, level) for system in ("dpo", "implicit") for level in ("minimum", "target", "stretch")
    }
    assert {stage["name"] for stage in report["stages"]} == set(stages)
    assert report["versions"]["torch"].startswith("2.")
    assert report["judge_protocol"] == {"version": "exact@1", "protocol": {"kind": "exact"}}
    for name in ("report.html", "report.md", "summary.txt", "baseline.json"):
        assert (book.folder / name).stat().st_size > 0


def test_methods_are_taught_side_by_side(whole):
    book, _ = whole
    lines = [json.loads(line) for line in (book.folder / "stages.jsonl").read_text().splitlines()]
    data = [(line["name"], line["state"]) for line in lines if line["name"] in {"data dpo", "data implicit"}]
    assert [state for _, state in data] == ["Running", "Running", "Completed", "Completed"]


def test_the_ui_shows_what_every_stage_came_to(whole):
    book, _ = whole

    async def read():
        async with get_client() as client:
            return [one for one in await every(client.read_artifacts) if one.type == "markdown"]

    shown = {one.key: one.data for one in sorted(asyncio.run(read()), key=lambda one: one.created)}
    assert {f"answers-{name}" for name in ("tiny-plain", "tiny-stated", "dpo-stated", "implicit-plain")} | {
        f"{stage}-{method}" for stage in ("data", "training") for method in ("dpo", "implicit")
    } | {"calibration-report"} <= set(shown)
    measured = Baseline.model_validate_json((book.folder / "baseline.json").read_text())
    questions = len(Store.from_environment().load_rows(measured.questions, Question))
    learnt, left_out = map(int, re.search(r"(\d+) rows .*; (\d+) ", shown["data-implicit"]).groups())
    assert learnt + left_out == questions
    assert "not in the train split" in shown["data-implicit"]
    assert "loss at start" in shown["training-dpo"]


def test_a_second_run_runs_no_stage_and_says_the_same(whole):
    book, _ = whole
    _, again, stages = run(calibrate, experiment())
    assert set(stages.values()) == {"Cached"}
    one, other = (json.loads((b.folder / "report.json").read_text()) for b in (book, again))
    assert one["rows"] == other["rows"]
    assert one["verdicts"] == other["verdicts"]
    assert again.folder != book.folder


def test_a_changed_setting_of_one_method_repeats_that_method_only(whole):
    changed = EXPERIMENT["methods"] | {"dpo": {**EXPERIMENT["methods"]["dpo"], "beta": 0.3}}
    _, _, stages = run(calibrate, experiment(**changed))
    repeated = {name for name, state in stages.items() if state == "Completed"}
    # The pairs do not depend on beta, but they are made by the method whose setting changed.
    taught = {f"{stage} dpo stated" for stage in ("infer", "judge", "summarise")}
    assert repeated <= {"data dpo", "train dpo", "evaluate", "draw"} | taught
    assert "train dpo" in repeated
    assert stages["train implicit"] == stages["infer implicit plain"] == "Cached"


class Told:
    """Remembers which stages were seen at work; a result that is found makes no progress."""

    def __init__(self):
        self.stages = set()

    def started(self, stage):
        pass

    def ended(self, record):
        pass

    def progressed(self, stage, fraction, note):
        self.stages.add(stage)


def test_a_refreshed_stage_does_its_work_again_and_no_other_does(whole):
    told = Told()
    with listening(told):
        _, _, stages = run(calibrate, experiment(), refresh="train dpo")
    assert told.stages == {"train dpo"}
    assert {name for name, state in stages.items() if state != "Cached"} == {"train dpo"}


def test_a_method_that_fails_leaves_the_other_whole_and_is_named_in_the_report(whole):
    broken = EXPERIMENT["methods"] | {"dpo": {**EXPERIMENT["methods"]["dpo"], "minimum_gap": 1.0}}
    state, book, stages = run(calibrate, experiment(**broken))
    assert state.is_failed()
    assert stages["train implicit"] == "Cached"
    assert stages["train dpo"] == "Failed"
    report = json.loads((book.folder / "report.json").read_text())
    assert [gap["system"] for gap in report["missing"]] == ["dpo"]
    assert {row["system"] for row in report["rows"]} >= {"base", "implicit"}
    assert book.read().state == "Failed"
    assert "dpo" in book.read().error


class Ender:
    """Ends the training of one method as soon as it has told of progress."""

    def __init__(self, end):
        self.end, self.ended_it = end, False

    def started(self, stage):
        pass

    def ended(self, record):
        pass

    def progressed(self, stage, fraction, note):
        if stage == "train dpo" and not self.ended_it:
            self.ended_it = True
            self.end()


def kill_the_last_worker():
    """Kill the youngest job of this process."""
    workers = [
        int(place.parent.name)
        for place in Path("/proc").glob("[0-9]*/stat")
        if place.read_text().rpartition(")")[2].split()[1] == str(os.getpid())
        and b"calibration.backends.worker" in (place.parent / "cmdline").read_bytes()
    ]
    os.kill(max(workers), signal.SIGKILL)


def cancel_what_runs_here():
    asyncio.current_task().cancel()


@pytest.mark.slow
def test_a_branch_that_is_killed_or_cancelled_leaves_the_others_whole_and_is_done_later(whole):
    dpo = {**EXPERIMENT["methods"]["dpo"], "beta": 0.31}
    chosen = experiment(**EXPERIMENT["methods"] | {"dpo": dpo, "third": {**dpo, "beta": 0.32}})
    name = None
    for end, words in [(kill_the_last_worker, "ended with code -9"), (cancel_what_runs_here, "cancelled")]:
        with listening(Ender(end)):
            state, book, stages = run(calibrate, chosen, run=name, on=Local(at_once=1))
        name = book.folder.name
        assert not state.is_completed()
        assert stages.get("train dpo") not in {"Completed", "Cached"}
        assert stages["train implicit"] == "Cached"
        report = json.loads((book.folder / "report.json").read_text())
        assert {row["system"] for row in report["rows"]} == {"base", "constant", "implicit", "third"}
        [missing] = report["missing"]
        assert missing["system"] == "dpo"
        assert words in missing["reason"]
        assert (book.state(), book.stopped_at()) == ("Failed", "train dpo")
        assert words in book.read().error
    assert stages["train third"] == "Cached"
    state, book, stages = run(calibrate, chosen, run=name)
    assert state.is_completed(), state.message
    assert (stages["train dpo"], stages["train third"]) == ("Completed", "Cached")
    report = json.loads((book.folder / "report.json").read_text())
    assert report["missing"] == []
    assert {row["system"] for row in report["rows"]} >= {"dpo", "implicit", "third"}


def test_the_baseline_alone_is_measured_and_reported(whole):
    _, book, stages = run(baseline, experiment())
    assert not any("train" in name for name in stages)
    report = json.loads((book.folder / "report.json").read_text())
    assert {row["system"] for row in report["rows"]} == {"base", "constant"}
    assert report["verdicts"] == []


def test_methods_are_compared_on_what_another_run_has_measured(whole):
    book, _ = whole
    _, compared, stages = run(compare, experiment(), base=book.folder.name)
    assert not any(name.startswith(("prepare", "obtain")) for name in stages)
    one, other = (json.loads((b.folder / "report.json").read_text()) for b in (book, compared))
    assert one["rows"] == other["rows"]


@pytest.mark.slow
def test_a_sweep_tests_the_best_cell_alone_and_a_cell_that_fails_stops_no_other(whole):
    over = {"methods.dpo.minimum_gap": [0.0, 1.0]}  # of the second, no row is left to learn from
    splits = {"train": 0.3, "calibration": 0.25, "validation": 0.25, "test": 0.2}
    asked = Experiment.model_validate({**EXPERIMENT, "splits": splits})
    state, book, stages = run(sweep, asked, over=over)
    assert state.is_failed()
    assert stages["obtain tiny"] == "Cached"
    assert "infer dpo-minimum_gap-0 validation stated" in stages
    ranking = json.loads((book.folder / "sweep.json").read_text())
    cells = {cell["name"]: cell for cell in ranking["cells"]}
    assert "must" in cells["dpo-minimum_gap-1"]["problem"]
    report = json.loads((book.folder / "report.json").read_text())
    tested = {row["system"] for row in report["rows"]} - {"base", "constant"}
    assert tested == {ranking["chosen"]} - {None}
    assert ("infer dpo-minimum_gap-0 stated" in stages) == (ranking["chosen"] is not None)
    assert ranking["base"]["n"] == report["counts"]["validation"]
    assert any("2 cells were tried" in note for note in report["notes"])
    assert "2 cells were tried" in (book.folder / "summary.txt").read_text()
    assert [gap["system"] for gap in report["missing"]] == ["dpo-minimum_gap-1"]


def test_a_model_that_is_measured_again_is_asked_again_and_gives_the_same_answers(whole):
    base, _ = whole
    book, stages = run(remeasure, base.folder.name)[1:]
    asked = [name for name in stages if name.startswith("infer")]
    assert [stages[name] for name in asked] == ["Completed"]
    found = json.loads((book.folder / "drift.json").read_text())
    assert found["system"] == json.loads((base.folder / "router_policy.json").read_text())["system"]
    [comparison] = found["comparisons"]
    assert comparison["n_identical"] == comparison["n_after"] + comparison["n_left_out"] > 0
    # The same answers, but not a hundred of them.
    assert (found["decision"], comparison["needed"]) == ("cannot tell", 100)
    assert not any("train" in name for name in stages)


def test_an_audit_of_the_judge_corrects_the_report_and_smooths_the_labels_of_dpo(whole, folders):
    book, _ = whole
    write_verdicts(argparse.Namespace(run=book.folder.name, out=str(folders / "marks.csv")))
    rows = pd.read_csv(folders / "marks.csv", dtype=str, keep_default_na=False)
    wrong = rows.index % 10 == 0  # in the eyes of a person
    rows["truth"] = ((rows["verdict"] == "correct") != wrong).astype(int)
    rows.to_csv(folders / "audited.csv", index=False)
    settings = {"label_smoothing": "audited", "loss_type": ["robust", "sft"]}
    dpo = EXPERIMENT["methods"]["dpo"]
    changed = EXPERIMENT | {
        "judge_audit": {"path": folders / "audited.csv"},
        "methods": EXPERIMENT["methods"] | {"dpo": {**dpo, **settings}},
    }
    state, audited, stages = run(calibrate, Experiment.model_validate(changed))
    assert state.is_completed(), state.message
    assert (stages["train dpo"], stages["train implicit"]) == ("Completed", "Cached")
    report = json.loads((audited.folder / "report.json").read_text())
    assert {row["system"] for row in report["judge"]} == {"base", "dpo", "implicit"}
    rate = float(wrong.mean())
    changed["methods"] = EXPERIMENT["methods"] | {"dpo": {**dpo, **settings, "label_smoothing": rate}}
    _, _, again = run(calibrate, Experiment.model_validate(changed))
    assert set(again.values()) == {"Cached"}  # the figure of the audit is what was trained with


def test_a_run_is_continued_under_its_own_name(whole):
    book, _ = whole
    _, again, stages = run(calibrate, experiment(), run=book.folder.name)
    assert again.folder == book.folder
    assert set(stages.values()) == {"Cached"}
    state, _, _ = run(calibrate, experiment(dpo={"kind": "dpo"}), run=book.folder.name)
    assert state.is_failed()
    assert "with the experiment it began with" in state.message
