"""The evaluation assembles what the metrics say, and opens the test split for nothing else."""

import math
from datetime import UTC, datetime

import numpy as np
import pytest

from calibration.confidence import READOUTS
from calibration.errors import ConfigurationError, DataError
from calibration.evaluation import Trained, evaluate, read_system
from calibration.maps import cross_fit, fit_platt
from calibration.metrics.errors import calibration_error, calibration_floor, hle_calibration_error
from calibration.metrics.outcomes import tally
from calibration.metrics.ranking import auroc
from calibration.records import Generation, Judged, Question, Verdict
from calibration.results import Evaluation
from calibration.routing.goals import CostOptimal
from calibration.routing.rules import Prices, threshold_for_cost

SIZES = {"train": 20, "calibration": 120, "validation": 80, "test": 260, "shift": 70}
MEASURED = datetime(2026, 11, 24, tzinfo=UTC)
PRICES = Prices(slm_cost=0.001, llm_cost=0.02, value=0.1, llm_accuracy=0.6)


def judged_row(split, number, way, confidence, correct):
    """One judged answer whose confidence is `confidence` (None: unreadable), marked `correct` (None: not)."""
    question_id = f"{split}-{number:03d}"
    grid = [0.0] * 101
    if confidence is not None:
        grid[round(confidence * 100)] = 1.0
    is_plain = way == "plain"
    return Judged(
        question=Question(
            id=question_id,
            text=f"What is {question_id}?",
            answers=(f"Gold {number}", "another"),
            topic="Art" if number % 3 else "Sport",
            answer_type="Date" if number % 2 else "Person",
            split=split,
        ),
        generation=Generation(
            question_id=question_id,
            elicitation=way,
            text="answer",
            answer=f"Answer {number}",
            token_ids=(),
            tokens=("answer", "<eos>"),
            logprobs=(math.log(confidence) if is_plain and confidence else -1.0, 0.0),
            span=(0,) if is_plain and confidence is not None else (),
            span_rule="answer-tokens@1",
            finish="stop",
            stated=None if is_plain else confidence,
            stated_grid=() if is_plain else tuple(grid),
        ),
        verdict=Verdict(
            question_id=question_id,
            label="unjudged" if correct is None else "correct" if correct else "incorrect",
            judge="test",
        ),
    )


def answers(way="plain", *, seed=0, sharpness=0.5, shift=2.0, sizes=SIZES, flaws=True):
    """Judged answers of one system; some test answers are unjudged or unreadable."""
    rows = []
    for split_number, (split, n) in enumerate(sizes.items()):
        facts, own = np.random.default_rng([7, split_number]), np.random.default_rng([seed, split_number])
        known = facts.normal(-1, 1.5, n)
        correct = facts.random(n) < 1 / (1 + np.exp(-known))
        confidence = 1 / (1 + np.exp(-(sharpness * known + (1 - sharpness) * own.normal(0, 2, n) + shift)))
        for number in range(n):
            unreadable = flaws and split == "test" and number in (3, 4)
            unjudged = flaws and split == "test" and number == 5
            rows.append(
                judged_row(
                    split,
                    number,
                    way,
                    None if unreadable else round(confidence[number], 4),
                    None if unjudged else bool(correct[number]),
                )
            )
    return rows


def base(sizes=SIZES, *, flaws=True):
    return {
        "small": {
            "plain": answers(sizes=sizes, flaws=flaws),
            "stated": answers("stated", seed=1, sharpness=0.3, sizes=sizes, flaws=flaws),
        },
        "large": {"plain": answers(seed=2, sharpness=0.6, sizes=sizes, flaws=flaws)},
    }


def run(base_rows, trained=(), **settings):
    usual = {"prices": PRICES, "router": CostOptimal(), "measured": MEASURED, "seed": 0, "missing": {}}
    return evaluate(base_rows, "small", trained, **{**usual, **settings})


def taught(sizes=SIZES):
    return Trained(
        "dpo",
        ("stated_expected", "stated_greedy"),
        answers("stated", seed=3, sharpness=1.0, shift=0.0, sizes=sizes, flaws=False),
    )


@pytest.fixture(scope="module")
def full():
    return run(base(), [taught()], missing={"implicit": "its training job ended with status 1"})


def rows_of(evaluation, **wanted):
    return [row for row in evaluation.rows if all(getattr(row, k) == v for k, v in wanted.items())]


def test_every_system_readout_map_and_split_has_its_row(full):
    found = {(r.system, r.model, r.readout, r.map, r.split) for r in full.rows}
    ways = {"small": ("plain", "stated"), "large": ("plain",)}
    expected = {
        ("base", model, readout, map_name, split)
        for model, asked in ways.items()
        for way in asked
        for readout in READOUTS[way]
        for map_name in ("none", "platt")
        for split in ("test", "shift")
    }
    expected |= {
        ("dpo", "small", readout, map_name, split)
        for readout in ("stated_expected", "stated_greedy")
        for map_name in ("none", "platt")
        for split in ("test", "shift")
    }
    expected |= {("constant", "small", "constant", "none", split) for split in ("test", "shift")}
    assert found == expected
    assert len(full.rows) == len(expected)


