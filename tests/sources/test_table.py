import gzip
import json

import pandas as pd
import pytest

from calibration.errors import DataError
from calibration.sources.table import Table


def csv(tmp_path, text, name="questions.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def error_of(table):
    with pytest.raises(DataError) as caught:
        table.questions()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_column_finds_its_field(tmp_path):
    path = csv(tmp_path, "n,q,a,more,t,k\n7, Who? , Ann , Anna | Annie ,Art,Person\n8,What?,none,,,\n")
    first, second = Table(
        path=path, id="n", question="q", answer="a", aliases="more", topic="t", answer_type="k"
    ).questions()
    assert (first.id, first.text, first.answers) == ("7", "Who?", ("Ann", "Anna", "Annie"))
    assert (first.topic, first.answer_type) == ("Art", "Person")
    assert (second.answers, second.topic, second.answer_type) == (("none",), "Other", "Other")


def test_what_looks_like_a_missing_value_is_an_answer(tmp_path):
    path = csv(tmp_path, "question,answer\na,NA\nb,none\nc,nan\nd,007\ne,1.10\n")
    assert [q.answers[0] for q in Table(path=path).questions()] == ["NA", "none", "nan", "007", "1.10"]


def test_all_formats_give_the_same_questions(tmp_path):
    rows = [
        {"question": "Who, exactly?", "answer": "Ann \u00d8", "aliases": ["A|B", "Anna"]},
        {"question": "How\nmany?", "answer": "3"},
    ]
    frame = pd.DataFrame({"question": [r["question"] for r in rows], "answer": [r["answer"] for r in rows]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes()))
    frame.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    read = {
        name: Table(path=tmp_path / f"t.{name}").questions() for name in ("csv", "csv.gz", "parquet", "jsonl")
    }
    assert read["csv"] == read["csv.gz"] == read["parquet"] == read["jsonl"]
    with_aliases = Table(path=tmp_path / "t.jsonl", aliases="aliases").questions()
    assert with_aliases[0].answers == ("Ann \u00d8", "A|B", "Anna")


def test_numbers_in_json_stay_as_they_are_written(tmp_path):
    path = csv(
        tmp_path, '{"question": "v?", "answer": 1.10}\n\n{"question": "y?", "answer": 1874}\n', "t.jsonl"
    )
    assert [q.answers[0] for q in Table(path=path).questions()] == ["1.10", "1874"]


def test_an_id_is_a_hash_of_the_text_alone(tmp_path):
    one = Table(path=csv(tmp_path, "question,answer\nWho?,A\nWhat?,B\n", "one.csv")).questions()
    two = Table(path=csv(tmp_path, "answer,question\nZ, What? \nY,Who?\n", "two.csv")).questions()
    assert {q.text: q.id for q in one} == {q.text: q.id for q in two}


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfquestion,answer\r\nWho?,Ann\r\n")
    assert [(q.text, q.answers) for q in Table(path=path).questions()] == [("Who?", ("Ann",))]


def test_a_huge_cell_is_read(tmp_path):
    path = csv(tmp_path, f"question,answer\n{'x' * 300_000},A\n")
    assert len(Table(path=path).questions()[0].text) == 300_000


def test_limit_reads_from_the_top(tmp_path):
    path = csv(tmp_path, "question,answer\na,1\nb,2\nc,\n")
    assert [q.text for q in Table(path=path, limit=2).questions()] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        ("", {}, ["t.csv", "empty"]),
        ("question,answer\n", {}, ["t.csv", "rows", "none"]),
        ("question,reply\na,b\n", {}, ["'answer'", "'question', 'reply'"]),
        ("question,answer\na,b\n", {"topic": "subject"}, ["'subject'", "'question', 'answer'"]),
        ("question,answer\na,1\n ,2\n", {}, ["row 3", "'question'", "''"]),
        ("question,answer\na,1\nb, \n", {}, ["row 3", "'answer'", "unanswered = 1"]),
        ("question,answer\na,1\n\na,2\n", {}, ["row 4", "row 2", "'a'"]),
        ("id,question,answer\n5,a,1\n6,b,2\n5,c,3\n", {"id": "id"}, ["row 4", "row 2", "'id'", "'5'"]),
        ("id,question,answer\n,a,1\n", {"id": "id"}, ["row 2", "'id'"]),
        ("question,answer\na,b,c\n", {}, ["t.csv", "line 2", "3"]),
        ('question,answer\na,"b\n', {}, ["t.csv", "EOF"]),
        ("question,answer,answer\na,b,c\n", {}, ["t.csv", "'answer' twice"]),
    ],
)
def test_an_unusable_csv_is_named_with_its_row_column_and_value(tmp_path, text, settings, words):
    message = error_of(Table(path=csv(tmp_path, text, "t.csv"), **settings))
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"question": "a", "answer": "b"}\n{"question": \n', ["row 2", "JSON"]),
        ("[1]\n", ["row 1", "object"]),
        ('{"question": "a", "answer": ["b"]}\n', ["row 1", "'answer'", "['b']"]),
        ('{"question": "a"}\n{"question": "b", "answer": "c"}\n', ["row 1", "'answer'"]),
        ('{"question": "a \\ud800", "answer": "c"}\n', ["row 1", "'question'", "Unicode"]),
    ],
)
def test_an_unusable_jsonl_is_named_with_its_row_and_value(tmp_path, text, words):
    message = error_of(Table(path=csv(tmp_path, text, "t.jsonl")))
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.jsonl", "t.parquet"])
def test_a_file_of_other_bytes_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x1f\x8b\xff\xfe\x00 broken")
    assert name in error_of(Table(path=tmp_path / name))


def test_a_missing_file_and_an_unknown_format_are_refused(tmp_path):
    assert "no such file" in error_of(Table(path=tmp_path / "gone.csv"))
    assert ".parquet" in error_of(Table(path=csv(tmp_path, "x", "t.xlsx")))


def test_rows_without_an_answer_are_kept_only_in_the_number_that_was_announced(tmp_path):
    path = csv(tmp_path, "question,answer\na,1\nb,\nc,\n")
    kept = Table(path=path, unanswered=2).questions()
    assert [len(question.answers) for question in kept] == [1, 0, 0]
    assert "got 2 (the first is row 3)" in error_of(Table(path=path, unanswered=1))
    assert "got 2" in error_of(Table(path=path, unanswered=3))


def test_the_identity_is_the_content_and_not_the_place(tmp_path):
    one, two = (
        csv(tmp_path, "question,answer\na,1\n", "one.csv"),
        csv(tmp_path, "question,answer\na,1\n", "two.csv"),
    )
    other = csv(tmp_path, "question,answer\na,2\n", "other.csv")
    assert Table(path=one).identity() == Table(path=two).identity()
    assert Table(path=one).identity() != Table(path=other).identity()
    assert Table(path=one).identity() != Table(path=one, limit=1).identity()
    with pytest.raises(DataError, match="no such file"):
        Table(path=tmp_path / "gone.csv").identity()
