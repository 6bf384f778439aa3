from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibration.errors import DataError
from calibration.sources import formats
from calibration.sources.rows import read_file, stem


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("answers.csv", "answers"),
        ("gemma-2.5.csv", "gemma-2.5"),
        ("gemma-2.5.CSV.GZ", "gemma-2.5"),
        ("a.b.jsonl", "a.b"),
        ("a.csv.parquet", "a.csv"),
        ("a.gz", "a.gz"),
        ("folder.csv/plain", "plain"),
        (".csv", ""),
    ],
)
def test_only_the_ending_of_the_format_is_cut_off_a_name(name, wanted):
    assert stem(Path("some.csv") / name) == wanted


def test_a_name_that_no_file_can_have_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"must be a data file; File name too long\. Check its name"):
        read_file(tmp_path / f"{'x' * 300}.csv", [])


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.jsonl", "t.parquet"])
@pytest.mark.parametrize(
    ("bound", "words"), [("MAX_TEXT", "2,000 bytes of text"), ("MAX_CELLS", "2,000 cells")]
)
def test_a_file_that_holds_too_much_is_refused_in_one_line(tmp_path, monkeypatch, name, bound, words):
    frame = pd.DataFrame({"question": [f"Who is {i}?" for i in range(1500)], "answer": "none"})
    path = tmp_path / name
    if name == "t.parquet":
        frame.to_parquet(path)
    elif name == "t.jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False)
    assert len(read_file(path, ["question"])) == 1500
    monkeypatch.setattr(formats, bound, 2000)
    with pytest.raises(DataError) as caught:
        read_file(path, [])
    message = str(caught.value)
    assert message.startswith(f"{path} must hold at most {words}")
    assert "\n" not in message


def test_parquet_is_read_value_for_value_whatever_its_layout(tmp_path):
    rows = [
        {
            "text": None if i % 7 == 0 else "ab"[: i % 3] * (i % 40),
            "list": None if i % 5 == 0 else ["x" * i, None][: i % 3],
            "struct": {"value": str(i), "aliases": [str(i % 3)] * (i % 4)},
            "number": i / 4,
        }
        for i in range(200)
    ]
    table = pa.Table.from_pylist(rows)
    table = table.append_column("category", table["text"].dictionary_encode())
    wanted = [{**row, "category": row["text"]} for row in rows]
    for size, options in ((200, {}), (9, {}), (200, {"use_dictionary": False})):
        pq.write_table(table, tmp_path / "t.parquet", row_group_size=size, **options)
        assert [row.cells for row in read_file(tmp_path / "t.parquet", [])] == wanted


def test_brackets_in_brackets_without_end_are_one_line(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"question": "a"}\n' + "[" * 100_000 + "\n")
    with pytest.raises(
        DataError, match=r"\.jsonl file; row 2 has too many brackets in brackets\. Write it again"
    ):
        read_file(path, [])