def test_a_row_says_what_the_metrics_say_of_the_usable_answers(full):
    (row,) = rows_of(full, system="base", model="small", readout="geometric_mean", map="none", split="test")
    test = [r for r in answers() if r.question.split == "test"]
    judged = [r for r in test if r.verdict.label != "unjudged"]
    usable = [r for r in judged if r.generation.span]
    confidence = [math.exp(r.generation.logprobs[0]) for r in usable]
    correct = [r.verdict.label == "correct" for r in usable]
    o = tally(confidence, correct)
    assert (row.n, row.n_unjudged, row.n_unreadable) == (257, 1, 2)
    assert row.accuracy == pytest.approx(np.mean([r.verdict.label == "correct" for r in judged]))
    assert row.mean_confidence == pytest.approx(np.mean(confidence))
    assert row.rms_hle == pytest.approx(hle_calibration_error(confidence, correct))
    assert row.rms == pytest.approx(float(calibration_error(o)))
    assert row.rms_floor == pytest.approx(calibration_floor(o))
    assert row.auroc == pytest.approx(float(auroc(o)))


def test_the_map_is_fitted_on_the_calibration_split_alone(full):
    (row,) = rows_of(full, system="base", model="small", readout="geometric_mean", map="platt", split="shift")
    by_split = read_system("base", "geometric_mean", answers()).scores_by_split
    known, unseen = by_split["calibration"], by_split["shift"]
    mapped = fit_platt(known.confidence, known.correct)(unseen.confidence)
    assert row.mean_confidence == pytest.approx(mapped.mean())
    assert row.rms == pytest.approx(float(calibration_error(tally(mapped, unseen.correct))))


def test_the_constant_row_says_the_calibration_accuracy_of_everything(full):
    (row,) = rows_of(full, system="constant", split="test")
    known = [r for r in answers() if r.question.split == "calibration"]
    assert row.mean_confidence == pytest.approx(np.mean([r.verdict.label == "correct" for r in known]))
    assert (row.auroc, row.effective_levels, row.n) == (0.5, pytest.approx(1.0), 259)


def test_test_labels_decide_no_map_no_constant_and_no_readout():
    """Turning every test mark round must leave every confidence and every choice as it was."""

    def turned(rows):
        other = {"correct": "incorrect", "incorrect": "correct", "unjudged": "unjudged"}
        return [
            r.model_copy(update={"verdict": r.verdict.model_copy(update={"label": other[r.verdict.label]})})
            if r.question.split in ("test", "shift")
            else r
            for r in rows
        ]

    plain = run(base())
    mirrored = run(
        {model: {way: turned(rows) for way, rows in ways.items()} for model, ways in base().items()}
    )
    assert [r.mean_confidence for r in plain.rows] == [r.mean_confidence for r in mirrored.rows]
    assert [c.confidence for c in plain.curves] == [c.confidence for c in mirrored.curves]
    assert plain.notes == mirrored.notes


def test_a_verdict_for_each_level_twice_and_a_reason_for_what_is_missing(full):
    assert [(v.system, v.level, v.literal) for v in full.verdicts] == [
        ("dpo", level, literal) for literal in (False, True) for level in ("minimum", "target", "stretch")
    ]
    assert [(m.system, m.reason) for m in full.missing] == [
        ("implicit", "its training job ended with status 1")
    ]


def test_counts_groups_curves_and_routes(full):
    assert full.counts == SIZES
    groups = {(g.system, g.group_by, g.group): g.n for g in full.groups}
    assert groups["base", "topic", "Art"] + groups["base", "topic", "Sport"] == 257
    assert groups["dpo", "answer_type", "Date"] + groups["dpo", "answer_type", "Person"] == 260
    views = [
        ("base", "geometric_mean", "none"),
        ("base", "geometric_mean", "platt"),
        ("dpo", "stated_expected", "none"),
        ("dpo", "stated_expected", "platt"),
    ]
    assert [(c.system, c.readout, c.map) for c in full.curves] == views
    assert [(r.system, r.readout, r.map, r.rule) for r in full.routing] == [
        (*view, rule) for view in views for rule in ("reference 0.7", "cost-optimal")
    ]
    assert {r.threshold for r in full.routing} == {0.7, threshold_for_cost(PRICES)}
    assert {r.escalated.total for r in full.routing if r.system == "base"} == {259}  # unreadable ones as well


