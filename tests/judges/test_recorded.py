import asyncio
import json

import pytest
from pydantic import TypeAdapter

from calibration.errors import DataError
from calibration.judges import Exact, Item, JudgeConfig, RecordedLabels
from calibration.records import Question
from calibration.sources.rows import question_id


def ignore(fraction, note):
    pass


def labels(tmp_path, text, name="labels.csv", **settings):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return RecordedLabels(path=path, **settings)


def item(question, answer="x", key=None):
    return Item(question_id=key or question_id(question), question=question, golds=("g",), answer=answer)


def judge(judge, *items):
    return asyncio.run(judge.judge(items, progress=ignore))


@pytest.mark.parametrize(
    ("cell", "label"),
    [
        ("1", "correct"),
        ("1.0", "correct"),
        ("TRUE", "correct"),
        (" Correct ", "correct"),
        ("0", "incorrect"),
        ("0.0", "incorrect"),
        ("False", "incorrect"),
        ("incorrect", "incorrect"),
        ("not_attempted", "not_attempted"),
        ("unjudged", "unjudged"),
        ("", "unjudged"),
    ],
)
def test_every_way_of_writing_a_label_is_read(tmp_path, cell, label):
    (verdict,) = judge(labels(tmp_path, f"question,label\nWho?,{cell}\n"), item("Who?"))
    assert verdict.label == label
    assert verdict.reason.startswith("row 2")


@pytest.mark.parametrize(
    ("value", "label"), [(True, "correct"), (0, "incorrect"), (1.0, "correct"), (None, "unjudged")]
)
def test_json_values_are_labels_too(tmp_path, value, label):
    text = json.dumps({"question": "Who?", "label": value})
    assert judge(labels(tmp_path, text, "labels.jsonl"), item("Who?"))[0].label == label


def test_verdicts_come_in_the_order_of_the_items(tmp_path):
    by = labels(tmp_path, "question,label\na,1\nb,0\nc,\n")
    assert [v.label for v in judge(by, item("c"), item("a"), item("b"), item("a"))] == [
        "unjudged",
        "correct",
        "incorrect",
        "correct",
    ]


def test_an_id_column_is_the_key(tmp_path):
    by = labels(tmp_path, "n,score\n7,1\n8,0\n", id="n", label="score")
    assert [v.label for v in judge(by, item("?", key="8"), item("?", key="7"))] == ["incorrect", "correct"]


def test_a_label_is_not_lent_to_another_answer_when_the_answers_were_recorded(tmp_path):
    by = labels(tmp_path, "question,reply,label\nWho?, Ann ,1\n", answer="reply")
    same, other = judge(by, item("Who?", "Ann"), item("Who?", "Bob"))
    assert (same.label, other.label) == ("correct", "unjudged")
    assert other.reason == "row 2 labels another answer"


def test_a_marker_of_failure_is_the_empty_answer(tmp_path):
    by = labels(tmp_path, "question,reply,label\nWho?,FAILED,0\n", answer="reply", missing=("FAILED",))
    assert [v.label for v in judge(by, item("Who?", ""), item("Who?", "FAILED"))] == ["incorrect", "unjudged"]


def test_the_version_follows_the_content(tmp_path):
    one = labels(tmp_path, "question,label\na,1\n", "one.csv")
    same = labels(tmp_path, "question,label\na,1\n", "two.csv")
    other = labels(tmp_path, "question,label\na,0\n", "three.csv")
    assert one.version == same.version != other.version
    assert judge(one, item("a"))[0].judge == one.version


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("question,label\na,1\nb,2\n", ["row 3", "'label'", "'2'"]),
        ("question,label\na,yes\n", ["row 2", "'label'", "'yes'"]),
        ("question,score\na,1\n", ["'label'", "'question', 'score'"]),
        ("question,label\na,1\na,0\n", ["row 3", "row 2"]),
        ("question,label\nb,1\n", ["'a'", "label for every question"]),
    ],
)
def test_an_unusable_file_is_refused_before_and_while_judging(tmp_path, text, words):
    by = labels(tmp_path, text)
    for use in (
        lambda: judge(by, item("a")),
        lambda: by.check([Question(id=question_id("a"), text="a", answers=("g",))]),
    ):
        with pytest.raises(DataError) as caught:
            use()
        assert [word for word in words if word not in str(caught.value)] == []


def test_the_kind_chooses_the_judge():
    config = TypeAdapter(JudgeConfig)
    assert config.validate_python({"kind": "exact"}) == Exact()
    assert isinstance(config.validate_python({"kind": "recorded", "path": "x.csv"}), RecordedLabels)
