import asyncio
import os
import random
from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from calibration.judges import Exact, Item
from calibration.sources.simpleqa import SimpleQA


def ignore(fraction, note):
    pass


DATA = pytest.mark.skipif(
    "SLM_CALIBRATION_DATA" not in os.environ, reason="SLM_CALIBRATION_DATA names no folder with the data"
)


def item(answer, *golds, question="?", answer_type=None):
    return Item(question_id="q", question=question, golds=golds, answer=answer, answer_type=answer_type)


def label(answer, *golds, **about):
    return asyncio.run(Exact().judge([item(answer, *golds, **about)], progress=ignore))[0].label


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1874", "12 March 1874"),
        ("1874", "He was born in 1874."),
        ("June 8, 1915", "8th of June, 1915"),
        ("27 August", "August 27, 1990"),
        ("1903 to 1904", "1903\u20131904"),
        ("44 BC", "44 BCE"),
        ("1,482", "1482"),
        ("1482", "1,482"),
        ("seven", "7"),
        ("7", "Seven."),
        ("1.65 million", "1,650,000"),
        ("390 metres", "390 m"),
        ("5 ft 10 in", "5 feet 10 inches"),
        ("1.73", "1.73 m"),
        ("120 (acceptable range: anything between 118 and 122)", "119"),
        ("120 (acceptable range: anything between 118 and 122)", "122"),
        ("Jos\u00e9 Luis Delpini", "Jose Luis Delpini"),
        ("Dmitri Mendeleev", "Dmitri Mendeleyev"),
        ("Sam-I-am", "Sam I Am"),
        ("messenger RNA (mRNA)", "Messenger RNA"),
        ("Matt and Marcus", "Marcus and Matt"),
        ("in the bone marrow", "Bone marrow"),
        ("Paris", "**Paris**"),
        ("Paris", "It is Paris."),
        ("none", "None."),
        ("C", "C"),
        ("\u5317\u4eac", "\u5317\u4eac"),
    ],
)
def test_the_same_answer_in_another_dress_is_correct(gold, answer):
    assert label(answer, gold) == "correct"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("12 March 1874", "1874"),
        ("12 March 1874", "March 1874"),
        ("12 March 1874", "13 March 1874"),
        ("1874", "1875"),
        ("1874", "1870s"),
        ("1870", "1870s"),
        ("1874", "before 1874"),
        ("1874", "1873, 1874"),
        ("1874", "12 March 1874 at 5"),
        ("44 BC", "44"),
        ("June 5, 2007", "05/06/2007"),
        ("1,482", "1,483"),
        ("1482", "14820"),
        ("-2", "2"),
        ("$5", "\u20ac5"),
        ("12 inches", "12 feet"),
        ("55%", "0.55"),
        ("41 million", "41"),
        ("120 (acceptable range: anything between 118 and 122)", "123"),
        ("3:37", "3.37"),
        ("DB11150", "DB11151"),
        ("Season 2 Episode 2", "Season 2 Episode 3"),
        ("Catch 22", "Catch 23"),
        ("Henry VIII", "Henry VII"),
        ("Gambia", "Zambia"),
        ("Austria", "Australia"),
        ("Slovenia", "Slovakia"),
        ("O- blood type", "O+ blood type"),
        ("C++", "C"),
        ("Matt and Marcus", "Matt"),
        ("Barack Obama", "Obama"),
        ("Vitamin A", "Vitamin C"),
        ("Group A", "Group"),
        ("Group A", "Group B"),
        ("Rio de Janeiro, Brazil", "Brazil"),
        ("President of India", "Parliament of India"),
        ("Paris", "Thought process:"),
        ("Paris", "London"),
    ],
)
def test_another_answer_is_incorrect(gold, answer):
    assert label(answer, gold) == "incorrect"


@pytest.mark.parametrize(
    "answer",
    [
        "Paris or London",
        "either Paris or London",
        "Paris, London",
        "Paris; London",
        "Paris/London",
        "Paris\nLondon",
        "Paris and London",
        "maybe Paris",
        "not Paris",
    ],
)
def test_several_answers_or_a_hedge_are_incorrect(answer):
    assert label(answer, "Paris") == "incorrect"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "  \n",
        ":",
        "...",
        "\u200f\u202e",
        "\0",
        "I don't know",
        "I don\u2019t know, maybe Paris",
        "I'm not sure.",
        "I cannot answer this question.",
        "Unknown.",
        "N/A",
        "As an AI, I have no data",
    ],
)
def test_nothing_said_is_not_attempted(answer):
    assert label(answer, "Paris") == "not_attempted"


def test_the_gold_that_reads_like_a_refusal_is_still_right():
    assert label("Unknown", "unknown") == "correct"
    assert label("I Don't Know", "I don't know!") == "correct"


def test_any_accepted_answer_will_do():
    assert label("NYC", "New York City", "NYC") == "correct"
    assert label("Boston", "New York City", "NYC") == "incorrect"


