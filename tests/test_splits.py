from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from calibration.errors import ConfigurationError
from calibration.records import Question
from calibration.splits import Splits


def ask(number, topic="Other", text=None):
    return Question(id=f"q{number}", text=text or f"subject {number}", answers=("a",), topic=topic)


def split_of(questions, splits=None):
    return {question.id: question.split for question in (splits or Splits()).assign(questions)}


def test_fractions_are_met():
    counts = Counter(split_of([ask(n) for n in range(20_000)]).values())
    for name, share in {"train": 0.5, "calibration": 0.15, "validation": 0.1, "test": 0.25}.items():
        # Four standard deviations of a binomial share are below .015.
        assert counts[name] / 20_000 == pytest.approx(share, abs=0.015)


@given(st.permutations(range(60)), st.integers(40, 60))
def test_a_question_keeps_its_split_when_others_are_added_removed_or_reordered(order, kept):
    everything = Splits(train=0.5, calibration=0.5, validation=0, test=0)
    whole = split_of([ask(n) for n in range(60)], everything)
    part = split_of([ask(n) for n in order[:kept]], everything)
    assert part == {key: whole[key] for key in part}


def test_the_order_and_everything_but_the_split_are_kept():
    questions = [ask(n) for n in range(50)]
    assigned = Splits(train=0.5, calibration=0, validation=0, test=0.5).assign(questions)
    assert [question.model_copy(update={"split": "test"}) for question in assigned] == questions


def test_a_fraction_of_zero_gets_nothing():
    assert set(
        split_of([ask(n) for n in range(500)], Splits(train=0, calibration=0, validation=0, test=1)).values()
    ) == {"test"}


def test_questions_that_ask_the_same_in_other_words_of_no_weight_go_together():
    pairs = [
        question
        for n in range(300)
        for question in (
            ask(f"{n}a", text=f"Who was the founder of town {n}?"),
            ask(f"{n}b", text=f"who is the FOUNDER of Town {n}"),
        )
    ]
    splits = split_of(pairs)
    assert all(splits[f"q{n}a"] == splits[f"q{n}b"] for n in range(300))
    assert len(set(splits.values())) == 4


def test_questions_that_differ_in_a_number_are_no_duplicates():
    questions = [ask(n, text=f"Who won the medal in {n}?") for n in range(300)]
    assert len(set(split_of(questions).values())) == 4


def test_a_duplicate_pair_follows_one_of_its_own_splits():
    alone = split_of([ask(n, text=f"founder of town {n}") for n in range(400)])
    paired = split_of([ask(n, text=f"founder of town {n // 2}") for n in range(400)])
    assert all(paired[f"q{n}"] in (alone[f"q{n}"], alone[f"q{n ^ 1}"]) for n in range(400))


def test_shift_topics_keep_all_their_questions_to_themselves():
    questions = [ask(n, topic="Music" if n % 5 == 0 else "Art") for n in range(500)]
    splits = split_of(questions, Splits(shift_topics=("Music",)))
    assert {n for n in range(500) if splits[f"q{n}"] == "shift"} == set(range(0, 500, 5))
    unshifted = split_of(questions)
    assert all(splits[f"q{n}"] == unshifted[f"q{n}"] for n in range(500) if n % 5)


def test_a_duplicate_of_a_shifted_question_is_shifted_too():
    questions = [ask(n) for n in range(200)]
    twin = [ask("m", topic="Music", text="Who sang it?"), ask("a", topic="Art", text="who sang it")]
    splits = split_of([*questions, *twin], Splits(shift_topics=("Music",)))
    assert splits["qm"] == splits["qa"] == "shift"


def test_an_unknown_shift_topic_names_those_there_are():
    with pytest.raises(ConfigurationError, match=r"'Musik'\. Choose from: Art, Music"):
        Splits(shift_topics=("Musik",)).assign([ask(1, "Music"), ask(2, "Art")])


def test_a_wanted_split_without_questions_is_refused():
    with pytest.raises(ConfigurationError, match=r"split must hold a question; it is empty: 2 questions"):
        Splits().assign([ask(1), ask(2)])
    with pytest.raises(ConfigurationError, match="0 questions"):
        Splits().assign([])
    with pytest.raises(ConfigurationError, match="50 of them shifted"):
        Splits(shift_topics=("Art",)).assign([ask(n, "Art") for n in range(50)])


@pytest.mark.parametrize(
    "shares", [{"train": 0.6}, {"train": 0.4}, {"train": -0.5, "test": 1.25}, {"train": float("nan")}]
)
def test_fractions_that_are_no_shares_of_one_are_refused(shares):
    with pytest.raises(ValidationError):
        Splits(**shares)


def test_the_wrong_sum_is_shown():
    with pytest.raises(ValidationError, match=r"must sum to 1; got 1\.1 \(train 0\.6, calibration 0\.15"):
        Splits(train=0.6)
