import os
from collections import Counter
from pathlib import Path

import pytest

from calibration.errors import DataError
from calibration.sources.simpleqa import SimpleQA

HEADER = "metadata,problem,answer\n"


def test_topic_and_type_come_out_of_the_python_dictionary(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text(HEADER + "\"{'topic': 'Art', 'answer_type': 'Person', 'urls': ['u']}\",Who {x}?, none \n")
    (question,) = SimpleQA(path=path).questions()
    assert (question.text, question.answers) == ("Who {x}?", ("none",))
    assert (question.topic, question.answer_type, len(question.id)) == ("Art", "Person", 16)


@pytest.mark.parametrize("cell", ["{'topic': 'Art'}", "{'topic': ", "5", "__import__('os')", "[" * 5000])
def test_unreadable_metadata_names_row_column_and_value(tmp_path, cell):
    path = tmp_path / "s.csv"
    path.write_text(f'{HEADER}"{cell}",Who?,Ann\n')
    with pytest.raises(DataError, match=r"s\.csv row 2: 'metadata' must be a dictionary"):
        SimpleQA(path=path).questions()


def test_another_layout_is_told_which_columns_it_has(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("question,answer\na,b\n")
    with pytest.raises(DataError, match="'metadata'; it has 'question', 'answer'"):
        SimpleQA(path=path).questions()


@pytest.mark.skipif(
    "SLM_CALIBRATION_DATA" not in os.environ, reason="SLM_CALIBRATION_DATA names no folder with simpleqa/"
)
def test_the_published_file_has_4326_questions():
    path = Path(os.environ["SLM_CALIBRATION_DATA"]) / "simpleqa" / "simple_qa_test_set.csv"
    questions = SimpleQA(path=path).questions()
    assert len({question.id for question in questions}) == len(questions) == 4326
    assert len({question.topic for question in questions}) == 10
    assert Counter(question.answer_type for question in questions) == {
        "Date": 1418,
        "Person": 1041,
        "Other": 777,
        "Number": 663,
        "Place": 427,
    }
    assert sum(question.answers == ("none",) for question in questions) == 1
    assert all(question.answers[0] == question.answers[0].strip() != "" for question in questions)
