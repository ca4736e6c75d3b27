"""Named arrays as an uncompressed Arrow IPC stream, packed without loss where that pays.

A row per array: name, dtype, shape, packing, data. Packings:

    plain    the array's bytes
    labels   a red/blue event picture (uint8, three channels): two bits a pixel, four to a byte, zstd
    planes   first the first byte of every number, then the second ..., zstd: for sparse or smooth maps

What a stranger's arrays would occupy is computed from their shapes, summed and compared with a limit before any is
unpacked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cascade_runtime.errors import InputError
from cascade_runtime.events.arrow_ipc import read_batches

DTYPES = ("uint8", "uint16", "int32", "int64", "float16", "float32", "float64")
_FIELDS = (
    ("name", pa.string()),
    ("dtype", pa.string()),
    ("shape", pa.list_(pa.field("item", pa.int32(), nullable=False))),
    ("packing", pa.string()),
    ("data", pa.large_binary()),
)
_SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _FIELDS])
_MAX_ARRAYS, _MAX_DIMENSIONS = 8, 6
_ZSTD = pa.Codec("zstd", compression_level=3)


def pack_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The stream. Features, whose bits hold no pattern, stay plain: `planes` is for arrays named frames or density."""
    rows: list[dict[str, object]] = []
    for name, array in arrays.items():
        array = np.ascontiguousarray(array)
        packing, data = _packed(array) if name in ("frames", "density") else ("plain", array.tobytes())
        rows.append({"name": name, "dtype": array.dtype.name, "shape": array.shape, "packing": packing, "data": data})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=_SCHEMA))
    return sink.getvalue().to_pybytes()


def unpack_arrays(data: bytes, limit: int) -> dict[str, NDArray[Any]]:
    """The arrays, read-only. limit: bytes of all of them once unpacked. Raises `InputError`."""
    batches = read_batches(data, max(len(data), 1))  # nothing in it may be larger than what was sent
    rows: Any = batches[0]
    if len(batches) != 1 or not rows.schema.equals(_SCHEMA) or not 1 <= rows.num_rows <= _MAX_ARRAYS:
        raise InputError("arrays", f"{rows.num_rows} rows of {rows.schema.names}"[:200], "one batch of named arrays")
    if any(column.null_count for column in rows.columns):
        raise InputError("arrays", "null values", "no nulls")
    left = limit
    arrays: dict[str, NDArray[Any]] = {}
    for row in range(rows.num_rows):
        name, dtype, shape, packing = (rows.column(at)[row].as_py() for at in range(4))
        if dtype not in DTYPES or name in arrays:
            raise InputError(f"arrays.{name}.dtype"[:80], dtype, f"one array of a name, of {', '.join(DTYPES)}")
        if len(shape) > _MAX_DIMENSIONS or any(side is None or side < 1 for side in shape):
            raise InputError(f"arrays.{name}.shape", shape, f"up to {_MAX_DIMENSIONS} positive numbers")
        left -= math.prod(shape) * np.dtype(dtype).itemsize
        if left < 0:
            raise InputError(f"arrays.{name}.shape", shape, f"{limit} bytes in all")
        array = _unpacked(name, packing, rows.column(4)[row].as_buffer(), tuple(shape), np.dtype(dtype))
        array.flags.writeable = False
        arrays[name] = array
    return arrays


def _packed(array: NDArray[Any]) -> tuple[str, bytes]:
    if array.dtype == np.uint8 and array.ndim >= 2 and array.shape[-1] == 3:
        labels = np.where(array[..., 1] == 255, 0, np.where(array[..., 0] == 255, 2, 1)).astype(np.uint8).reshape(-1)
        if np.array_equal(_painted(labels).reshape(array.shape), array):
            quads = np.pad(labels, (0, -len(labels) % 4)).reshape(-1, 4)
            bits = quads[:, 0] | quads[:, 1] << 2 | quads[:, 2] << 4 | quads[:, 3] << 6
            return "labels", _ZSTD.compress(bits.astype(np.uint8).tobytes(), asbytes=True)
    planes = array.reshape(-1).view(np.uint8).reshape(-1, array.dtype.itemsize).T
    return "planes", _ZSTD.compress(planes.tobytes(), asbytes=True)


def _unpacked(name: str, packing: str, data: pa.Buffer, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    size = math.prod(shape)
    where = f"arrays.{name}"
    if packing == "plain":
        if data.size != size * dtype.itemsize:
            raise InputError(where, f"{data.size} bytes", f"{size * dtype.itemsize}")
        return np.frombuffer(data, dtype).reshape(shape)
    if packing == "labels" and dtype == np.uint8 and shape[-1] == 3:
        bits = np.frombuffer(_inflated(where, data, -(-size // 3 // 4)), np.uint8)
        labels = np.stack([bits >> shift & 3 for shift in (0, 2, 4, 6)], axis=1).reshape(-1).astype(np.uint8)
        if len(labels) and labels.max() > 2:
            raise InputError(where, "a pixel of a fourth colour", "three colours")
        return _painted(labels[: size // 3]).reshape(shape)
    if packing == "planes":
        planes = np.frombuffer(_inflated(where, data, size * dtype.itemsize), np.uint8)
        return np.ascontiguousarray(planes.reshape(dtype.itemsize, size).T).view(dtype).reshape(shape)
    raise InputError(f"{where}.packing", packing, "plain, planes, or labels of pictures")


def _inflated(where: str, data: pa.Buffer, size: int) -> pa.Buffer:
    try:
        return _ZSTD.decompress(data, decompressed_size=size)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise InputError(where, str(error), f"zstd of exactly {size} bytes") from error


def _painted(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels 0, 1, 2 to white, blue, red: the colours of `event_frame`."""
    return np.stack([(labels != 1), (labels == 0), (labels != 2)], axis=-1).astype(np.uint8) * np.uint8(255)
