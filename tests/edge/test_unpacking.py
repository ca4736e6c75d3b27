"""Every window is looked at again at the core: schema, dtype, shape, sensor size, time order, spaces, hashes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from edge.edge_ends import SEEING, recording

from cascade_runtime.edge.arrays import pack_arrays, unpack_arrays
from cascade_runtime.edge.cut import MAX_WINDOW_BYTES, Seeing
from cascade_runtime.edge.ingest import windows_of
from cascade_runtime.edge.packing import FramePacker, RawPacker, bodies_of, part_of
from cascade_runtime.edge.unpacking import Unpacker, read_part
from cascade_runtime.errors import ConfigError, FeatureSpaceError, InputError
from cascade_runtime.events import Events
from cascade_runtime.events.representations.window import render, source_hash
from cascade_runtime.proto import edge_pb2
from cascade_runtime.vision.event_branch import EventBranch, RenderedWindow

WINDOWS = list(windows_of(recording(3), 50_000))
COUNTING = replace(SEEING, counts=True)


def unpacker(cut: str = "raw", seeing: Seeing = SEEING) -> Unpacker:
    return Unpacker(seeing, cut, 32, 24)


def raw(window: int = 0, **changes: Any) -> edge_pb2.WindowPart:
    part = RawPacker().pack(WINDOWS[window])
    for name, value in changes.items():
        setattr(part, name, value)
    return part


def frames(change: Callable[[edge_pb2.WindowPart, dict[str, Any]], None], seeing: Seeing = SEEING) -> Any:
    """A frames window as a stranger may change it."""
    part = FramePacker(seeing).pack(WINDOWS[0])
    arrays = {name: array.copy() for name, array in unpack_arrays(part.payload, 1 << 20).items()}
    change(part, arrays)
    part.payload = pack_arrays(arrays)
    return unpacker("frames", seeing).window([part])


def test_a_window_in_pieces_is_put_together_again() -> None:
    bodies = bodies_of(raw(1), 100)
    parts = [read_part(body) for body in bodies]
    assert len(parts) > 10 and [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert unpacker().window(parts) == WINDOWS[1].events
    parts[0].number += 1
    with pytest.raises(InputError, match="parts of one window"):
        unpacker().window(parts)


def test_frames_arrive_as_the_event_branch_would_have_made_them() -> None:
    branch = EventBranch((SEEING.rule, SEEING.options), None, counts=True)
    here = branch.view(WINDOWS[0].events)
    sent = unpacker("frames", COUNTING).window([FramePacker(COUNTING).pack(WINDOWS[0])])
    assert isinstance(sent, RenderedWindow) and len(sent) == 40
    there = branch.view(sent)
    assert there.source == here.source and there.frames.tobytes() == here.frames.tobytes()
    assert there.density is not None and here.density is not None and np.array_equal(there.density, here.density)


def compressed(window: int) -> bytes:
    return WINDOWS[window].events.to_ipc_bytes("zstd")


def other_schema() -> bytes:
    batch = pa.record_batch({"t": pa.array([1, 2]), "x": pa.array([1.5, 2.5])})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def of_another_sensor() -> bytes:
    events = WINDOWS[0].events
    return Events(events.t, events.x, events.y, events.p, width=64, height=24, t_offset_us=7_000_000).to_ipc_bytes()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"payload": b""}, "ipc bytes"),
        ({"payload": other_schema()}, "cascade.events.version"),
        ({"payload": of_another_sensor()}, "sensor"),
        ({"payload": recording(2).to_ipc_bytes()}, "window.t"),
        ({"payload": WINDOWS[0].events.slice(0, 0).to_ipc_bytes()}, "window.events"),
        ({"begin_us": 7_010_000}, "window.t"),
        ({"end_us": 7_000_000}, "window.end_us"),
        ({"end_us": 9_000_000}, "window.end_us"),
    ],
)
def test_events_that_are_not_this_window_are_refused_by_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=field):
        unpacker().window([raw(**changes)])


def test_a_step_back_in_time_within_or_between_windows_is_refused() -> None:
    events = WINDOWS[0].events
    back = Events(events.t, events.x, events.y, events.p, width=32, height=24, t_offset_us=7_000_000)
    object.__setattr__(back, "t", back.t[::-1].copy())
    with pytest.raises(InputError, match="a step back"):
        unpacker().window([part_of(WINDOWS[0], back.to_ipc_bytes())])
    one = unpacker()
    one.window([raw(1)])
    with pytest.raises(InputError, match="where the last one ended"):
        one.window([raw(0)])


def _frame_changes() -> list[tuple[Any, str]]:
    def shape(part: Any, arrays: Any) -> None:
        arrays["frames"] = arrays["frames"][:, :, :4]

    def dtype(part: Any, arrays: Any) -> None:
        arrays["frames"] = arrays["frames"].astype(np.float64)

    def nan(part: Any, arrays: Any) -> None:
        arrays["frames"][0, 0, 0, 0] = np.nan

    def count(part: Any, arrays: Any) -> None:
        arrays["frames"] = np.repeat(arrays["frames"], 2, axis=0)

    def extra(part: Any, arrays: Any) -> None:
        arrays["features"] = arrays["frames"]

    def occupancy(part: Any, arrays: Any) -> None:
        part.rendered.occupancy = float("nan")

    def options(part: Any, arrays: Any) -> None:
        part.rendered.options = "[" * 4000

    def many(part: Any, arrays: Any) -> None:
        part.rendered.events = 2**64 - 1

    def long(part: Any, arrays: Any) -> None:
        part.rendered.duration_us = 10**9

    return [
        (shape, "window.frames"),
        (dtype, "window.frames"),
        (nan, "window.frames"),
        (count, "window.frames"),
        (extra, "window.arrays"),
        (occupancy, "window.rendered"),
        (options, "options"),
        (many, "window.rendered"),
        (long, "window.rendered"),
    ]


@pytest.mark.parametrize(("change", "field"), _frame_changes())
def test_frames_that_the_rule_cannot_have_rendered_are_refused_by_name(change: Any, field: str) -> None:
    with pytest.raises(InputError, match=field):
        frames(change)


def test_densities_of_another_shape_or_below_zero_are_refused() -> None:
    def negative(part: Any, arrays: Any) -> None:
        arrays["density"][0, 0, 0] = -1

    def short(part: Any, arrays: Any) -> None:
        arrays["density"] = arrays["density"][:, :5]

    for change in (negative, short):
        with pytest.raises(InputError, match=r"window\.density"):
            frames(change, COUNTING)


def test_the_event_branch_takes_frames_of_its_own_rule_with_their_own_hash_only() -> None:
    def forged(part: Any, arrays: Any) -> None:
        part.rendered.source = source_hash(arrays["frames"] + 1)

    def other_rule(part: Any, arrays: Any) -> None:
        part.rendered.options = json.dumps({"frames": 2, "size": 9})

    branch = EventBranch((SEEING.rule, SEEING.options), None)
    with pytest.raises(FeatureSpaceError, match="the hash of these frames"):
        branch.view(frames(forged))
    with pytest.raises(InputError, match=r"frames\.rule"):
        branch.view(frames(other_rule))
    counting = EventBranch((SEEING.rule, SEEING.options), None, counts=True)
    with pytest.raises(InputError, match=r"frames\.density"):
        counting.view(frames(lambda part, arrays: None))


def test_pictures_cut_down_to_the_events_are_taken_and_larger_ones_are_not() -> None:
    seeing = replace(SEEING, rule="event_frame/last_wins", options={"tight": True})
    sent = unpacker("frames", seeing).window([FramePacker(seeing).pack(WINDOWS[0])])
    assert isinstance(sent, RenderedWindow)
    assert sent.view.frames.tobytes() == render(WINDOWS[0].events, seeing.rule, seeing.options).tobytes()
    with pytest.raises(InputError, match=r"window\.frames"):
        frames(lambda part, arrays: arrays.update(frames=np.full((1, 25, 32, 3), 255, np.uint8)), seeing)


def test_what_no_core_takes_is_not_sent() -> None:
    with pytest.raises(InputError, match="shorter windows"):
        bodies_of(edge_pb2.WindowPart(payload=bytes(MAX_WINDOW_BYTES + 1)), 1 << 20)
    with pytest.raises(ConfigError, match="raw, frames"):
        unpacker("features")
    with pytest.raises(InputError, match="WindowPart"):
        read_part(b"\xff")