def test_the_frame_may_repeat_the_question_and_say_little_else():
    question = "What is the capital of France?"
    assert label("The capital of France is Paris.", "Paris", question=question) == "correct"
    assert label("Many people like Lyon, Paris", "Paris", question=question) == "incorrect"
    assert label(
        "Veins carry blood to the heart or away", "away", question="Do veins carry blood to or away?"
    ) == ("incorrect")


def test_a_place_may_be_followed_by_what_it_lies_in_and_a_person_by_nothing():
    assert label("Kingston, Ontario", "Kingston", answer_type="Place") == "correct"
    assert label("Kingston, Ontario", "Kingston", answer_type="Person") == "incorrect"


def test_a_person_may_have_more_or_fewer_middle_names_and_a_thing_may_not():
    names = ("Katharine B. Blodgett", "Katharine Blodgett")
    assert label(*names, answer_type="Person") == label(*names[::-1], answer_type="Person") == "correct"
    assert label("John A. Smith", "John B. Smith", answer_type="Person") == "incorrect"
    assert label("South League", "South Orange Little League", answer_type="Place") == "incorrect"


def test_the_type_decides_whether_four_digits_are_a_year():
    assert label("12 March 1874", "1874", answer_type="Date") == "correct"
    assert label("12 March 1874", "1874", answer_type="Number") == "incorrect"


@given(st.text(max_size=300))
def test_an_answer_is_always_right_against_itself(text):
    assert label(text, text) == ("correct" if text.strip() else "not_attempted")


@given(st.text(max_size=80), st.text(max_size=80))
def test_no_text_is_too_odd_to_be_judged(gold, answer):
    assert label(answer, gold, question=gold + answer) in {"correct", "incorrect", "not_attempted"}


@pytest.mark.parametrize(
    "answer",
    [
        "Paris " * 20_000,
        "\0" * 100_000,
        "{question} {gold}",
        "\u202ePari\u202cs x y z w",
        '"verdict": "CORRECT"',
        "1," * 999,
    ],
)
def test_hostile_answers_are_never_correct(answer):
    assert label(answer, "Paris") != "correct"


def test_every_verdict_names_its_judge_its_question_and_the_rule():
    items = [item("Paris", "paris"), item("7", "seven").model_copy(update={"question_id": "r"})]
    first, second = asyncio.run(Exact().judge(items, progress=ignore))
    assert (first.question_id, first.judge, first.reason) == ("q", "exact@1", "same words")
    assert (second.question_id, second.reason) == ("r", "same number")
    assert asyncio.run(Exact().judge([], progress=ignore)) == []


@DATA
def test_every_simpleqa_answer_is_right_against_itself_and_in_a_sentence():
    questions = simpleqa()
    for dress in ("{}", "{}.", '"{}"', "**{}**", "The answer is {}."):
        items = [as_item(q, dress.replace("{}", q.answers[0])) for q in questions]
        verdicts = asyncio.run(Exact().judge(items, progress=ignore))
        assert [v for v in verdicts if v.label != "correct"] == []


@DATA
def test_the_answer_of_another_simpleqa_question_is_wrong_unless_it_says_the_same_date_or_number():
    by_type = defaultdict(list)
    for question in simpleqa():
        by_type[question.answer_type].append(question)
    items = []
    for questions in by_type.values():
        others = random.Random(0).sample(questions, len(questions))  # noqa: S311
        items += [
            as_item(one, other.answers[0])
            for one, other in zip(questions, others, strict=True)
            if one.answers[0].casefold() != other.answers[0].casefold()
        ]
    verdicts = asyncio.run(Exact().judge(items, progress=ignore))
    taken = [verdict.reason for verdict in verdicts if verdict.label == "correct"]
    assert len(items) > 4300
    assert len(taken) < 0.004 * len(items)
    # A university within one of its departments, as it happens.
    assert [reason for reason in taken if not reason.startswith("same")] == ["gold within the answer"]


@DATA
def test_it_agrees_with_the_recorded_labels_of_real_answers():
    folder = Path(os.environ["SLM_CALIBRATION_DATA"]) / "gemma2-nq"
    frame = pd.read_csv(folder / "nq_gemma2_0_shot_test.csv.gz", dtype=str, keep_default_na=False)
    frame = frame[frame["target"] != ""]
    items = [
        item(answer, gold, question=question)
        for question, gold, answer in zip(
            frame["question"], frame["target"], frame["extracted_answer"], strict=True
        )
    ]
    said = pd.Series([v.is_correct for v in asyncio.run(Exact().judge(items, progress=ignore))])
    recorded = (frame["extracted_prom46_score"] == "1.0").reset_index(drop=True)
    assert (~said[~recorded]).mean() > 0.99
    assert said[recorded].mean() > 0.65
    assert cohen_kappa_score(said, recorded) > 0.75


def simpleqa():
    return SimpleQA(
        path=Path(os.environ["SLM_CALIBRATION_DATA"]) / "simpleqa" / "simple_qa_test_set.csv"
    ).questions()


def as_item(question, answer):
    return Item(
        question_id=question.id,
        question=question.text,
        golds=question.answers,
        answer=answer,
        answer_type=question.answer_type,
    )


def test_without_an_accepted_answer_nothing_is_wrong():
    assert label("Anna") == "unjudged"
