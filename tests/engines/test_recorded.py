import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from calibration.confidence import SPAN_RULE, read_confidence
from calibration.engines.recorded import RECORDED_SPAN_RULE, RecordedAnswers, recorded_span
from calibration.errors import ConfigurationError, DataError
from calibration.records import Question
from calibration.sources.rows import question_id

TOKENS = ["Frank", " Morris", " ", "\n", "<eos>"]
ROW = {"question": "who?", "response": "Frank Morris \n", "tokens": TOKENS, "p": [0.5, 0.25, 0.9, 0.8, 1.0]}
DATA = pytest.mark.skipif(
    "SLM_CALIBRATION_DATA" not in os.environ, reason="SLM_CALIBRATION_DATA names no folder with gemma2-nq/"
)


def recorded(tmp_path, *rows, **settings):
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return RecordedAnswers(path=path, **({"probabilities": "p"} | settings))


def asked(*texts):
    return [Question(id=question_id(text), text=text, answers=("x",)) for text in texts]


def answers(engine, *texts):
    return engine.generate(
        asked(*texts), engine.elicitation, model=None, adapter=None, progress=lambda share, note: None
    )


def error_of(engine, *texts):
    with pytest.raises(DataError) as caught:
        answers(engine, *(texts or ("who?",)))
    with pytest.raises(DataError, match=r"answers\.jsonl"):
        engine.check(asked(*(texts or ("who?",))), engine.elicitations)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_response_its_answer_and_its_span_are_read(tmp_path):
    (generation,) = answers(recorded(tmp_path, ROW), "who?")
    assert (generation.text, generation.answer) == ("Frank Morris \n", "Frank Morris")
    assert (generation.span, generation.span_rule, generation.finish) == ((0, 1), SPAN_RULE, "stop")
    assert generation.tokens == tuple(TOKENS)
    assert generation.logprobs == pytest.approx([math.log(p) for p in ROW["p"]])
    assert read_confidence(generation, "joint") == pytest.approx(0.125)


def test_answers_come_in_the_order_of_the_questions_and_unasked_ones_stay_out(tmp_path):
    rows = [ROW | {"question": text, "response": "Frank Morris \n"} for text in ("a", "b", "c")]
    got = answers(recorded(tmp_path, *rows), "c", "a")
    assert [g.question_id for g in got] == [question_id("c"), question_id("a")]


def test_an_id_column_replaces_the_question_text(tmp_path):
    engine = recorded(tmp_path, {**ROW, "question": "", "n": 7}, id="n")
    (got,) = engine.generate(
        [Question(id="7", text="?", answers=("x",))],
        "plain",
        model=None,
        adapter=None,
        progress=lambda share, note: None,
    )
    assert got.question_id == "7"


def test_logprobs_are_taken_as_they_are(tmp_path):
    row = ROW | {"p": [-0.5, -0.0, 0, -3, -1e-9]}
    (got,) = answers(recorded(tmp_path, row, probabilities=None, logprobs="p"), "who?")
    assert got.logprobs == (-0.5, 0, 0, -3, -1e-9)


def test_padding_is_dropped_and_its_zero_probabilities_with_it(tmp_path):
    padded = ROW | {"tokens": [*TOKENS, "<pad>", "<pad>"], "p": [*ROW["p"], 0.0, 0.0]}
    assert answers(recorded(tmp_path, padded), "who?") == answers(recorded(tmp_path, ROW), "who?")


def test_named_span_tokens_are_the_span(tmp_path):
    row = ROW | {"span": ["Morris"], "answer": "Morris"}
    (got,) = answers(recorded(tmp_path, row, span_tokens="span", answer="answer"), "who?")
    assert (got.answer, got.span, got.span_rule) == ("Morris", (1,), RECORDED_SPAN_RULE)


def test_an_answer_column_without_span_tokens_is_found_in_the_response(tmp_path):
    row = ROW | {"answer": "Morris"}
    (got,) = answers(recorded(tmp_path, row, answer="answer"), "who?")
    assert (got.answer, got.span, got.span_rule) == ("Morris", (1,), SPAN_RULE)


@pytest.mark.parametrize("answer", ["", "  ", "FAILED TO PARSE"])
def test_an_answer_that_could_not_be_read_has_no_span(tmp_path, answer):
    row = ROW | {"answer": answer, "span": ["FAILED TO PARSE"]}
    engine = recorded(tmp_path, row, span_tokens="span", answer="answer", missing=("FAILED TO PARSE",))
    (got,) = answers(engine, "who?")
    assert (got.answer, got.span) == ("", ())
    assert read_confidence(got, "geometric_mean") is None
    assert read_confidence(got, "geometric_mean_all") is not None


@pytest.mark.parametrize(
    ("cell", "stated"), [("0.8", 0.8), (0, 0.0), ("1.0", 1.0), ("-1.0", None), ("", None)]
)
def test_stated_numbers_are_read_and_markers_of_failure_are_none(tmp_path, cell, stated):
    engine = recorded(tmp_path, ROW | {"s": cell}, elicitation="stated", stated="s", missing=("-1.0",))
    assert [g.stated for g in answers(engine, "who?")] == [stated]


