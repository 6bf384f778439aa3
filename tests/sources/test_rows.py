from pathlib import Path

import pytest

from calibration.errors import DataError
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
