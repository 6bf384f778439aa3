"""Small files that unpack to more than the machine holds are refused in one line, and cost little."""

import gzip
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

GIB = 2**30


def gzip_of(path, start, block, times):
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(times):
            file.write(block)


def one_cell(folder):
    path = folder / "cell.csv.gz"
    gzip_of(path, b'question,answer\n"', b"x" * 2**24, 3 * 64)
    return path, "2,147,483,648 bytes of text"


def one_line(folder):
    path = folder / "line.csv.gz"
    gzip_of(path, b"question,answer", b"," * 2**24, 3 * 64)
    return path, "65,536 bytes in its first line"


def empty_lines(folder):
    path = folder / "lines.csv.gz"
    gzip_of(path, b"question,answer\n", b"\n" * 2**24, 64)
    return path, "20,000,000 cells"


def one_text(folder):
    path = folder / "text.parquet"
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 300_000, pa.int32()), pa.array(["x" * 2**20]))
    pq.write_table(pa.table({"question": text, "answer": text}), path)
    return path, "2,147,483,648 bytes of text"


def text_in_lists(folder):
    path = folder / "nested.parquet"
    texts = pa.array(["x" * 2**20] * 256)
    lists = pa.ListArray.from_arrays(pa.array(range(257), pa.int32()), texts)
    table = pa.table({"question": pa.array(["q"] * 256), "answer": lists})
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(20):
            writer.write_table(table)
    return path, "2,147,483,648 bytes of text"


def one_number(folder):
    path = folder / "number.parquet"
    numbers = pa.ListArray.from_arrays(pa.array([0, 25_000_000], pa.int32()), pa.array([None] * 25_000_000))
    pq.write_table(pa.table({"question": pa.array(["q"]), "answer": numbers}), path)
    return path, "20,000,000 cells; got 25,000,001"


@pytest.mark.slow
@pytest.mark.parametrize(
    "bomb", [one_cell, one_line, empty_lines, one_text, text_in_lists, one_number], ids=lambda b: b.__name__
)
def test_a_bomb_is_refused_in_one_line_and_in_the_memory_of_its_limit(tmp_path, bomb):
    path, words = bomb(tmp_path)
    assert path.stat().st_size < GIB / 50
    script = f"""
import resource, sys
from pathlib import Path
from calibration.errors import DataError
from calibration.sources.rows import read_file
try:
    read_file(Path({str(path)!r}), [])
except DataError as error:
    print(error)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=900)
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{path} must hold at most "), done.stderr
    assert words in line
    assert int(done.stderr) < 6 * 1024