def test_without_a_column_the_stated_number_is_read_out_of_the_response(tmp_path):
    text = "Answer: Ann\nConfidence: 0.83"
    row = {"question": "who?", "response": text, "tokens": list(text), "p": [0.5] * len(text)}
    (got,) = answers(recorded(tmp_path, row, elicitation="stated"), "who?")
    assert (got.stated, got.answer, got.span) == (0.83, "Ann", (8, 9, 10))


def test_an_answer_without_its_end_token_counts_as_cut_off(tmp_path):
    cut = ROW | {"question": "b", "tokens": TOKENS[:-1], "p": ROW["p"][:-1]}
    got = answers(recorded(tmp_path, ROW, cut, end_token="<eos>"), "who?", "b")  # noqa: S106
    assert [g.finish for g in got] == ["stop", "length"]


def test_lists_written_in_csv_are_read_as_python_or_json(tmp_path):
    path = tmp_path / "a.csv"
    frame = pd.DataFrame(
        {
            "question": ["a", "b"],
            "response": ["it's \n"] * 2,
            "tokens": [str(["it's", " ", "\n"]), json.dumps(["it's", " ", "\n"])],
            "p": ["[0.5, 0.5, 1]"] * 2,
        }
    )
    frame.to_csv(path, index=False)
    one, two = answers(RecordedAnswers(path=path, probabilities="p"), "a", "b")
    assert one.tokens == two.tokens == ("it's", " ", "\n")
    assert one.span == two.span == (0,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"p": [0.5, "NaN", 0.9, 0.8, 1]}, ["row 1", "'p'", "'NaN'", "(0, 1]"]),
        ({"p": [0.5, float("nan"), 0.9, 0.8, 1]}, ["row 1", "'p'", "NaN"]),
        ({"p": [0.5, 0.0, 0.9, 0.8, 1]}, ["row 1", "'p'", "'0.0'"]),
        ({"p": [0.5, 1.5, 0.9, 0.8, 1]}, ["row 1", "'p'", "'1.5'"]),
        ({"p": [0.5, True, 0.9, 0.8, 1]}, ["row 1", "'p'", "True"]),
        ({"p": [0.5, None, 0.9, 0.8, 1]}, ["row 1", "'p'", "None"]),
        ({"p": [0.5]}, ["row 1", "'p'", "5 tokens", "1 numbers"]),
        ({"p": "[0.5, "}, ["row 1", "'p'", "list"]),
        ({"p": "0.5"}, ["row 1", "'p'", "list"]),
        ({"tokens": "Frank Morris"}, ["row 1", "'tokens'", "list"]),
        ({"tokens": [1, 2, 3, 4, None]}, ["row 1", "'tokens'", "texts"]),
        ({"tokens": ["<pad>", *TOKENS[1:]]}, ["row 1", "'tokens'", "'<pad>'", "pad_token"]),
        ({"tokens": ["Hank", *TOKENS[1:]]}, ["row 1", "'tokens'", "join up", "Hank Morris"]),
    ],
)
def test_an_unusable_row_is_named_with_its_column_and_value(tmp_path, change, words):
    message = error_of(recorded(tmp_path, ROW | change))
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("value", [0.1, "inf", "-inf", "NaN"])
def test_a_logprob_that_is_none_is_refused(tmp_path, value):
    row = ROW | {"p": [value, -1, -1, -1, -1]}
    assert "log-probabilities <= 0" in error_of(recorded(tmp_path, row, probabilities=None, logprobs="p"))


def test_a_span_or_answer_that_is_not_in_the_response_is_refused(tmp_path):
    row = ROW | {"span": ["Morris", "Frank"], "answer": "Clarence"}
    assert "'span'" in error_of(recorded(tmp_path, row, span_tokens="span"))
    assert "'Clarence'" in error_of(recorded(tmp_path, row, answer="answer"))


@pytest.mark.parametrize("cell", ["1.2", "-1.0", "high", "nan"])
def test_a_stated_number_outside_the_unit_interval_is_refused(tmp_path, cell):
    message = error_of(recorded(tmp_path, ROW | {"s": cell}, elicitation="stated", stated="s"))
    assert f"'s' must be a number in [0, 1]; got {cell!r}" in message


def test_rows_that_are_not_asked_for_are_checked_too(tmp_path):
    assert "row 2" in error_of(recorded(tmp_path, ROW, ROW | {"question": "b", "p": []}))


def test_a_question_without_an_answer_is_named(tmp_path):
    message = error_of(recorded(tmp_path, ROW), "who?", "where?", "when?")
    assert "'where?'" in message
    assert "1 more" in message


def test_a_missing_column_names_those_there_are(tmp_path):
    assert "'q'; it has 'question', 'response', 'tokens', 'p'" in error_of(
        recorded(tmp_path, ROW, probabilities="q")
    )


