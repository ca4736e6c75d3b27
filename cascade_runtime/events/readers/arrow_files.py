"""Arrow IPC (stream or file form) and Parquet recordings.

Files that `write_events` made carry sensor size and offset in their metadata and come back as they were; any other
file needs columns t, x, y, p under one of their usual names and is treated as in columns.py.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cascade_runtime.errors import InputError
from cascade_runtime.events.array import Events
from cascade_runtime.events.arrow_ipc import read_batches
from cascade_runtime.events.readers.columns import pick_columns, to_events
from cascade_runtime.events.readers.parquet_pages import check_pages
from cascade_runtime.events.readers.source import Source

_BATCH_ROWS = 1 << 18
_MAX_FOOTER_BYTES = 1 << 20  # Parquet's description of itself; read, it takes nine times its size


def read_arrow(source: Source) -> Events:
    """Arrow IPC, either form; uncompressed columns share the file's memory. Raises EventFormatError."""
    try:
        batches = read_batches(source.data, source.limits.max_expanded_bytes)
    except InputError as error:
        raise source.error("arrow ipc", str(error.value)[:300]) from error
    source.check_events(sum(batch.num_rows for batch in batches))
    return from_batches(source, batches[0].schema, batches)


def read_parquet(source: Source) -> Events:
    """Parquet, read in pieces so that what its footer announces is never allocated at once. Raises EventFormatError."""
    footer_bytes = int.from_bytes(source.data[-8:-4], "little")
    if footer_bytes > _MAX_FOOTER_BYTES:
        raise source.error("footer", f"{footer_bytes} bytes; limit {_MAX_FOOTER_BYTES}")
    try:
        file = pq.ParquetFile(io.BytesIO(source.data), page_checksum_verification=True)
        metadata = file.metadata
        source.check_events(metadata.num_rows)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        source.check_expanded(sum(group.total_byte_size for group in groups), "footer")
        schema = file.schema_arrow
        names = pick_columns(source, schema.names)
        leaves = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
        check_pages(source, metadata, [number for number, leaf in enumerate(leaves) if leaf.split(".")[0] in names])
        batches, rows = [], 0
        for batch in file.iter_batches(_BATCH_ROWS, columns=names, use_threads=False):
            rows += batch.num_rows
            source.check_events(rows)
            batch.validate(full=True)
            batches.append(batch)
    except (pa.ArrowException, OSError, ValueError, OverflowError, NotImplementedError) as error:
        raise source.error("parquet", str(error)[:300]) from error
    return from_batches(source, schema, batches)


def from_batches(source: Source, schema: pa.Schema, batches: list[pa.RecordBatch]) -> Events:
    """The recording in batches of one schema: our own layout exactly, any other as in columns.py."""
    if b"cascade.events.version" in (schema.metadata or {}):
        empty = Events([], [], [], [], width=1, height=1).to_record_batch().schema
        order = [batch.select(empty.names) for batch in batches]
        fields = [pa.field(field.name, field.type, nullable=False) for field in empty]
        if not order:
            order = [pa.RecordBatch.from_pylist([], pa.schema(fields))]
        exact = pa.schema(fields, schema.metadata)
        cast = [pa.RecordBatch.from_arrays(batch.columns, schema=exact) for batch in order]
        return (
            Events.concat(Events.from_record_batch(batch) for batch in cast)
            if len(cast) > 1
            else (Events.from_record_batch(cast[0]))
        )
    names = pick_columns(source, schema.names)
    return to_events(source, [_column(source, name, batches) for name in names])


def _column(source: Source, name: str, batches: list[pa.RecordBatch]) -> NDArray[Any]:
    parts = []
    for batch in batches:
        column = batch.column(batch.schema.get_field_index(name))
        numeric = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        if column.null_count or not (numeric or pa.types.is_boolean(column.type)):
            raise source.error(f"field {name[:40]}", f"{column.type} with {column.null_count} nulls")
        parts.append(column.to_numpy(zero_copy_only=False))
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
