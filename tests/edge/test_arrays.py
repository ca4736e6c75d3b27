"""Packed arrays come out bit for bit; a stranger's are refused before they take memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from edge.edge_ends import recording
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_runtime.edge.arrays import _SCHEMA, pack_arrays, unpack_arrays
from cascade_runtime.errors import InputError
from cascade_runtime.events.representations.window import render

RULES = [
    ("activity", {"frames": 2, "size": 16}),
    ("event_frame/last_wins", {"frames": 5}),
    ("event_frame/on_over_off", {}),
    ("voxel_grid", {"bins": 5}),
    ("time_surface", {}),
    ("histogram", {}),
]


def packed(**row: object) -> bytes:
    """One array as a stranger may write it."""
    fields = {"name": "frames", "dtype": "uint8", "shape": [4], "packing": "plain", "data": b"abcd"}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([{**fields, **row}], schema=_SCHEMA))
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(("rule", "options"), RULES)
def test_frames_of_every_rule_come_out_bit_for_bit(rule: str, options: dict[str, int]) -> None:
    frames = render(recording(1, 400), rule, options)
    out = unpack_arrays(pack_arrays({"frames": frames}), 1 << 20)["frames"]
    assert out.dtype == frames.dtype and out.shape == frames.shape and out.tobytes() == frames.tobytes()
    assert not out.flags.writeable


def test_a_picture_takes_two_bits_a_pixel_before_compression() -> None:
    noise = np.random.default_rng(0).integers(0, 3, (5, 40, 60))
    frames = np.array([[255, 255, 255], [255, 0, 0], [0, 0, 255]], np.uint8)[noise]
    assert len(pack_arrays({"frames": frames})) < frames[..., 0].size // 4 + 2000


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["uint8", "uint16", "float16", "float32", "float64"]),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(0, 2**32),
)
def test_any_array_comes_out_bit_for_bit(dtype: str, shape: list[int], seed: int) -> None:
    raw = np.random.default_rng(seed).bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    arrays = {name: np.frombuffer(raw, dtype).reshape(shape) for name in ("frames", "features")}
    for name, out in unpack_arrays(pack_arrays(arrays), 1 << 20).items():
        assert out.dtype == dtype and out.tobytes() == arrays[name].tobytes()


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"shape": [2**31 - 1, 2**31 - 1, 64]}, "65536 bytes in all"),
        ({"shape": [0]}, "positive"),
        ({"shape": [-4]}, "positive"),
        ({"shape": [1] * 7}, "up to 6"),
        ({"dtype": "object"}, "of uint8"),
        ({"dtype": "float64"}, "4 bytes"),
        ({"packing": "pickle"}, "plain, planes"),
        ({"packing": "planes", "data": b"not zstd"}, "zstd"),
        ({"packing": "planes", "data": zstd(b"abc")}, "exactly 4"),
        ({"packing": "planes", "data": zstd(bytes(1 << 24))}, "exactly 4"),
        ({"packing": "labels"}, "labels of pictures"),
        ({"packing": "labels", "shape": [1, 3], "data": zstd(b"\x03")}, "three colours"),
    ],
)
def test_a_strangers_arrays_are_refused_by_name(row: dict[str, object], what: str) -> None:
    with pytest.raises(InputError, match=what):
        unpack_arrays(packed(**row), 65_536)


def test_a_compressed_arrow_body_may_hold_no_more_than_was_sent() -> None:
    sink = pa.BufferOutputStream()
    row = {"name": "frames", "dtype": "uint8", "shape": [1 << 22], "packing": "plain", "data": bytes(1 << 22)}
    with pa.ipc.new_stream(sink, _SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([row], schema=_SCHEMA))
    with pytest.raises(InputError, match="once decompressed"):
        unpack_arrays(sink.getvalue().to_pybytes(), 1 << 24)


def test_another_schema_is_refused() -> None:
    sink = pa.BufferOutputStream()
    batch = pa.record_batch({"name": ["frames"]})
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(InputError, match="named arrays"):
        unpack_arrays(sink.getvalue().to_pybytes(), 1 << 20)
