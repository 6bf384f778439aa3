import math

import pytest
from pydantic import ValidationError

from calibration.errors import ArtifactError
from calibration.methods import Dpo, Implicit, Outcome, Preference, TrainingSet
from calibration.prompts import PLAIN, STATED
from calibration.records import read_rows

OFF = "original confidence less than 0.3 off"


def test_the_specifications_example_comes_out_character_by_character(judged):
    rows = [
        judged("Paris", "correct", question="right", confidence=0.5),
        judged("Rome", "incorrect", question="wrong", confidence=0.5),
    ]
    made = Dpo.literal().rows({"plain": rows})
    right, wrong = made.rows
    assert right.prompt == (
        "Answer the following question and provide confidence (0.0-1.0):\n"
        "Question: Text of right?\n"
        "Format: Answer: [your answer]\nConfidence: [0.0-1.0]"
    )
    assert right.chosen == "Answer: Paris\nConfidence: 0.90"
    assert right.rejected == "Answer: Paris\nConfidence: 0.50"
    assert wrong.chosen == "Answer: Rome\nConfidence: 0.10"
    assert wrong.rejected == "Answer: Rome\nConfidence: 0.50"
    assert (right.target, wrong.target) == (0.9, 0.1)
    assert right.original == pytest.approx(0.5)
    assert made.left_out == {}


def test_the_literal_confidence_is_over_every_token_the_end_token_included(judged):
    row = judged("Paris", "correct", confidence=0.5)
    generation = row.generation.model_copy(update={"logprobs": (math.log(0.36), math.log(0.25))})
    (pair,) = Dpo.literal().rows({"plain": [row.model_copy(update={"generation": generation})]}).rows
    assert pair.rejected == "Answer: Paris\nConfidence: 0.30"  # sqrt(0.36 x 0.25), not 0.36


@pytest.mark.parametrize(
    ("label", "confidence", "kept"),
    [
        ("incorrect", 0.3, True),
        ("incorrect", 0.2999, False),
        ("incorrect", 1.0, True),
        ("correct", 0.7, True),
        ("correct", 0.7001, False),
        ("correct", 0.05, True),
        ("not_attempted", 0.3, True),
        ("not_attempted", 0.2999, False),
    ],
)
@pytest.mark.parametrize("rejected", ["original", "opposite"])
def test_the_specifications_filter_keeps_from_three_tenths_on(judged, label, confidence, kept, rejected):
    method = Dpo(minimum_gap=0.3, rejected=rejected)
    made = method.rows({"stated": [judged("Paris", label, stated=confidence, elicitation="stated")]})
    assert len(made.rows) == kept
    assert made.left_out == ({} if kept else {OFF: 1})
    literal = Dpo.literal().rows({"plain": [judged("Paris", label, confidence=confidence)]})
    assert len(literal.rows) == kept
    assert literal.left_out == ({} if kept else {OFF: 1})


def test_moderate_targets_are_eight_and_two_tenths(judged):
    rows = [
        judged("Paris", "correct", stated=0.5, elicitation="stated"),
        judged("Rome", "incorrect", stated=0.5, elicitation="stated"),
    ]
    right, wrong = Dpo(targets="moderate").rows({"stated": rows}).rows
    assert (right.chosen[-4:], right.rejected[-4:]) == ("0.80", "0.20")
    assert (wrong.chosen[-4:], wrong.rejected[-4:]) == ("0.20", "0.80")


def test_by_default_both_targets_meet_in_every_pair_whatever_was_stated(judged):
    rows = [
        judged("Paris", label, question=f"{label} {stated}", stated=stated, elicitation="stated")
        for label in ("correct", "incorrect")
        for stated in (0.0, 0.1, 0.5, 0.9, 1.0, None)
    ]
    made = Dpo().rows({"stated": rows})
    assert made.left_out == {}
    for row, pair in zip(rows, made.rows, strict=True):
        numbers = ("0.90", "0.10") if row.verdict.is_correct else ("0.10", "0.90")
        assert (pair.chosen, pair.rejected) == tuple(f"Answer: Paris\nConfidence: {n}" for n in numbers)
        assert pair.original == row.generation.stated
        assert pair.prompt == STATED.render(row.question.text)


@pytest.fixture
def mixed(judged):
    """One row for each way of being used or left out, in both ways of asking."""
    stated = {"stated": 0.5, "elicitation": "stated"}

    def both(*settings, **own):
        return judged(*settings, confidence=0.5, **own), judged(*settings, **stated, **own)

    rows = [
        both("Paris", "correct", question="a"),
        both("Rome", "incorrect", question="b"),
        both("I do not know", "not_attempted", question="c"),
        both("Oslo", "unjudged", question="d"),
        both("", "incorrect", question="e"),
        both("two\nlines", "correct", question="f"),
        both("Bern", "correct", question="g", split="calibration"),
        both("Bern", "correct", question="h", split="validation"),
        both("Bern", "correct", question="i", split="test"),
        both("", "unjudged", question="j", split="shift"),
    ]
    plain, numbered = zip(*rows, strict=True)
    return {"plain": plain, "stated": numbered}


COMMON = {"not in the train split": 4, "unjudged": 1, "no answer": 1}


