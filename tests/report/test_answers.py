"""The sentences of a report, each true of what it is about."""

from datetime import UTC, datetime

import numpy as np
import pytest

from calibration.metrics.inference import Graded
from calibration.metrics.noise import JudgeAudit
from calibration.report.answers import answers, decisive, recommended, routed, why_recommended
from calibration.results import LEVELS, Evaluation, Line, Row, VerdictReport
from calibration.routing.build import build_policy
from calibration.routing.goals import Budget, Certified, CostOptimal, Reference
from calibration.routing.rules import Prices

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def verdict(level, system="dpo", **outcomes):
    """Lines of the given outcomes; one that is None is undecided because nothing was measured."""
    lines = tuple(
        Line(name=n, value=None if o is None else 0.1, threshold=None, outcome=o or "undecided")
        for n, o in outcomes.items()
    )
    found = {line.outcome for line in lines}
    outcome = next(o for o in ("fail", "undecided", "pass") if o in found)
    return VerdictReport(system=system, level=level, outcome=outcome, lines=lines)


def said(*verdicts, **more):
    (answer,) = answers(Evaluation(rows=(), counts={}, verdicts=verdicts, **more))
    return answer.outcome, answer.sentence


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (("pass", "pass", "pass"), ("pass", "dpo reaches every level, minimum to stretch.")),
        (
            ("pass", "fail", "fail"),
            (
                "pass",
                "dpo reaches the minimum level; it does not reach the target level: it fails on accuracy.",
            ),
        ),
        (
            ("pass", "pass", "undecided"),
            (
                "pass",
                (
                    "dpo reaches the target level; it may or may not reach the stretch level: "
                    "too few questions to tell on accuracy."
                ),
            ),
        ),
        (("fail", "fail", "fail"), ("fail", "dpo does not reach the minimum level: it fails on accuracy.")),
        (
            ("undecided", "undecided", "fail"),
            (
                "undecided",
                "dpo may or may not reach the minimum level: too few questions to tell on accuracy.",
            ),
        ),
    ],
)
def test_the_answer_names_the_highest_level_reached_and_what_stops_the_next(outcomes, expected):
    pairs = zip(LEVELS, outcomes, strict=True)
    assert said(*(verdict(level, accuracy=outcome, readable="pass") for level, outcome in pairs)) == expected


def test_the_answer_names_each_reason_once_and_no_line_that_passes():
    sentence = said(
        verdict(
            "minimum", rms_reduction="fail", rms_hle_reduction="fail", accuracy="undecided", readable="fail"
        )
    )[1]
    assert sentence.endswith("it fails on calibration error and readability.")


@pytest.mark.parametrize(
    ("lines", "end"),
    [
        ({"shift": None}, ": to tell takes questions on topics that training has not seen."),
        ({"shift": "undecided"}, ": too few questions to tell on unseen topics."),
        (
            {"accuracy": "undecided", "shift": None, "answer_types": None},
            (
                ": too few questions to tell on accuracy; it also takes questions on topics that training "
                "has not seen and two kinds of questions, 100 of each."
            ),
        ),
        ({"rms_hle_reduction": None}, ": too few questions to tell on calibration error."),
    ],
)
def test_no_questions_of_a_kind_are_told_from_too_few(lines, end):
    reached = [verdict("minimum", accuracy="pass"), verdict("target", **lines), verdict("stretch", **lines)]
    assert said(*reached)[1].endswith(end)


@pytest.mark.parametrize(
    ("outcome", "remark"),
    [
        ("fail", " With a two-parameter map, before does as well."),
        ("undecided", " These questions cannot tell it from before with a two-parameter map."),
    ],
)
def test_the_answer_says_when_a_map_would_have_done_and_names_the_base(outcome, remark):
    sentence = said(verdict("minimum", brier_after_map=outcome, accuracy="fail"), base="before")[1]
    assert sentence.endswith(remark)


