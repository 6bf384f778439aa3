"""What the Prefect UI shows of each stage, read back from the server."""

import asyncio
import base64
import json
import re

import numpy as np
import pandas as pd
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

from calibration.artifacts import Store
from calibration.config import Experiment
from calibration.records import Question
from calibration.runs import BASELINE, Run, runs_root
from calibration.stages.baseline import Baseline
from flows.pipeline import baseline
from tests.told import every

MOST_BYTES = 25_000


@pytest.fixture(autouse=True)
def own_cache(tmp_path):
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "store" / "cache"}):
        yield


@pytest.fixture
def table(tmp_path):
    """Answers with confidences and marks that have nothing to do with each other; one is unjudged."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "question": f"Which is {number}?",
            "answer": "a",
            "response": "a",
            "tokens": json.dumps(["a"]),
            "logprobs": json.dumps([float(np.log(rng.uniform(0.2, 0.9)))]),
            "label": rng.choice(["correct", "incorrect"]) if number else "unjudged",
        }
        for number in range(200)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "answers.csv", index=False)
    return tmp_path / "answers.csv"


def shown(table, test):
    """Run an experiment; return its run, and what the server has of that run alone, by key."""
    experiment = Experiment.model_validate(
        {
            "name": "shown",
            "data": {"kind": "table", "path": table},
            "splits": {"train": 0, "calibration": 1 - test, "validation": 0, "test": test},
            "models": {"some.body": {"engine": {"kind": "recorded", "path": table, "logprobs": "logprobs"}}},
            "judge": {"kind": "recorded", "path": table},
            "max_unjudged": 0.5,
        }
    )
    state = asyncio.run(baseline(experiment, return_state=True))
    assert state.is_completed(), state.message
    flow_run = state.state_details.flow_run_id

    async def read():
        async with get_client() as client:
            own = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run]))
            return await every(client.read_artifacts, artifact_filter=own)

    found = {one.key: one.data for one in asyncio.run(read()) if one.type == "markdown"}
    return Run.find(runs_root(), "latest"), found


def test_answers_are_shown_also_when_cached_and_without_the_test_split(table):
    _, first = shown(table, test=0.5)
    book, again = shown(table, test=0.5)
    assert {stage.state for stage in book.stages()} == {"Cached"}
    assert set(first) == set(again) == {"answers-some-body-plain", "calibration-report"}
    text = again["answers-some-body-plain"]
    assert text == first["answers-some-body-plain"]

    questions = Baseline.model_validate_json((book.folder / BASELINE).read_text()).questions
    split = {
        question.text: question.split for question in Store.from_environment().load_rows(questions, Question)
    }
    rows = pd.read_csv(table)
    seen = rows[(rows["question"].map(split) == "calibration") & (rows["label"] != "unjudged")]
    confidence = seen["logprobs"].map(lambda cell: np.exp(json.loads(cell)[0]))
    [line] = re.findall(r"\| answer probability \|(.*)", text)
    wanted = [len(seen), (seen["label"] == "correct").mean(), confidence.mean()]
    assert [float(cell) for cell in line.split("|")[:3]] == pytest.approx(wanted, abs=0.0005)
    assert "200 answers, 1 of them unjudged." in text
    assert "Cost of this run so far: $0.00" in text

    [picture] = re.findall(r"\(data:image/png;base64,([^)]*)\)", text)
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert len(base64.b64decode(picture)) <= MOST_BYTES
    assert f"`{book.folder / 'report.html'}`" in again["calibration-report"]


def test_where_all_questions_are_for_the_test_nothing_is_told_but_how_many(table):
    _, found = shown(table, test=1)
    text = found["answers-some-body-plain"]
    assert "200 answers, 1 of them unjudged." in text
    assert "accuracy" not in text
    assert "data:image" not in text