def test_a_group_says_what_the_metrics_say_of_its_answers(full):
    group = next(g for g in full.groups if (g.system, g.group) == ("dpo", "Sport"))
    scores = read_system("dpo", "stated_expected", taught().judged).on("test")
    inside = np.array([topic == "Sport" for topic in scores.topic])
    o = tally(scores.confidence[inside], scores.correct[inside])
    assert group.rms == pytest.approx(float(calibration_error(o)))
    assert (group.accuracy, group.mean_confidence) == pytest.approx(
        (float(o.accuracy), float(o.mean_confidence))
    )


def test_examples_are_the_extremes_of_each_system(full):
    scores = read_system("base", "geometric_mean", answers()).on("test")
    mine = [e for e in full.examples if e.system == "base"]
    wrong = [e.confidence for e in mine if e.why == "confidently wrong"]
    right = [e.confidence for e in mine if e.why == "doubted but right"]
    assert wrong == sorted(scores.confidence[scores.usable & (scores.correct == 0)])[-1:-6:-1]
    assert right == sorted(scores.confidence[scores.usable & (scores.correct == 1)])[:5]
    assert all(e.is_correct == (e.why == "doubted but right") for e in full.examples)
    assert all(e.expected.startswith("Gold") and e.answer.startswith("Answer") for e in mine)


def test_an_evaluation_survives_json_and_does_not_depend_on_the_order_of_rows(full):
    assert Evaluation.model_validate_json(full.model_dump_json()) == full
    backwards = {model: {way: rows[::-1] for way, rows in ways.items()} for model, ways in base().items()}
    again = run(backwards, [taught()], missing={"implicit": "its training job ended with status 1"})
    assert again.model_dump(exclude={"counts"}) == full.model_dump(exclude={"counts"})
    assert again.counts == full.counts


def test_with_test_answers_only_maps_are_cross_fitted_and_it_is_said():
    only = {"test": 220}
    found = run(base(only, flaws=False), [taught(only)])
    assert {row.split for row in found.rows} == {"test"}
    assert {row.map for row in found.rows} == {"none", "platt_crossfit"}
    assert any("cross-fitted" in note for note in found.notes)
    assert any("no shift split" in note for note in found.notes)
    (row,) = rows_of(found, system="base", model="small", readout="geometric_mean", map="platt_crossfit")
    scores = read_system("base", "geometric_mean", answers(sizes=only, flaws=False)).on("test")
    mapped = cross_fit(fit_platt, scores.ids, scores.confidence, scores.correct)
    assert row.brier == pytest.approx(np.mean((mapped - scores.correct) ** 2))
    (constant,) = rows_of(found, system="constant")
    assert constant.mean_confidence == pytest.approx(scores.correct.mean(), abs=0.02)


def test_measuring_only_needs_no_trained_system_and_no_second_way_of_asking():
    found = run({"small": {"plain": answers()}})
    assert found.verdicts == ()
    assert {row.system for row in found.rows} == {"base", "constant"}


def test_undefined_numbers_are_none():
    tiny = {"calibration": 30, "test": 4}
    rows = list(answers(sizes=tiny, flaws=False))
    rows = [
        r.model_copy(update={"verdict": r.verdict.model_copy(update={"label": "incorrect"})}) for r in rows
    ]
    (row,) = rows_of(run({"small": {"plain": rows}}), readout="geometric_mean", map="none")
    assert (row.auroc, row.rms_hle, row.accuracy) == (None, None, 0)
    silent = [judged_row("test", number, "plain", None, number % 2 == 0) for number in range(4)]
    found = run({"small": {"plain": silent}})
    (row,) = rows_of(found, readout="geometric_mean")
    assert (row.n, row.n_unreadable, row.accuracy, row.rms, row.l1, row.brier) == (
        0,
        4,
        0.5,
        None,
        None,
        None,
    )
    assert found.routing[0].escalated.value == 1
    assert found.examples == ()


def test_what_cannot_be_evaluated_is_named():
    with pytest.raises(ConfigurationError, match="target must be one of large; got 'small'"):
        run({"large": {"plain": answers()}})
    with pytest.raises(ConfigurationError, match="readout 'stated_greedy' can read; it was asked plain"):
        run({"small": {"plain": answers()}}, seed_readout="stated_greedy")
    with pytest.raises(DataError, match="base must have answers on the split 'test'"):
        run({"small": {"plain": [r for r in answers() if r.question.split != "test"]}})
    twice = answers()
    with pytest.raises(DataError, match="'test-000' is answered several times"):
        run({"small": {"plain": [*twice, *(r for r in twice if r.question.id == "test-000")]}})
    fewer = Trained("dpo", ("stated_greedy",), [r for r in taught().judged if r.question.id != "test-007"])
    with pytest.raises(DataError, match="test-007"):
        run(base(), [fewer])
