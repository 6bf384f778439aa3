"""The formats a data file may have, each read whole, with every row's number.

A few kilobytes can unpack to more than any machine holds: gzip shrinks equal bytes a thousandfold, and a
parquet file writes a repeated text once. So a file is counted while it is read, and refused once it
holds more than `MAX_TEXT` bytes of text or `MAX_CELLS` cells.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from calibration.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Cells = dict[str, object]
Loaded = tuple[list[str], list[tuple[int, Cells]]]
"""The columns, and each row with its number."""

MAX_TEXT = 2 * 2**30
"""The most bytes a data file may hold once it is unpacked."""

MAX_CELLS = 20_000_000
"""The most cells a data file may hold, over all rows and columns."""

MAX_HEADER = 64 * 2**10
"""The most bytes of the first line of a csv file."""


def shown(value: object) -> str:
    """A value in one short line, for an error message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def ending(path: Path) -> str | None:
    """The ending of the name that says how a file is read; None when it has none of them."""
    return next((suffix for suffix in READERS if path.name.lower().endswith(suffix)), None)


def load(path: Path) -> Loaded:
    """Read a whole data file.

    Raises:
        DataError: The file has another format, is empty, too large, or cannot be read.
    """
    suffix = ending(path)
    if suffix is None:
        raise DataError(f"{path} must end in {', '.join(READERS)}. Save the data in one of these formats")
    if path.stat().st_size == 0:
        raise DataError(f"{path} must hold data; the file is empty. Write it again")
    try:
        return READERS[suffix](path)
    except _TooLargeError as error:
        raise DataError(f"{path} must hold at most {error}. Split it") from error
    except (ValueError, OSError, EOFError, RecursionError, zlib.error, pa.ArrowException) as error:
        problem = " ".join(str(error).split())
        raise DataError(f"{path} must be a readable {suffix} file; {problem}. Write it again") from error


class _TooLargeError(Exception):
    pass


def _check_text(size: int) -> None:
    if size > MAX_TEXT:
        raise _TooLargeError(f"{MAX_TEXT:,} bytes of text when unpacked; got more")


def _check_cells(cells: int) -> None:
    if cells > MAX_CELLS:
        raise _TooLargeError(f"{MAX_CELLS:,} cells; got {cells:,} or more")


class _Counted(io.RawIOBase):
    """A stream of bytes, counted as they are read."""

    def __init__(self, stream: gzip.GzipFile | io.BufferedReader) -> None:
        self._stream = stream
        self._size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer)
        data = self._stream.read(len(view))
        view[: len(data)] = data
        self._size += len(data)
        _check_text(self._size)
        return len(data)


def _read_csv(path: Path) -> Loaded:
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
        counted = io.BufferedReader(_Counted(stream), buffer_size=MAX_HEADER)
        start = counted.peek(MAX_HEADER)
        if len(start) >= MAX_HEADER and not (b"\n" in start or b"\r" in start):
            raise _TooLargeError(f"{MAX_HEADER:,} bytes in its first line; got more")
        # The header is read as a row: then pandas neither renames nor skips anything, and the count is right.
        chunks = pd.read_csv(
            counted,
            header=None,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            encoding="utf-8-sig",
            chunksize=1024,
        )
        lines = (line for chunk in chunks for line in chunk.itertuples(index=False, name=None))
        names = [str(name).strip() for name in next(lines)]
        if doubled := [name for name in names if name and names.count(name) > 1]:
            raise ValueError(f"its header names {doubled[0]!r} twice")
        rows = (dict(zip(names, line, strict=True)) for line in lines)
        return names, list(_bounded(enumerate(rows, start=2)))


def _read_jsonl(path: Path) -> Loaded:
    _check_text(path.stat().st_size)
    with path.open(encoding="utf-8-sig") as lines:
        rows = list(
            _bounded((number, _row_of(line, number)) for number, line in enumerate(lines, 1) if line.strip())
        )
    return list(dict.fromkeys(column for _, row in rows for column in row)), rows


def _row_of(line: str, number: int) -> Cells:
    try:
        # Numbers stay as they are written: an answer 1.50 is not 1.5.
        row = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
    except json.JSONDecodeError as error:
        raise ValueError(f"row {number} is no JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"row {number} has too many brackets in brackets") from error
    if not isinstance(row, dict):
        raise ValueError(f"row {number} must be a JSON object; got {shown(row)}")  # noqa: TRY004 - a bad file
    return row


def _read_parquet(path: Path) -> Loaded:
    with pq.ParquetFile(path) as file:
        chunks = [
            file.metadata.row_group(group).column(column)
            for group in range(file.metadata.num_row_groups)
            for column in range(file.metadata.num_columns)
        ]
        _check_text(sum(chunk.total_uncompressed_size for chunk in chunks))
        _check_cells(sum(chunk.num_values for chunk in chunks))
        texts = [
            leaf.path
            for leaf in map(file.schema.column, range(file.metadata.num_columns))
            if leaf.physical_type == "BYTE_ARRAY"
        ]
        names = file.schema_arrow.names
    # A text that is repeated stays one text until it has been counted.
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        rows: list[Cells] = []
        size = 0
        groups = range(file.num_row_groups)  # each has its own dictionaries, which no batch may mix
        for batch in (batch for group in groups for batch in file.iter_batches(65_536, row_groups=[group])):
            size += sum(map(_text_of, batch.columns))
            _check_text(size)
            columns = [column.dictionary_decode() if _is_text(column) else column for column in batch.columns]
            rows += pa.RecordBatch.from_arrays(columns, names).to_pylist()
    return names, list(enumerate(rows, start=1))


def _text_of(array: pa.Array) -> int:
    """How many bytes the values of a column hold, each counted as often as it occurs."""
    if _is_text(array):
        lengths = pc.binary_length(array.dictionary).take(array.indices)
        return int(pc.sum(lengths).as_py() or 0)
    if pa.types.is_nested(array.type):
        inner = array.flatten()
        return sum(map(_text_of, inner if isinstance(inner, list) else [inner]))
    return int(array.nbytes)


def _is_text(array: pa.Array) -> bool:
    return pa.types.is_dictionary(array.type) and not pa.types.is_primitive(array.type.value_type)


def _bounded(rows: Iterable[tuple[int, Cells]]) -> Iterator[tuple[int, Cells]]:
    """The same rows, counted as they pass."""
    cells = 0
    for number, row in rows:
        cells += len(row)
        _check_cells(cells)
        yield number, row


READERS = {".csv": _read_csv, ".csv.gz": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
"""How the name of a data file ends, and what reads it."""
