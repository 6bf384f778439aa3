import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from calibration.errors import ConfigurationError, DataError
from calibration.marking import (
    AnswerColumns,
    agreement,
    check_carried,
    read_answers,
    read_mark,
    write_table,
)
from calibration.records import Verdict

PLAIN = AnswerColumns()


def answers(path, rows, **columns):
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_answers(path, AnswerColumns(**columns))


def row(**cells):
    return {"id": "1", "question": "Who?", "gold": "Ann", "answer": "Bob", **cells}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_accepted_answers_may_be_one_text_or_a_list(tmp_path, kind):
    listed = ["Ann", " Anne ", "Ann"] if kind != "csv" else '["Ann", " Anne ", "Ann"]'
    read = answers(tmp_path / f"a.{kind}", [row(gold=listed)])
    assert read.items[0].golds == ("Ann", "Anne")
    read = answers(tmp_path / f"b.{kind}", [row(gold="Ann|Anne"), row(id="2", gold="[sic] Ann")])
    assert [item.golds for item in read.items] == [("Ann|Anne",), ("[sic] Ann",)]
    read = answers(tmp_path / f"c.{kind}", [row(gold="Ann|| Anne|[1]")], gold_separator="|")
    assert read.items[0].golds == ("Ann", "Anne", "[1]")


def test_what_stands_for_no_answer_is_no_answer(tmp_path):
    read = answers(tmp_path / "a.csv", [row(answer="FAILED"), row(id="2", answer="")], missing=("FAILED",))
    assert [item.answer for item in read.items] == ["", ""]


def test_without_ids_an_answer_is_named_by_its_question(tmp_path):
    rows = [{"q": "Who?", "gold": "Ann", "answer": "Bob"}, {"q": "Where?", "gold": "Rome", "answer": "Oslo"}]
    first, second = answers(tmp_path / "a.csv", rows, question="q").items
    assert len({first.question_id, second.question_id}) == 2
    assert answers(tmp_path / "b.csv", rows[::-1], question="q").items == (second, first)


def test_equal_rows_are_judged_alike_and_one_id_for_two_answers_is_refused(tmp_path):
    assert len(answers(tmp_path / "a.csv", [row(), row()]).items) == 2
    with pytest.raises(
        DataError, match=r"row 3: 'id' must stand for one answer \(row 2 .*'Bob'.*'1 with Eve'"
    ):
        answers(tmp_path / "b.csv", [row(), row(answer="Eve")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": ""}, "row 3: 'question' must not be empty"),
        ({"id": " "}, "row 3: 'id' must not be empty"),
        ({"gold": "[1, 2]"}, "row 3: 'gold' must hold texts only; got 1"),
    ],
)
def test_a_bad_row_is_named_with_its_value(tmp_path, change, message):
    with pytest.raises(DataError, match=message.replace("[", r"\[")):
        answers(tmp_path / "a.csv", [row(), row(id="2") | change])


def test_a_column_that_a_verdict_needs_is_refused_before_anything_is_judged(tmp_path):
    with pytest.raises(DataError, match=r"row 2: 'reason' must have another name.*'because'"):
        check_carried(answers(tmp_path / "a.csv", [row(reason="because")]))
    with pytest.raises(DataError, match=r"row 2: 'gold' must have another name.*--gold"):
        check_carried(answers(tmp_path / "b.csv", [row(target="x")], gold="target"))
    (tmp_path / "c.jsonl").write_text(json.dumps(row(note="\ud800")) + "\n")
    with pytest.raises(DataError, match="row 1: 'note' must be valid Unicode"):
        check_carried(read_answers(tmp_path / "c.jsonl", PLAIN))


texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(lambda text: text.strip())


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=4))
def test_any_text_comes_back_from_a_table_of_verdicts(tmp_path, kind, cells):
    source = tmp_path / "in.jsonl"
    rows = [
        {"id": f"i{n}", "question": question, "gold": [gold, "other"], "answer": answer}
        for n, (question, gold, answer) in enumerate(cells)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_answers(source, PLAIN)
    verdicts = [Verdict(question_id=i.question_id, label="correct", judge="x") for i in read.items]
    out = tmp_path / f"out.{kind}"
    write_table(out, read.with_verdicts(verdicts))
    again = read_answers(out, PLAIN)
    assert again.items == read.items
    assert {row.text("verdict") for row in again.rows} == {"correct"}


def test_other_columns_stay_what_they_are(tmp_path):
    rows = [row(confidence=0.25, tokens=["a", "b"]), row(id="2", confidence=None, tokens=[])]
    read = answers(tmp_path / "a.parquet", rows)
    verdicts = [Verdict(question_id=item.question_id, label="unjudged", judge="x") for item in read.items]
    write_table(tmp_path / "out.parquet", read.with_verdicts(verdicts))
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert table["confidence"].dtype == np.float64
    assert table["confidence"][0] == 0.25
    assert math.isnan(table["confidence"][1])
    assert table["tokens"][0] == '["a", "b"]'


def test_a_table_is_written_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out.parquet"
    write_table(out, [{"id": "1"}])
    before = out.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        write_table(out, [{"id": "\ud800"}])
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]
    for bad in (tmp_path / "x.txt", tmp_path / "none" / "x.csv"):
        with pytest.raises(ConfigurationError, match="--out must"):
            write_table(bad, [])


def test_agreement_is_that_of_the_textbook():
    rng = np.random.default_rng(0)
    truth = (rng.random(500) < 0.3).astype(float)
    marks = np.where(rng.random(500) < 0.85, truth, 1 - truth)
    found = agreement([*marks, math.nan, 1.0], [*truth, 0.0, math.nan])
    assert (found.n, found.left_out) == (500, 2)
    assert found.kappa == pytest.approx(cohen_kappa_score(marks, truth))
    assert found.agreement.value == np.mean(marks == truth)
    assert found.sensitivity.value == marks[truth == 1].mean()
    assert found.specificity.value == (1 - marks[truth == 0]).mean()
    assert found.specificity.low < found.specificity.value < found.specificity.high


def test_agreement_with_nothing_to_agree_on_is_undefined():
    found = agreement([1, 1], [1, 1])
    assert found.agreement.value == found.sensitivity.value == 1
    assert math.isnan(found.kappa)
    assert math.isnan(found.specificity.low)
    assert math.isnan(agreement([math.nan], [1]).agreement.value)


def test_a_mark_is_read_in_the_words_people_use(tmp_path):
    words = {"TRUE": 1, "1.0": 1, "Right": 1, "not_attempted": 0, "wrong": 0, "0": 0}
    rows = [row(id=str(n), mark=word) for n, word in enumerate(words)]
    read = answers(tmp_path / "a.csv", rows)
    assert [read_mark(r, "mark") for r in read.rows] == list(words.values())
    bad = answers(tmp_path / "b.csv", [row(mark=""), row(id="2", mark="perhaps")])
    assert math.isnan(read_mark(bad.rows[0], "mark"))
    with pytest.raises(DataError, match=r"row 3: 'mark' must be 1, 0.*'perhaps'"):
        read_mark(bad.rows[1], "mark")