def test_literal_criteria_do_not_decide_the_answer():
    literal = verdict("minimum", accuracy="fail").model_copy(update={"literal": True})
    verdicts = [literal, *(verdict(level, accuracy="pass") for level in LEVELS)]
    assert said(*verdicts)[0] == "pass"
    assert decisive(verdicts) == "stretch"


# --- where the base stands


def row(n, n_unreadable=0, accuracy=0.2, **more):
    known = {"mean_confidence": 0.7, "rms": 0.5, "rms_floor": 0.04} if n else {}
    names = {"system": "base", "model": "org/model", "readout": "joint", "map": "none", "split": "test"}
    counts = {"n": n, "n_unjudged": 5, "n_unreadable": n_unreadable, "accuracy": accuracy}
    return Row(**(names | counts | known | more))


def stands(one):
    (answer,) = answers(Evaluation(rows=(one,), counts={}))
    return answer.sentence


def test_accuracy_is_of_the_judged_and_confidence_of_the_readable():
    assert stands(row(300, n_unreadable=100)) == (
        "As it is, org/model is right in 20 % of 400 questions; its confidence, readable for 300 of them, "
        "averages 70 %. Its RMS calibration error is .500; if calibrated, it would score about .040."
    )
    assert stands(row(400)).startswith(
        "As it is, org/model is right in 20 % of 400 questions; its confidence averages 70 %. "
    )


def test_a_single_bin_is_not_sold_as_more():
    assert stands(row(199)).endswith(
        "below 200 answers, that is just how far its mean confidence is from its accuracy."
    )
    assert stands(row(200)).endswith("if calibrated, it would score about .040.")


def test_a_base_without_readable_or_judged_answers_is_described_as_such():
    assert stands(row(0, n_unreadable=30)) == (
        "As it is, org/model is right in 20 % of 30 questions, and none of its confidences can be read."
    )
    assert stands(row(0, accuracy=None)) == "As it is, org/model has no judged answer."


# --- what a router may do


def graded(n=500, seed=0, unreadable=0, name="q"):
    rng = np.random.default_rng(seed)
    confidence = rng.random(n)
    correct = (rng.random(n) < confidence).astype(float)
    confidence[:unreadable] = np.nan
    return Graded(tuple(f"{name}{i}" for i in range(n)), confidence, correct)


def policy(rule, *, prices=None, answers=None, **more):
    return build_policy(
        answers or graded(),
        system="slm",
        rule=rule,
        readout="confidence",
        prices=prices or Prices(),
        created=NOW,
        **more,
    )


def kept(figures):
    found = figures.kept_accuracy
    return f"{found.total} are kept, {found.count} of them right ({100 * found.value:.1f}".removesuffix(".0")


def test_a_threshold_is_said_with_the_counts_of_this_very_policy():
    found = policy(CostOptimal(), answers=graded(seed=1))
    assert found.expected.kept_accuracy != found.on_fit.kept_accuracy
    assert routed(found, "slm") == (
        "Keep an answer of slm whose calibrated probability is at least .300, and escalate the rest. "
        f"Of the 500 answers that this rule was made from, {kept(found.on_fit)} %)."
    )


def test_answers_that_the_policy_has_not_seen_go_first():
    found = policy(CostOptimal(), test=graded(200, seed=1, name="t"))
    assert routed(found, "slm").endswith(
        f" Of 200 answers that this rule has not seen, {kept(found.expected)} %)."
    )


@pytest.mark.parametrize("unreadable", [0, 3])
def test_a_threshold_below_every_probability_keeps_every_answer(unreadable):
    found = policy(CostOptimal(), prices=Prices(llm_accuracy=0.1), answers=graded(unreadable=unreadable))
    assert found.threshold < 0
    which = "slm whose confidence can be read" if unreadable else "slm"
    assert routed(found, "slm").startswith(
        f"Keep every answer of {which}: at these prices, the large model's answers are not worth what they "
        f"cost. Of the 500 answers that this rule was made from, {500 - unreadable} are kept, "
    )


