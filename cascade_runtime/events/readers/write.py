"""`write_events`: .npz, .arrow, .parquet and .csv files that read back exactly, sensor size and offset included."""

from __future__ import annotations

import os
from collections.abc import Callable
from os import PathLike
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from cascade_runtime.errors import InputError
from cascade_runtime.events.array import Events


def write_events(path: str | PathLike[str], events: Events) -> None:
    """Writes by suffix; the file appears whole or not at all. Raises InputError for another suffix.

    .arrow (IPC file, zstd) is the fastest to read back, .parquet (zstd, delta-encoded) about as small; .csv is for
    people.
    """
    target = Path(path)
    writer = _WRITERS.get(target.suffix.lower())
    if writer is None:
        raise InputError("path", str(target), f"a suffix among {', '.join(_WRITERS)}")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("xb") as file:
            writer(file, events)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _write_npz(file: object, events: Events) -> None:
    arrays = {name: getattr(events, name) for name in "txyp"}
    facts = {name: np.int64(getattr(events, name)) for name in ("width", "height", "t_offset_us")}
    np.savez_compressed(file, **arrays, **facts)  # type: ignore[arg-type]


def _write_arrow(file: object, events: Events) -> None:
    batch = events.to_record_batch()
    with pa.ipc.new_file(file, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)


def _write_parquet(file: object, events: Events) -> None:
    table = pa.Table.from_batches([events.to_record_batch()])
    encodings = dict.fromkeys("txyp", "DELTA_BINARY_PACKED")
    pq.write_table(table, file, compression="zstd", use_dictionary=False, column_encoding=encodings)


def _write_csv(file: object, events: Events) -> None:
    facts = f"width={events.width} height={events.height} t_offset_us={events.t_offset_us}"
    file.write(f"# cascade.events 1 {facts}\n".encode())  # type: ignore[attr-defined]
    table = pa.Table.from_batches([events.to_record_batch()])
    csv.write_csv(table, file, csv.WriteOptions(quoting_header="none"))


_WRITERS: dict[str, Callable[[object, Events], None]] = {
    ".npz": _write_npz,
    ".arrow": _write_arrow,
    ".parquet": _write_parquet,
    ".csv": _write_csv,
}
