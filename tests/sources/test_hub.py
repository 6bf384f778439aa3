import pytest

from calibration.errors import DataError
from calibration.sources.hub import NqOpen, TriviaQA
from calibration.sources.rows import question_id

NQ = [
    ("who wrote hamlet", "Shakespeare", "William Shakespeare"),
    ("when did rome fall", "476"),
    ("who wrote hamlet", "The Bard", "Shakespeare"),
]


def test_triviaqa_gives_the_canonical_answer_first_and_every_alias_once(hub):
    place = hub["triviaqa"](
        [("Who painted it? ", "Monet", "Claude Monet", "Monet", " "), ("Where?", "Paris")]
    )
    one, other = TriviaQA(repo=str(place)).questions()
    assert (one.text, one.answers) == ("Who painted it?", ("Monet", "Claude Monet"))
    assert one.id == question_id("Who painted it?")
    assert other.answers == ("Paris",)


def test_a_question_that_stands_there_twice_is_one_with_all_its_answers(hub):
    questions = NqOpen(repo=str(hub["nq_open"](NQ))).questions()
    assert [(q.text, q.answers) for q in questions] == [
        ("who wrote hamlet", ("Shakespeare", "William Shakespeare", "The Bard")),
        ("when did rome fall", ("476",)),
    ]


def test_a_limit_reads_from_the_top(hub):
    [one] = NqOpen(repo=str(hub["nq_open"](NQ)), limit=1).questions()
    assert one.answers == ("Shakespeare", "William Shakespeare")


def test_what_is_in_it_is_its_identity_and_not_where_it_lies(hub, tmp_path):
    place = hub["nq_open"](NQ)
    before = NqOpen(repo=str(place))
    place.rename(tmp_path / "elsewhere")
    moved = NqOpen(repo=str(tmp_path / "elsewhere"))
    assert moved.identity() == NqOpen(repo=str(tmp_path / "elsewhere"), revision="main").identity()
    other = NqOpen(repo=str(hub["nq_open"](NQ[:2])))
    assert before.repo == other.repo
    assert other.identity() != moved.identity()


def test_a_row_without_an_answer_is_named(hub):
    place = hub["nq_open"]([NQ[0], ("why", "  ")])
    with pytest.raises(
        DataError, match=r"train row 1 must have a question and an answer; got 'why' and \[\]"
    ):
        NqOpen(repo=str(place)).questions()


def test_a_data_set_that_cannot_be_had_is_one_line(hub):
    with pytest.raises(DataError, match="nobody/nothing train must be a data set on the hub") as caught:
        NqOpen(repo="nobody/nothing").questions()
    assert "\n" not in str(caught.value)
    place = hub["triviaqa"]([("Where?", "Paris")])
    with pytest.raises(DataError, match="validation must be a data set on the hub"):
        TriviaQA(repo=str(place), split="validation").questions()
