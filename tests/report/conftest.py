"""A run that could have happened: two models, three methods, 1000 test questions, generated answers."""

import json
import math
from datetime import UTC, datetime

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.evaluation import Trained, evaluate
from calibration.records import Elicitation, Generation, Judged, Question, Split, Verdict
from calibration.report.figures import draw
from calibration.report.page import RenderedReport, RunInfo, render
from calibration.results import Evaluation, StageRecord
from calibration.routing.goals import CostOptimal
from calibration.routing.rules import Prices

HOSTILE = "<script>alert(1)</script>"
SIZES: dict[Split, int] = {"calibration": 300, "validation": 200, "test": 1000, "shift": 250}
TOPICS, KINDS = ("Art", "Geography", "Music", "Science"), ("Date", "Number", "Person")

Values = NDArray[np.float64]


def sigmoid(logit):
    return 1 / (1 + np.exp(-logit))


def generation(question: Question, elicitation: Elicitation, answer: str, confidence: float) -> Generation:
    """An answer whose every readout is the given confidence, as near as the readout can say it."""
    stated = round(confidence, 1)
    grid = np.zeros(101)
    low = min(99, math.floor(100 * confidence))
    grid[low + 1] = 100 * confidence - low
    grid[low] = 1 - grid[low + 1]
    return Generation(
        question_id=question.id,
        elicitation=elicitation,
        text=answer,
        answer=answer,
        token_ids=(),
        tokens=(answer, "<eos>"),
        logprobs=(min(0.0, math.log(confidence)), -0.05),
        span=(0,),
        span_rule="answer-tokens@1",
        finish="stop",
        stated=stated if elicitation == "stated" else None,
        stated_grid=tuple(grid) if elicitation == "stated" else (),
    )


def judged(elicitation: Elicitation, confidence: Values, correct: NDArray[np.bool_]) -> list[Judged]:
    """Answers on all splits, one of them unjudged and, among the most confident, hostile and endless ones."""
    places = [(split, i) for split, size in SIZES.items() for i in range(size)]
    odd = {int(i): text for i, text in zip(np.argsort(-confidence), (HOSTILE, "very " * 100), strict=False)}
    rows = []
    for n, (split, i) in enumerate(places):
        question = Question(
            id=f"{split}-{i}",
            text=f"Who founded town number {n} <b>& when</b>?",
            answers=(f"Person {n}",),
            topic=TOPICS[n % 4],
            answer_type=KINDS[n % 3],
            split=split,
        )
        label = "unjudged" if i == 7 else "correct" if correct[n] else "incorrect"
        answer = odd.get(n, f"Person {n if correct[n] else n + 1}")
        rows.append(
            Judged(
                question=question,
                generation=generation(question, elicitation, answer, float(confidence[n])),
                verdict=Verdict(question_id=question.id, label=label, judge="exact@1"),
            )
        )
    return rows


@pytest.fixture(scope="session")
def simulated():
    """Ability per question, and judged answers of an overconfident base, a good method and a poor one."""
    rng = np.random.default_rng(7)
    n = sum(SIZES.values())
    ability = rng.normal(-0.4, 1.3, n)
    right = rng.random(n) < sigmoid(ability)
    worse = right & (rng.random(n) > 0.15)

    def confidence(slope: float, shift: float, noise: float) -> Values:
        return np.clip(sigmoid(slope * ability + shift + rng.normal(0, noise, n)), 0.01, 0.99)

    return {
        "plain": judged("plain", confidence(0.5, 1.1, 0.9), right),
        "stated": judged("stated", confidence(0.5, 1.6, 0.9), right),
        "other": judged("plain", confidence(0.4, 0.8, 0.9), worse),
        "dpo": judged("stated", confidence(0.9, -0.1, 0.4), right),
        "implicit": judged("plain", confidence(0.6, 0.6, 0.8), worse),
    }


def evaluated(simulated, methods: tuple[str, ...] = ("dpo", "implicit")) -> Evaluation:
    readouts = {"dpo": ("stated_expected", "stated_greedy"), "implicit": ("geometric_mean",)}
    return evaluate(
        {
            "google/gemma-2-2b-it": {"plain": simulated["plain"], "stated": simulated["stated"]},
            "Qwen/Qwen2.5-1.5B-Instruct": {"plain": simulated["other"]},
        },
        "google/gemma-2-2b-it",
        [Trained(name, readouts[name], simulated[name]) for name in methods],
        prices=Prices(llm_accuracy=0.8),
        router=CostOptimal(),
        measured=datetime(2026, 11, 24, 10, tzinfo=UTC),
        seed=0,
        missing={"hybrid": f"JobError: loss is not finite {HOSTILE}"} if methods else {},
    )


@pytest.fixture(scope="session")
def evaluation(simulated) -> Evaluation:
    return evaluated(simulated)


@pytest.fixture(scope="session")
def baseline_only(simulated) -> Evaluation:
    return evaluated(simulated, methods=())


@pytest.fixture(scope="session")
def info() -> RunInfo:
    names = (
        "prepare questions",
        "answer base plain",
        "judge base plain",
        "train dpo",
        "train hybrid",
        "evaluate",
    )
    return RunInfo(
        run="pocket-20261124-calm-otter",
        experiment="pocket",
        seed=0,
        backend=json.dumps({"kind": "local", "workers": 1}),
        started="2026-11-24T10:00:00+00:00",
        seconds=412.7,
        stages=tuple(
            StageRecord(name=name, state="Failed" if "hybrid" in name else "Completed", seconds=3.7 * i * i)
            for i, name in enumerate(names)
        ),
        versions={"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0"},
        settings=json.dumps({"name": "pocket", "seed": 0, "methods": {"dpo": {"kind": "dpo", "beta": 0.1}}}),
        code="9f2c" * 16,
    )


@pytest.fixture(scope="session")
def figures(evaluation) -> dict[str, bytes]:
    return draw(evaluation)


@pytest.fixture(scope="session")
def report(evaluation, info, figures) -> RenderedReport:
    return render(evaluation, info, figures)
