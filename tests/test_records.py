import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from calibration.errors import ArtifactError
from calibration.records import Generation, Question, Verdict, join_judged, read_rows, write_rows

probability = st.floats(-30, 0, allow_nan=False)


def generation(**changes):
    values = {
        "question_id": "q",
        "elicitation": "plain",
        "text": "Paris",
        "answer": "Paris",
        "token_ids": (5, 1),
        "tokens": ("Paris", "<eos>"),
        "logprobs": (-0.5, -0.1),
        "span": (0,),
        "span_rule": "rule@1",
        "finish": "stop",
    }
    return Generation.model_validate({**values, **changes})


@given(
    text=st.text(st.characters(exclude_categories=["Cs"])),
    logprobs=st.lists(probability, min_size=1, max_size=5),
    stated=st.none() | st.floats(0, 1),
    grid=st.just(()) | st.lists(st.floats(0, 1), min_size=101, max_size=101).map(tuple),
)
def test_a_generation_comes_back_from_parquet_as_it_was(tmp_path_factory, text, logprobs, stated, grid):
    row = generation(
        text=text,
        tokens=("x",) * len(logprobs),
        token_ids=(),
        logprobs=logprobs,
        stated=stated,
        stated_grid=grid,
    )
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    write_rows([row], path, Generation)
    assert read_rows(path, Generation) == [row]


def test_an_empty_table_keeps_its_columns(tmp_path):
    write_rows([], tmp_path / "rows.parquet", Verdict)
    assert read_rows(tmp_path / "rows.parquet", Verdict) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logprobs": (-0.5,)}, "2 tokens but 1 logprobs"),
        ({"token_ids": (5,)}, "1 token ids but 2 tokens"),
        ({"logprobs": (-0.5, 0.1)}, "must be <= 0; got 0.1"),
        ({"logprobs": (-0.5, float("nan"))}, "finite number"),
        ({"span": (0, 2)}, "outside the tokens"),
        ({"stated": 1.2}, "less than or equal to 1"),
        ({"stated_grid": (0.5, 0.5)}, "101"),
        ({"surprise": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_generation_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        generation(**changes)


def test_what_is_not_a_table_is_refused_by_name(tmp_path):
    (tmp_path / "rows.parquet").write_text("no parquet")
    with pytest.raises(ArtifactError, match=r"rows\.parquet must be a parquet file of Verdict rows"):
        read_rows(tmp_path / "rows.parquet", Verdict)


def test_joining_needs_exactly_one_row_a_question():
    questions = [Question(id=i, text=i, answers=("x",)) for i in "ab"]
    verdicts = [Verdict(question_id=i, label="correct", judge="j") for i in "ba"]
    generations = [generation(question_id=i) for i in "ab"]
    joined = join_judged(questions, generations, verdicts)
    assert [row.question.id for row in joined] == ["a", "b"]
    assert all(row.question.id == row.generation.question_id == row.verdict.question_id for row in joined)
    with pytest.raises(ArtifactError, match="exactly one verdict; look at question 'a'"):
        join_judged(questions, generations, verdicts[:1])
    with pytest.raises(ArtifactError, match="exactly one generation; look at question 'b'"):
        join_judged(questions, [*generations, generations[1]], verdicts)


@pytest.mark.parametrize(
    ("label", "is_correct"),
    [("correct", True), ("incorrect", False), ("not_attempted", False), ("unjudged", None)],
)
def test_an_unjudged_answer_is_neither_right_nor_wrong(label, is_correct):
    assert Verdict(question_id="q", label=label, judge="j").is_correct is is_correct
