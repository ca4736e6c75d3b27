"""`compose`: the output file from its committed outcomes, in the order of the input, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from cascade_runtime.batch.durable import write_durably
from cascade_runtime.batch.outcome import SCHEMA
from cascade_runtime.errors import CascadeError, ConfigError

SUFFIXES = (".jsonl", ".parquet")

_Row = Mapping[str, Any]


def check_output(path: Path) -> None:
    """Raises `ConfigError` for an output of another kind or in a folder that is not there."""
    if path.suffix not in SUFFIXES:
        raise ConfigError("output", str(path), f"a name that ends in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ConfigError("output", str(path), "a file in an existing folder")


def compose(path: Path, windows: Iterable[Sequence[_Row]], rows: int) -> None:
    """Write the output. Raises `CascadeError` unless the windows hold each row 0 .. rows - 1 once and in order."""
    write = _write_parquet if path.suffix == ".parquet" else _write_lines
    write_durably(path, lambda file: write(file, _checked(windows, rows)))


def _checked(windows: Iterable[Sequence[_Row]], rows: int) -> Iterator[Sequence[_Row]]:
    expected = 0
    for window in windows:
        indices = [row["index"] for row in window]
        until = expected + len(window)
        if indices != list(range(expected, until)):
            raise CascadeError(f"rows {expected} .. {until - 1} are not there once each: {indices[:8]} ...")
        expected = until
        yield window
    if expected != rows:
        raise CascadeError(f"{expected} rows are there, the input has {rows}: it has changed")


def _write_lines(file: BinaryIO, windows: Iterable[Sequence[_Row]]) -> None:
    for window in windows:
        file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in window)


def _write_parquet(file: BinaryIO, windows: Iterable[Sequence[_Row]]) -> None:
    with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        for window in windows:
            writer.write_table(pa.Table.from_pylist([dict(row) for row in window], schema=SCHEMA))
