"""Arrow IPC bytes of a stranger, read safely: `read_batches(data, limit)`.

Arrow itself checks offsets (`validate(full=True)`), but a compressed buffer announces its decompressed size in eight
bytes and Arrow allocates that before looking further. So each message's metadata (a flatbuffer) is walked first and the
announced sizes are summed against the limit. The file form ("ARROW1" in front, a footer behind) is read as the stream
it contains.

Layout: https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
"""

from __future__ import annotations

import struct
from typing import Any

import pyarrow as pa

from cascade_runtime.errors import InputError
from cascade_runtime.events.flatbuffer import table_field

_FILE_MAGIC = b"ARROW1\0\0"
_RECORD_BATCH = 3  # MessageHeader.RecordBatch
_MAX_BATCHES = 65_536
_ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, struct.error, MemoryError, OverflowError, NotImplementedError)


def read_batches(data: bytes | memoryview | pa.Buffer, limit: int) -> list[pa.RecordBatch]:
    """The record batches in an IPC stream or file. Uncompressed columns share memory with `data`.

    limit: bytes allowed, both as given and once decompressed. At least one batch. Raises InputError, never Arrow's
    errors.
    """
    buffer: Any = data if isinstance(data, pa.Buffer) else pa.py_buffer(data)
    if buffer.size > limit:
        raise InputError("ipc bytes", buffer.size, f"at most {limit}")
    if buffer.size >= len(_FILE_MAGIC) and buffer[: len(_FILE_MAGIC)].to_pybytes() == _FILE_MAGIC:
        buffer = buffer[len(_FILE_MAGIC) :]
    try:
        _check_messages(buffer, limit)
        batches = []
        for batch in pa.ipc.open_stream(buffer):
            batch.validate(full=True)
            batches.append(batch)
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        struct.error,
        MemoryError,
        OverflowError,
        NotImplementedError,
    ) as error:
        raise InputError("ipc bytes", str(error), "an Arrow IPC stream of record batches") from error
    if not batches:
        raise InputError("ipc bytes", "no record batch", "at least one record batch")
    return batches


def _check_messages(buffer: pa.Buffer, limit: int) -> None:
    """Raises InputError or ValueError unless the stream is a schema and then record batches within the limit."""
    total = 0
    for number, message in enumerate(pa.ipc.MessageReader.open_stream(buffer)):
        if message.type != ("record batch" if number else "schema"):
            raise ValueError(f"message {number} is a {message.type}")
        if number == 0:
            continue
        if number > _MAX_BATCHES:
            raise ValueError(f"more than {_MAX_BATCHES} record batches")
        total += _decompressed_bytes(memoryview(message.metadata), memoryview(message.body))
        if total > limit:
            raise InputError("ipc bytes", f"{total} bytes once decompressed", f"at most {limit}")


def _decompressed_bytes(metadata: memoryview, body: memoryview) -> int:
    """Bytes that a record batch message will occupy, read from its flatbuffer without trusting any offset in it."""
    (root,) = struct.unpack_from("<I", metadata, 0)
    kind = table_field(metadata, root, 1)
    header = table_field(metadata, root, 2)
    if kind is None or header is None or struct.unpack_from("<B", metadata, kind)[0] != _RECORD_BATCH:
        raise ValueError("a record batch message without its header")
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    compressed = table_field(metadata, batch, 3) is not None
    vector = table_field(metadata, batch, 2)
    if vector is None:
        return 0
    vector += struct.unpack_from("<I", metadata, vector)[0]
    (count,) = struct.unpack_from("<I", metadata, vector)
    if vector + 4 + count * 16 > len(metadata):
        raise ValueError("more buffers than the message has room for")
    total = 0
    for offset, length in struct.iter_unpack("<qq", metadata[vector + 4 : vector + 4 + 16 * count]):
        if offset < 0 or length < 0 or offset + length > len(body):
            raise ValueError("a buffer outside the message body")
        total += _announced_bytes(body, offset, length) if compressed and length else length
    return total


def _announced_bytes(body: memoryview, offset: int, length: int) -> int:
    """A compressed buffer begins with its decompressed size; -1 says that it was left as it is."""
    if length < 8:
        raise ValueError("a compressed buffer without its size")
    (announced,) = struct.unpack_from("<q", body, offset)
    if announced < -1:
        raise ValueError("a compressed buffer of negative size")
    return length if announced == -1 else announced
