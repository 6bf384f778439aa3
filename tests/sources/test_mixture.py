import pytest
from pydantic import ValidationError

from calibration.errors import DataError
from calibration.sources.mixture import Mixture
from calibration.splits import Splits


@pytest.fixture
def mixture(tmp_path):
    """Builds a mixture of tables, each a list of (question, answer, topic)."""

    def make(shift=(), **tables):
        sets = {}
        for name, rows in tables.items():
            path = tmp_path / f"{name}.csv"
            lines = [f'"{question}","{answer}","{topic}"' for question, answer, topic in rows]
            path.write_text("\n".join(["question,answer,topic", *lines]))
            sets[name] = {"kind": "table", "path": path, "topic": "topic"}
        return Mixture(sets=sets, shift=shift)

    return make


def test_sets_follow_each_other_and_equal_questions_of_two_sets_stay_two(mixture):
    questions = mixture(
        a=[("Who was Ann?", "x", "Art")], b=[("Who was Ann?", "y", ""), ("Who was Bob?", "z", "")]
    ).questions()
    assert [q.id.partition(":")[0] for q in questions] == ["a", "b", "b"]
    assert len({q.id for q in questions}) == 3
    assert [q.topic for q in questions] == ["Art", "b", "b"]


def test_a_set_that_is_kept_out_takes_its_near_duplicates_with_it(mixture):
    source = mixture(
        shift=["hard"],
        easy=[(f"Where is town {number}?", "x", "") for number in range(50)],
        hard=[("Town 7 is where?", "x", ""), ("What is a quark?", "y", "")],
    )
    split = {q.id: q.split for q in Splits().assign(source.questions())}
    twin = next(q.id for q in source.questions() if q.text == "Where is town 7?")
    assert {key for key, name in split.items() if name == "shift"} == {
        twin,
        *(key for key in split if key.startswith("hard:")),
    }


def test_its_identity_is_what_its_sets_hold(mixture, tmp_path):
    one = mixture(a=[("Who?", "x", "")], b=[("What?", "y", "")])
    before = one.identity()
    assert str(tmp_path) not in str(before)
    assert mixture(a=[("Who?", "x", "")], b=[("What?", "z", "")]).identity() != before
    assert mixture(shift=["b"], a=[("Who?", "x", "")], b=[("What?", "y", "")]).identity() != before


def test_a_set_that_cannot_be_used_is_named(mixture):
    source = mixture(a=[("Who?", "x", "")], b=[("What?", "", "")])
    with pytest.raises(DataError, match=r"^data\.sets\.b: .*b\.csv"):
        source.questions()


@pytest.mark.parametrize(
    ("shift", "words"), [(["c"], "must be among a, b; got 'c'"), (["a", "b"], "must leave a set")]
)
def test_a_shift_must_name_some_sets_and_not_all(mixture, shift, words):
    with pytest.raises(ValidationError, match=words):
        mixture(shift=shift, a=[("Who?", "x", "")], b=[("What?", "y", "")])
