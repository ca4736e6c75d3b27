"""Text recordings: RPG (`t[s] x y p`, blank-separated) and CSV with or without a header line.

Without a header the columns are t, x, y, p. Lines before the data that begin with # are comments; the one that
`write_events` writes gives sensor size and offset back. A first line of two integers (RPG's event camera data sets)
is the sensor size.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from cascade_runtime.events.array import Events
from cascade_runtime.events.readers.columns import pick_columns, to_events
from cascade_runtime.events.readers.source import Source

_MAX_LINE_BYTES = 4096
_MAX_COMMENTS = 1000
_BLOCK_BYTES = 1 << 20
OWN_COMMENT = re.compile(rb"# cascade\.events 1 width=(\d{1,5}) height=(\d{1,5}) t_offset_us=(-?\d{1,19})\s*$")


def read_text(source: Source) -> Events:
    """Raises EventFormatError; a line longer than 4096 bytes, a missing column or a word among numbers is refused."""
    at, own, sensor = 0, None, None
    first = _line(source, at)
    for _ in range(_MAX_COMMENTS):
        if first.startswith(b"#"):
            own = OWN_COMMENT.match(first) or own
        elif re.fullmatch(rb"\s*\d{1,5}[ ,]\d{1,5}\s*", first) and sensor is None:
            width, height = re.split(rb"[ ,]", first.strip())
            sensor = (int(width), int(height))
        elif first.strip():
            break
        at += len(first)
        if at >= len(source.data):
            raise source.error(f"offset {at}", "no events, only comments")
        first = _line(source, at)
    t, x, y, p = _parse(source, at, first)
    if own:
        width, height, offset = map(int, own.groups())
        return Events(t, x, y, p, width=width, height=height, t_offset_us=offset)
    return to_events(source, [t, x, y, p], sensor=sensor)


def _line(source: Source, at: int) -> bytes:
    end = source.data.find(b"\n", at, at + _MAX_LINE_BYTES)
    if end < 0 and len(source.data) - at > _MAX_LINE_BYTES:
        raise source.error(f"offset {at}", f"a line longer than {_MAX_LINE_BYTES} bytes")
    return source.data[at : end + 1] if end >= 0 else source.data[at:]


def _parse(source: Source, at: int, first: bytes) -> list[NDArray[Any]]:
    delimiter = next((mark for mark in (",", "\t", ";") if mark.encode() in first), " ")
    words = [word.strip() for word in first.decode("latin-1").strip().split(delimiter)]
    header = any(re.fullmatch(r"[A-Za-z_ ]+\w*", word) for word in words)
    if len(words) < 4 or len(words) > 32:
        raise source.error(f"offset {at}", f"{len(words)} columns; at least t, x, y, p are expected")
    names = [f"{word}" for word in words] if header else ["t", "x", "y", "p", *(f"_{i}" for i in range(4, len(words)))]
    if len(set(names)) != len(names):
        raise source.error(f"offset {at}", "two columns of one name")
    start = at + len(first) if header else at
    wanted = pick_columns(source, names)
    body = pa.py_buffer(source.data)[start:]
    if not body.size:
        return [np.zeros(0, np.int64) for _ in wanted]
    try:
        table = csv.read_csv(
            pa.BufferReader(body),
            read_options=csv.ReadOptions(column_names=names, block_size=_BLOCK_BYTES, use_threads=False),
            parse_options=csv.ParseOptions(delimiter=delimiter, quote_char=False, newlines_in_values=False),
            convert_options=csv.ConvertOptions(include_columns=wanted, null_values=[], strings_can_be_null=False),
        )
        source.check_events(table.num_rows)
    except (pa.ArrowException, OverflowError) as error:
        raise source.error(f"text after offset {start}", str(error)[:300]) from error
    return [_numbers(source, name, table.column(name)) for name in wanted]


def _numbers(source: Source, name: str, column: pa.ChunkedArray) -> NDArray[Any]:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)) or column.null_count:
        raise source.error(f"field {name[:40]}", f"not all numbers (read as {column.type}, {column.null_count} nulls)")
    return column.to_numpy()
