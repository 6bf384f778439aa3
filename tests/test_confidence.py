import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.confidence import (
    GRID,
    answer_span,
    expected,
    geometric_mean,
    joint,
    read_confidence,
    read_reply,
    token_at,
)
from calibration.records import Generation


@pytest.mark.parametrize(
    ("text", "answer", "stated"),
    [
        ("Answer: Paris\nConfidence: 0.83", "Paris", 0.83),
        ("Answer: Paris\nConfidence: 90%", "Paris", 0.9),
        ("Answer: Paris\nConfidence: 1", "Paris", 1.0),
        ("Answer: Paris\nConfidence: 0", "Paris", 0.0),
        ("answer: 12 March 1874 \nconfidence : 0.5.", "12 March 1874", 0.5),
        ("Paris\nConfidence: 0.5", "Paris", 0.5),
        ("Answer: Paris Confidence: 0.5", "Paris", 0.5),
        ("Answer: Paris\nConfidence: 85", "Paris", None),
        ("Answer: Paris\nConfidence: 1.5", "Paris", None),
        ("Answer: Paris\nConfidence: high", "Paris", None),
        ("Answer: Paris", "Paris", None),
        ("Answer:\nConfidence: 0.5", "", 0.5),
        ("Answer: 0.9", "0.9", None),
        ("Answer: a\nConfidence: 0.10\nAnswer: b\nConfidence: 0.90", "a", 0.1),
        ("", "", None),
    ],
)
def test_a_stated_reply_is_read_by_one_rule_and_never_guessed(text, answer, stated):
    reply = read_reply(text, "stated")
    assert (reply.answer, reply.stated) == (answer, stated)
    assert text[reply.start : reply.stop] == answer


@given(st.text())
def test_offsets_always_cut_out_the_answer(text):
    for elicitation in ("plain", "stated"):
        reply = read_reply(text, elicitation)
        assert text[reply.start : reply.stop] == reply.answer == reply.answer.strip()


def test_a_plain_reply_is_the_answer_even_if_it_looks_like_a_statement():
    assert read_reply(" Confidence: 0.9 \n", "plain").answer == "Confidence: 0.9"


def test_the_span_leaves_out_format_white_space_and_end_tokens():
    tokens = ["Answer", ":", " New", " ", "York", "\n", "Confidence", ":", " 0", ".", "9", "<eos>"]
    reply = read_reply("".join(tokens[:-1]), "stated")
    assert [tokens[i] for i in answer_span(tokens, reply.start, reply.stop)] == [" New", "York"]
    assert tokens[token_at(tokens, reply.number_start)] == " 0"


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=8))
def test_geometric_mean_is_the_nth_root_of_the_product(logprobs):
    product = math.prod(math.exp(value) for value in logprobs)
    assert joint(logprobs) == pytest.approx(product, rel=1e-9)
    assert geometric_mean(logprobs) == pytest.approx(product ** (1 / len(logprobs)), rel=1e-9)


def test_no_tokens_have_no_confidence():
    assert geometric_mean([]) is None
    assert joint([]) is None


def grid(**cells):
    return tuple(cells.get(f"p{round(c * 100):03d}", 0.0) for c in GRID)


def test_the_expected_number_is_the_mean_over_the_numbers_alone():
    assert expected(grid(p010=0.25, p090=0.75)) == pytest.approx(0.7)
    assert expected(grid(p010=0.2, p090=0.6)) == pytest.approx(0.7)
    assert expected(grid(p100=1.0)) == 1.0


def test_a_model_that_was_not_stating_a_number_has_no_expected_one():
    assert expected(grid(p090=0.49)) is None


def test_every_readout_reads_its_own_part_of_a_generation():
    generation = Generation(
        question_id="q",
        elicitation="stated",
        text="x y\nConfidence: 0.90",
        answer="x y",
        token_ids=(),
        tokens=("x", " ", "y", "<eos>"),
        logprobs=tuple(math.log(p) for p in (0.5, 0.9, 0.125, 0.8)),
        span=(0, 2),
        span_rule="r",
        finish="stop",
        stated=0.9,
        stated_grid=grid(p010=0.5, p090=0.5),
    )
    assert read_confidence(generation, "geometric_mean") == pytest.approx(0.25)
    assert read_confidence(generation, "joint") == pytest.approx(0.0625)
    assert read_confidence(generation, "geometric_mean_all") == pytest.approx(
        (0.5 * 0.9 * 0.125 * 0.8) ** 0.25
    )
    assert read_confidence(generation, "stated_greedy") == 0.9
    assert read_confidence(generation, "stated_expected") == pytest.approx(0.5)
    silent = generation.model_copy(update={"stated": None, "span": ()})
    assert read_confidence(silent, "stated_expected") is None
    assert read_confidence(silent, "geometric_mean") is None
