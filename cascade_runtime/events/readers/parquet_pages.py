"""How large a Parquet file's pages say they are, before Arrow allocates them: `check_pages`.

The footer states sizes for people; what is allocated is what each page's own header says. The headers are Thrift
compact structs (https://github.com/apache/parquet-format, PageHeader: 1 type, 2 uncompressed_page_size, 3
compressed_page_size, ...), walked here just far enough to sum them.
"""

from __future__ import annotations

from typing import Any

from cascade_runtime.events.readers.source import Source

_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(13)
_MAX_DEPTH = 8


def check_pages(source: Source, metadata: Any, columns: list[int]) -> None:
    """Raises EventFormatError unless the pages of `columns` together stay within max_expanded_bytes, and ValueError for
    headers that are none.
    """
    total = 0
    for group in range(metadata.num_row_groups):
        for number in columns:
            column = metadata.row_group(group).column(number)
            first = column.data_page_offset
            if column.has_dictionary_page and column.dictionary_page_offset:
                first = min(first, column.dictionary_page_offset)
            at, end = first, first + column.total_compressed_size
            if not 0 <= at <= end <= len(source.data):
                raise ValueError(f"column chunk at {at}..{end} of a file of {len(source.data)} bytes")
            while at < end:
                sizes, at = _struct(source.data, at, 0)
                expanded, stored = sizes.get(2, -1), sizes.get(3, -1)
                if expanded < 0 or stored < 0:
                    raise ValueError(f"page sizes {expanded} and {stored}")
                total += expanded
                source.check_expanded(total, f"page before offset {at}")
                at += stored


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError(f"a number that does not end at offset {at}")


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, int], int]:
    """The integer fields of a compact struct, and the offset after it."""
    if depth > _MAX_DEPTH:
        raise ValueError("page header nested too deeply")
    fields, number = {}, 0
    while True:
        if at >= len(data):
            raise ValueError("page header cut short")
        kind, step = data[at] & 0xF, data[at] >> 4
        at += 1
        if kind == _STOP:
            return fields, at
        if step:
            number += step
        else:
            zigzag, at = _varint(data, at)
            number = (zigzag >> 1) ^ -(zigzag & 1)
        if kind in (_I16, _I32, _I64):
            zigzag, at = _varint(data, at)
            fields[number] = (zigzag >> 1) ^ -(zigzag & 1)
        else:
            at = _skip(data, at, kind, depth)


def _skip(data: bytes, at: int, kind: int, depth: int) -> int:
    """The offset after a value that is not wanted. Page headers hold no lists or maps."""
    if kind in (_TRUE, _FALSE):
        return at
    if kind == _BYTE:
        return at + 1
    if kind == _DOUBLE:
        return at + 8
    if kind == _BINARY:
        length, at = _varint(data, at)
        return at + length
    if kind == _STRUCT:
        return _struct(data, at, depth + 1)[1]
    raise ValueError(f"a page header with a field of type {kind}")
