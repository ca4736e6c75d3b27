"""Recordings made to hurt, each by its format's own rules: bombs, lying headers, depth, width."""

from __future__ import annotations

import base64
import io
import struct
import zipfile
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def url(data: bytes, media_type: str = "application/octet-stream") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def npy(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(64)


def archive(entries: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in entries.items():
            made.writestr(name, data)
    return file.getvalue()


def arrow(columns: dict[str, pa.Array], codec: str | None = None) -> bytes:
    batch = pa.RecordBatch.from_pydict(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def nested(depth: int) -> bytes:
    kind: pa.DataType = pa.int8()
    for _ in range(depth):
        kind = pa.list_(kind)
    sink = pa.BufferOutputStream()
    pa.ipc.new_stream(sink, pa.schema([("t", kind)])).close()
    return sink.getvalue().to_pybytes()


def wide_parquet(columns: int) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({f"{number:060x}": pa.array([1], pa.int8()) for number in range(columns)}), file)
    return file.getvalue()


def deep_parquet(depth: int) -> bytes:
    """A footer of groups in groups, by hand: Thrift's compact protocol."""
    count = bytes([(depth + 2) & 0x7F | 0x80, (depth + 2) >> 7 & 0x7F | 0x80, (depth + 2) >> 14])
    group, leaf = b"\x35\x02\x18\x01g\x15\x02\0", b"\x15\x02\x25\x02\x18\x01t\0"
    footer = b"\x15\x02\x19\xfc" + count + b"\x48\x01s\x15\x02\0" + group * depth + leaf + b"\x16\0\x19\x0c\0"
    return b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"


def vectors(words: int) -> bytes:
    """EVT3 whose every word after the first four is twelve events."""
    head = b"% evt 3.0\n% geometry 1280x720\n% end\n" + struct.pack("<HHHH", 0x8000, 0x6001, 0x0001, 0x3000)
    return head + struct.pack("<HH", 0x3000, 0x4FFF) * (words // 2)


def video(width: int, height: int, frames: int = 1) -> bytes:
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
        for _ in range(frames):
            picture = av.VideoFrame.from_ndarray(np.zeros((height, width), np.uint8), format="gray")
            container.mux(stream.encode(picture.reformat(format="yuvj420p")))
        container.mux(stream.encode())
    return file.getvalue()


def many_samples() -> bytes:
    """A small video whose sample tables announce a quarter of a billion samples."""
    data = bytearray(video(64, 48, 3))
    for box, at in ((b"stsz", 12), (b"stts", 8), (b"stsc", 8), (b"stco", 8)):
        struct.pack_into(">I", data, data.index(box) + at, 0x0FFFFFFF)
    return bytes(data)


def huge_jpeg() -> bytes:
    """A JPEG of some hundred bytes whose header says 65,500 x 65,500."""
    av = pytest.importorskip("av")
    codec = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 64, 48, "yuvj420p", Fraction(1, 30)
    black = av.VideoFrame.from_ndarray(np.zeros((48, 64), np.uint8), format="gray").reformat(format="yuvj420p")
    data = bytearray(bytes(next(iter([*codec.encode(black), *codec.encode(None)]))))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, 65_500, 65_500)
    return bytes(data)


def zeros(count: int) -> pa.Array:
    return pa.array(np.zeros(count, np.int64))