def test_a_threshold_that_all_reach_keeps_every_answer():
    always = Graded(
        tuple("abcd" * 25 + str(i) for i in range(100)), np.full(100, 0.5), np.repeat([1.0, 0.0], 50)
    )
    sentence = routed(policy(CostOptimal(), answers=always), "slm")
    assert sentence.startswith("Keep every answer of slm: even the least confident one is kept. ")


def test_a_budget_of_nothing_keeps_every_answer_and_one_of_all_keeps_none():
    assert routed(policy(Budget(escalated=0)), "slm").startswith(
        "Keep every answer of slm: the budget pays for no other. "
    )
    assert routed(policy(Budget(escalated=1)), "slm") == (
        "Escalate every answer of slm: the budget pays for all of them."
    )


def test_a_budget_below_the_unreadable_escalates_and_says_why():
    assert routed(policy(Budget(escalated=0.01), answers=graded(unreadable=50)), "slm") == (
        "Escalate every answer of slm: 10.0% of the confidences cannot be read and must be escalated, more "
        "than the budget of 1.0%."
    )


def test_a_threshold_that_no_answer_can_reach_escalates_every_answer():
    useless = Graded(tuple(map(str, range(100))), np.full(100, 0.5), np.repeat([1.0, 0.0], [10, 90]))
    assert routed(policy(Reference(), answers=useless), "slm") == (
        "Escalate every answer of slm: an answer is kept from a calibrated probability of .700 on, and none "
        "can have more than .100."
    )


def test_a_threshold_that_no_known_answer_reached_keeps_none_of_them():
    low = graded()
    low = Graded(low.ids, low.confidence / 2, low.correct)
    found = policy(CostOptimal(), prices=Prices(llm_accuracy=1, llm_cost=0.0001), answers=low)
    assert found.on_fit.kept_accuracy.total == 0
    assert routed(found, "slm") == (
        "Keep an answer of slm whose calibrated probability is at least .990, and escalate the rest. "
        "Of the 500 answers that this rule was made from, none is kept."
    )


def test_a_certificate_says_whose_marks_it_is_about():
    promise = "With a probability of 90 %, at least 60 % of what is kept is right by {} marks."
    assert routed(policy(Certified(accuracy=0.6)), "slm").endswith(promise.format("the judge's"))
    audit = JudgeAudit(195, 200, 195, 200)
    assert routed(policy(Certified(accuracy=0.6), judge=audit), "slm").endswith(promise.format("people's"))


def test_a_goal_out_of_reach_escalates_every_answer_and_says_why():
    assert routed(policy(Certified(accuracy=0.99)), "slm").startswith(
        "Escalate every answer of slm: no threshold"
    )


def test_the_router_of_an_experiments_base_is_called_by_its_model():
    evaluation = Evaluation(rows=(row(300),), counts={}, policies={"base": policy(CostOptimal())})
    sentence = answers(evaluation)[-1].sentence
    assert sentence.startswith("Keep an answer of org/model whose")


# --- which policy


def test_the_evaluation_says_which_policy_to_follow_else_the_verdict_does():
    verdicts = [
        *(verdict(level, "poor", accuracy="fail") for level in LEVELS),
        *(verdict(level, "good", accuracy="pass" if level == "minimum" else "fail") for level in LEVELS),
        *(verdict(level, "late", accuracy="pass" if level == "minimum" else "fail") for level in LEVELS),
    ]
    by_verdict = Evaluation(base="before", rows=(), counts={}, verdicts=verdicts)
    assert recommended(by_verdict) == "good"
    assert why_recommended(by_verdict).startswith("the first to reach the minimum level")
    named = by_verdict.model_copy(update={"recommended": "poor"})
    assert (recommended(named), why_recommended(named)) == ("poor", "the audited system")
    none = Evaluation(base="before", rows=(), counts={}, verdicts=verdicts[:3])
    assert recommended(none) == "before"
    assert "nothing that was made of it reaches a level" in why_recommended(none)
