"""Events: what it refuses, how it is cut, and that its Arrow form is the same memory."""

from __future__ import annotations

import pickle
import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recording_seeds import simulated

from cascade_runtime.errors import InputError
from cascade_runtime.events import Events


@st.composite
def recordings(draw: st.DrawFn) -> Events:
    width, height = draw(st.integers(1, 50)), draw(st.integers(1, 50))
    row = st.tuples(st.integers(0, 10**6), st.integers(0, width - 1), st.integers(0, height - 1), st.integers(0, 1))
    rows = sorted(draw(st.lists(row, max_size=40)), key=lambda event: event[0])
    t, x, y, p = (np.array([event[i] for event in rows], np.int64) for i in range(4))
    return Events(t, x, y, p, width=width, height=height, t_offset_us=draw(st.integers(-(2**61), 2**61)))


@given(recordings(), st.sampled_from([None, "zstd", "lz4"]))
@settings(max_examples=60, deadline=None)
def test_bytes_batch_and_pickle_give_the_same_recording_back(events: Events, compression: str | None) -> None:
    assert Events.from_ipc_bytes(events.to_ipc_bytes(compression)) == events
    assert Events.from_record_batch(events.to_record_batch()) == events
    assert pickle.loads(pickle.dumps(events)) == events  # noqa: S301 - our own bytes


@given(recordings(), st.integers(5_000, 200_000))
@settings(max_examples=60, deadline=None)
def test_windows_by_time_partition_the_recording(events: Events, window_us: int) -> None:
    parts = list(events.windows_by_time(window_us))
    assert sum(map(len, parts)) == len(events)
    for number, part in enumerate(parts):
        start = int(events.t[0]) + number * window_us
        assert ((part.t >= start) & (part.t < start + window_us)).all()


@given(recordings(), st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_windows_by_count_partition_the_recording(events: Events, count: int) -> None:
    parts = list(events.windows_by_count(count))
    assert all(len(part) == count for part in parts[:-1])
    assert np.array_equal(np.concatenate([part.t for part in parts] or [events.t]), events.t)


@given(recordings(), st.integers(1, 300_000))
@settings(max_examples=40, deadline=None)
def test_densest_window_holds_most_events(events: Events, window_us: int) -> None:
    most = max((int(((events.t >= t) & (events.t < t + window_us)).sum()) for t in events.t), default=0)
    assert len(events.densest_window(window_us)) == most


def test_arrow_batch_shares_memory_both_ways() -> None:
    events = simulated()
    batch = events.to_record_batch()
    assert batch.column("t").buffers()[1].address == events.t.ctypes.data
    back = Events.from_record_batch(batch)
    assert [getattr(back, n).ctypes.data for n in "txyp"] == [getattr(events, n).ctypes.data for n in "txyp"]


def test_arrays_are_read_only_and_the_given_ones_stay_writable() -> None:
    t = np.array([1, 2], np.int64)
    events = Events(t, [0, 1], [0, 0], [0, 1], width=2, height=1)
    with pytest.raises(ValueError, match="read-only"):
        events.t[0] = 5
    t[0] = 0
    with pytest.raises(AttributeError):
        events.width = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("t", {"t": [2, 1]}),
        ("t", {"t": [0.5, 1.0]}),
        ("t", {"t": [0, 2**63 - 1]}),
        ("x", {"x": [0, 4]}),
        ("x", {"x": [-1, 0]}),
        ("x", {"x": [0]}),
        ("y", {"y": [0, 3]}),
        ("p", {"p": [0, 2]}),
        ("p", {"p": [[0, 1]]}),
        ("width", {"width": 0}),
        ("width", {"width": 4097}),
        ("height", {"height": 2.5}),
        ("t_offset_us", {"t_offset_us": 2**62}),
    ],
)
def test_a_wrong_field_is_named(field: str, change: dict) -> None:
    good = {"t": [0, 1], "x": [0, 3], "y": [0, 2], "p": [0, 1], "width": 4, "height": 3}
    arguments = good | change
    columns = [arguments.pop(name) for name in "txyp"]
    with pytest.raises(InputError) as refused:
        Events(*columns, **arguments)
    assert refused.value.field == field


