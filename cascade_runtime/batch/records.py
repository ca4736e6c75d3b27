"""Files of records as streams: JSON Lines, Parquet, CSV, and JSON arrays (which must fit memory, within a bound).

    for record in read_records(path):       a mapping, or an `InputError` that says what is wrong with that record

A record that cannot be read takes its place as an error; a file that cannot be read raises one. Nothing in a file can
make more be taken than these bounds say; only JSON Lines may be of any length.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cascade_runtime.batch.question import Record
from cascade_runtime.errors import InputError
from cascade_runtime.events.readers.parquet_pages import check_pages
from cascade_runtime.events.readers.source import ReadLimits, Source

MAX_RECORD_BYTES = 1 << 20
MAX_ARRAY_BYTES = 256 << 20
PARQUET = ReadLimits(max_file_bytes=512 << 20, max_expanded_bytes=2 << 30)
SUFFIXES = (".jsonl", ".parquet", ".json", ".csv")
_BATCH_ROWS = 1024


def read_records(path: Path) -> Iterator[Record | InputError]:
    """The records of a file in order. Raises `InputError` for a file that is missing or of another kind, and, when it
    gets there, for a part of a Parquet file or JSON array that cannot be read at all.
    """
    readers = {".jsonl": _lines, ".parquet": _parquet, ".json": _array, ".csv": _csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError("input", str(path), f"a file that ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise InputError("input", str(path), "an existing file")
    return reader(path)


def _lines(path: Path) -> Iterator[Record | InputError]:
    with path.open("rb") as file:
        while line := file.readline(MAX_RECORD_BYTES + 1):
            if len(line) > MAX_RECORD_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_RECORD_BYTES)
                yield InputError("row", "a line that goes on and on", f"at most {MAX_RECORD_BYTES} bytes")
            elif line.strip():
                yield _parsed(line)


def _parsed(line: bytes) -> Record | InputError:
    try:
        return _record(json.loads(line))
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, nested without end
        return InputError("row", line[:80].decode(errors="replace").strip(), f"one JSON object a line ({error})")


def _record(value: Any) -> Record | InputError:
    if isinstance(value, dict):
        return value
    return InputError("row", type(value).__name__, "an object with named fields")


def _array(path: Path) -> Iterator[Record | InputError]:
    if path.stat().st_size > MAX_ARRAY_BYTES:
        raise InputError(
            "input", f"{path.stat().st_size} bytes of JSON", f"at most {MAX_ARRAY_BYTES}; .jsonl has no limit"
        )
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError("input", str(path), f"well-formed JSON ({error})") from error
    if not isinstance(values, list):
        raise InputError("input", type(values).__name__, "a JSON array of objects")
    yield from map(_record, values)


def _csv(path: Path) -> Iterator[Record | InputError]:
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        lines = iter(lambda: file.readline(MAX_RECORD_BYTES), "")
        rows = csv.DictReader(lines, restkey="", strict=True)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield InputError("row", f"line {rows.line_num}", f"well-formed CSV ({error})")
                continue
            if "" in row or None in row.values():
                yield InputError(
                    "row", f"line {rows.line_num}", f"as many fields as the header names: {rows.fieldnames}"
                )
            else:
                yield {name: value or None for name, value in row.items()}


def _parquet(path: Path) -> Iterator[Record | InputError]:
    try:
        source = Source(path, PARQUET)
        source.check()
        file = pq.ParquetFile(io.BytesIO(source.data), page_checksum_verification=True)
        metadata = file.metadata
        check_pages(source, metadata, list(range(metadata.num_columns)))
        for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
            batch.validate(full=True)
            yield from map(_record, batch.to_pylist())
    except (pa.ArrowException, OSError, ValueError, OverflowError, NotImplementedError) as error:
        raise InputError("input", str(path), f"a readable Parquet file ({str(error)[:300]})") from error