@pytest.mark.parametrize(
    ("method", "used", "own"),
    [
        (Dpo(), "abc", {"answer cannot be read back from the reply": 1}),
        (Dpo.literal(), "abc", {"answer cannot be read back from the reply": 1}),
        (Implicit(), "abcf", {}),
        (Implicit.literal(), "abcf", {}),
    ],
)
def test_every_judged_row_is_used_or_counted_with_its_reason(mixed, method, used, own):
    made = method.rows(mixed)
    assert [row.question_id for row in made.rows] == list(used)
    assert made.left_out == COMMON | own
    assert len(made.rows) + sum(made.left_out.values()) == len(mixed["plain"])


def test_rows_without_a_confidence_or_a_difference_are_counted_in_the_literal_form(judged):
    rows = [
        judged("Paris", "correct", question="a"),
        judged("Paris", "correct", question="b", confidence=0.9),
        judged("Paris", "correct", question="c", confidence=0.8999),
    ]
    made = Dpo.literal().rows({"plain": rows})
    assert made.left_out == {"no readable confidence": 1, OFF: 2}
    unfiltered = Dpo.literal().model_copy(update={"minimum_gap": None}).rows({"plain": rows})
    assert unfiltered.left_out == {"no readable confidence": 1, "chosen and rejected are the same": 2}


@pytest.mark.parametrize("method", [Dpo(), Dpo.literal(), Implicit(), Implicit.literal()])
@pytest.mark.parametrize("split", ["calibration", "validation", "test", "shift"])
def test_nothing_about_other_splits_changes_the_rows(judged, mixed, method, split):
    def answers(label, text):
        row = judged(text, label, question="z", split=split, confidence=0.9)
        stated = judged(text, label, question="z", split=split, stated=0.9, elicitation="stated")
        return {"plain": [row, *mixed["plain"]], "stated": [*mixed["stated"], stated]}

    made = [method.rows(answers(*case)) for case in (("correct", "Oslo"), ("incorrect", "Rome"))]
    assert made[0] == made[1]
    assert made[0].rows == method.rows(mixed).rows
    assert not {row.question_id for row in made[0].rows} & set("ghijz")


def test_outcomes_carry_the_recorded_tokens_and_the_mark(judged):
    row = judged("Paris", "incorrect", question="a", confidence=0.5)
    generation = row.generation.model_copy(update={"token_ids": (7, 8)})
    made = Implicit().rows(
        {
            "plain": [
                row.model_copy(update={"generation": generation}),
                judged("Rome", "correct", question="b"),
            ]
        }
    )
    assert made.rows == (
        Outcome(
            question_id="a",
            prompt=PLAIN.render("Text of a?"),
            answer="Paris",
            reply="Paris",
            token_ids=(7, 8),
            span=(0,),
            is_correct=0,
        ),
        Outcome(
            question_id="b",
            prompt=PLAIN.render("Text of b?"),
            answer="Rome",
            reply="Rome",
            token_ids=(),
            span=(),
            is_correct=1,
        ),
    )


@pytest.mark.parametrize(("method", "kind"), [(Dpo(), Preference), (Implicit(), Outcome)])
def test_rows_come_back_from_disk_as_they_were(mixed, method, kind, tmp_path):
    made = method.rows(mixed)
    made.write(tmp_path / "rows.parquet")
    assert tuple(read_rows(tmp_path / "rows.parquet", kind)) == made.rows
    TrainingSet(kind=kind, rows=(), left_out={}).write(tmp_path / "none.parquet")
    assert read_rows(tmp_path / "none.parquet", kind) == []


@pytest.mark.parametrize(
    ("method", "needed", "given"), [(Dpo(), "stated", "plain"), (Dpo.literal(), "plain", "stated")]
)
def test_a_way_of_asking_that_is_missing_is_named(mixed, method, needed, given):
    assert method.learns_from == needed
    with pytest.raises(ArtifactError, match=f"the '{needed}' ones"):
        method.rows({given: mixed[given]})


def test_a_method_is_read_by_readouts_of_its_own_way_of_asking():
    assert (Dpo().elicitation, Dpo().readouts[0]) == ("stated", "stated_expected")
    assert (Implicit().elicitation, Implicit().readouts[0]) == ("plain", "geometric_mean")
    with pytest.raises(ValidationError, match=r"dpo\.readouts must be among"):
        Dpo(readouts=("joint",))
    with pytest.raises(ValidationError, match=r"implicit\.readouts must be among"):
        Implicit(readouts=("stated_greedy",))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Dpo, {"loss_weights": (1.0,)}, "must hold 2 weights"),
        (Dpo, {"label_smoothing": 0.1}, "for loss_type 'robust' alone"),
        (
            Implicit,
            {"penalty": "batch", "confidence": "joint"},
            "must be 'geometric_mean' with penalty 'batch'",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(kind, settings, message):
    with pytest.raises(ValidationError, match=message):
        kind(**settings)


@pytest.mark.parametrize("method", [Dpo.literal(), Implicit.literal()])
def test_the_literal_forms_have_the_specifications_schedule(method):
    fit, lora = method.optimisation, method.lora
    assert (fit.learning_rate, fit.epochs, fit.batch_size, fit.accumulation) == (1e-5, 3, 4, 4)
    assert (lora.rank, lora.alpha, lora.targets) == (16, 32, ("q_proj", "k_proj", "v_proj", "o_proj"))
    assert Dpo.literal().beta == 0.1
    assert Implicit.literal().weight == 0.1