def test_from_arrays_sorts_stably_and_reads_minus_one_as_off() -> None:
    events = Events.from_arrays([5, 1, 5], [0, 1, 2], [0, 0, 0], np.array([1, -1, -1]), width=3, height=1)
    assert events.t.tolist() == [1, 5, 5]
    assert events.x.tolist() == [1, 0, 2]
    assert events.p.tolist() == [0, 1, 0]


def test_window_is_half_open_and_shares_memory() -> None:
    events = Events([0, 10, 20, 30], [0, 1, 2, 3], [0] * 4, [0, 1, 0, 1], width=4, height=1)
    window = events.window(10, 30)
    assert window.t.tolist() == [10, 20]
    assert np.shares_memory(window.t, events.t)
    assert len(events.window(30, 10)) == 0


def test_duration_and_rate() -> None:
    events = Events([100, 200_100], [0, 0], [0, 0], [1, 1], width=1, height=1)
    assert events.duration_us == 200_000
    assert events.rate == 10.0
    assert Events([], [], [], [], width=1, height=1).rate == 0.0


def test_concat_keeps_absolute_times() -> None:
    first = Events([0, 5], [0, 0], [0, 0], [0, 1], width=1, height=1, t_offset_us=100)
    second = Events([0, 1], [0, 0], [0, 0], [1, 1], width=1, height=1, t_offset_us=200)
    joined = Events.concat([first, second])
    assert (joined.t + joined.t_offset_us).tolist() == [100, 105, 200, 201]
    with pytest.raises(InputError, match="parts"):
        Events.concat([first, Events([], [], [], [], width=2, height=1)])


def test_a_stray_time_stamp_does_not_make_a_billion_windows() -> None:
    events = Events([0, 10**15], [0, 0], [0, 0], [0, 0], width=1, height=1)
    with pytest.raises(InputError, match="windows"):
        events.windows_by_time(1000)


def test_ipc_refuses_a_buffer_that_announces_more_than_the_limit() -> None:
    bomb = Events([0] * 2_000_000, [0] * 2_000_000, [0] * 2_000_000, [0] * 2_000_000, width=1, height=1)
    data = bomb.to_ipc_bytes("zstd")
    assert len(data) < 100_000
    with pytest.raises(InputError, match="once decompressed"):
        Events.from_ipc_bytes(data, limit=1_000_000)
    lie = bytearray(simulated(50).to_ipc_bytes("zstd"))
    sizes = [i for i in range(len(lie) - 8) if struct.unpack_from("<q", lie, i)[0] == 400]
    assert sizes
    struct.pack_into("<q", lie, sizes[-1], 2**40)
    with pytest.raises(InputError):
        Events.from_ipc_bytes(bytes(lie))


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({}, "cascade.events.version"),
        ({"cascade.events.version": "2"}, "cascade.events.version"),
        ({"cascade.events.version": "1", "width": "x", "height": "1", "t_offset_us": "0"}, "width"),
        ({"cascade.events.version": "1", "width": "99999", "height": "1", "t_offset_us": "0"}, "width"),
    ],
)
def test_a_batch_of_another_layout_is_refused(metadata: dict, field: str) -> None:
    batch = simulated(3).to_record_batch().replace_schema_metadata(metadata)
    with pytest.raises(InputError) as refused:
        Events.from_record_batch(batch)
    assert refused.value.field == field


def test_a_batch_with_other_columns_is_refused() -> None:
    batch = pa.RecordBatch.from_pydict({"t": [1]}).replace_schema_metadata({"cascade.events.version": "1"})
    with pytest.raises(InputError, match="schema"):
        Events.from_record_batch(batch)