def test_two_rows_for_one_question_are_refused(tmp_path):
    assert "row 2" in error_of(recorded(tmp_path, ROW, ROW))


@pytest.mark.parametrize("columns", [{}, {"probabilities": "p", "logprobs": "l"}])
def test_exactly_one_kind_of_probability_must_be_named(tmp_path, columns):
    with pytest.raises(ValidationError, match="exactly one of"):
        RecordedAnswers(path=tmp_path / "x.csv", **columns)


def test_what_was_not_recorded_cannot_be_asked(tmp_path):
    engine = recorded(tmp_path, ROW)
    assert engine.elicitations == ("plain",)
    with pytest.raises(ConfigurationError, match="'plain'; got 'stated'"):
        engine.check(asked("who?"), ["stated"])
    with pytest.raises(ConfigurationError, match="adapter"):
        engine.generate(
            asked("who?"), "plain", model=None, adapter=tmp_path / "lora", progress=lambda share, note: None
        )


@pytest.mark.parametrize(
    ("tokens", "named", "span"),
    [
        (["a", "b", "a", "b"], ["b"], (1,)),
        (["2", "0", "1", "9"], ["1", "9"], (2, 3)),
        (["x", " 1", "/", "2", "\n"], ["1", "2"], (1, 3)),
        (["**", "Ann", "**"], ["Ann"], (1,)),
        (["Mission", ":", "<eos>"], ["Mission:"], (0, 1)),
        (["19", "84"], ["9", "84"], None),
        (["1984"], ["19"], None),
        (["Ann", " or", " Bob"], ["Ann", "Bob"], None),
        (["Ann"], ["Ann", "Bob"], None),
        ([], ["Ann"], None),
        (["Ann"], [" "], ()),
    ],
)
def test_a_recorded_span_is_the_first_run_of_whole_tokens(tokens, named, span):
    assert recorded_span(tokens, named) == span


def rms(confidence, correct, *, drop_last):
    """Bins of 100 by confidence, the rest in the last; written here anew as the oracle."""
    order = np.argsort(confidence, kind="stable")
    starts = list(range(0, len(order) - 99, 100))
    bins = [order[start:stop] for start, stop in zip(starts, [*starts[1:], None], strict=True)]
    gaps = [len(b) / len(order) * (confidence[b].mean() - correct[b].mean()) ** 2 for b in bins]
    return math.sqrt(sum(gaps[:-1] if drop_last else gaps))


@DATA
def test_gemma_answers_have_the_calibration_errors_that_were_published_with_them():
    path = Path(os.environ["SLM_CALIBRATION_DATA"]) / "gemma2-nq" / "nq_gemma2_0_shot_test.csv.gz"
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    engine = RecordedAnswers(
        path=path,
        tokens="ans_tok",
        probabilities="tok_prob",
        answer="extracted_answer",
        span_tokens="extracted_ans_tok",
        end_token="<end_of_turn>",  # noqa: S106
    )
    got = answers(engine, *(text.strip() for text in frame["question"]))
    correct = (frame["extracted_prom46_score"] == "1.0").to_numpy(float)
    assert correct.mean() == pytest.approx(0.181)
    assert all(g.finish == "stop" for g in got)

    everything = np.array([read_confidence(g, "geometric_mean_all") for g in got])
    assert rms(everything, correct, drop_last=False) == pytest.approx(0.440, abs=5e-4)
    assert rms(everything, correct, drop_last=True) == pytest.approx(0.414, abs=5e-4)

    span = [read_confidence(g, "geometric_mean") for g in got]
    readable = np.array([value is not None for value in span])
    values = np.array([value for value in span if value is not None])
    assert readable.sum() == 999
    assert rms(values, correct[readable], drop_last=False) == pytest.approx(0.340, abs=5e-4)
    assert rms(values, correct[readable], drop_last=True) == pytest.approx(0.260, abs=5e-4)

    published = pd.to_numeric(frame["extracted_seq_prob"]).to_numpy()[readable]
    differing = np.abs(values - published) > 1e-9
    assert differing.sum() == 1  # one answer, "Mission:", which they tokenised anew


@DATA
def test_gemma_stated_numbers_are_read_and_failures_are_none():
    path = Path(os.environ["SLM_CALIBRATION_DATA"]) / "gemma2-nq" / "nq_gemma2_verb_test.csv.gz"
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    engine = RecordedAnswers(
        path=path,
        elicitation="stated",
        tokens="ans_tok",
        probabilities="tok_prob",
        answer="extracted_answer",
        span_tokens="extracted_ans_tok",
        stated="extracted_prob",
        missing=("-1.0", "FAILED TO PARSE"),
    )
    stated = [g.stated for g in answers(engine, *(text.strip() for text in frame["question"]))]
    readable = [value for value in stated if value is not None]
    assert len(readable) == 988
    assert np.mean(readable) == pytest.approx(0.785, abs=5e-4)
