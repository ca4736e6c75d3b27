"""`Events`: the one array type for event-camera data, and its Arrow form.

An event is (t, x, y, p): at `t_offset_us + t` microseconds the pixel (x, y), origin top-left, became brighter
(p = 1, ON) or darker (p = 0, OFF). The four arrays are read-only and sorted by time; a window is a slice of them and
copies nothing. The Arrow record batch of `to_record_batch` shares the same memory and is what travels between
processes and what is stored; its bytes go through `arrow_ipc.py`, which refuses what a hostile sender could put
there. Files are the business of `readers/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from cascade_runtime.errors import InputError
from cascade_runtime.events.arrow_ipc import read_batches

MAX_SENSOR_SIDE = 4096
MAX_TIME_US = 2**62
"""Relative times and offsets stay below this, so that differences never overflow int64."""

SCHEMA_VERSION = b"1"
_FIELDS = (("t", np.int64), ("x", np.uint16), ("y", np.uint16), ("p", np.uint8))
_SCHEMA = pa.schema([pa.field(name, pa.from_numpy_dtype(dtype), nullable=False) for name, dtype in _FIELDS])
_MAX_WINDOWS = 1_000_000


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Events:
    """A recording, or a window of one.

    t: (N,) int64, microseconds relative to `t_offset_us`, non-decreasing; x, y: (N,) uint16 inside the sensor;
    p: (N,) uint8, 0 or 1.
    Other integer dtypes are cast when every value fits. Raises InputError naming the field that is wrong.
    """

    t: NDArray[np.int64]
    x: NDArray[np.uint16]
    y: NDArray[np.uint16]
    p: NDArray[np.uint8]
    width: int
    height: int
    t_offset_us: int

    def __init__(
        self, t: ArrayLike, x: ArrayLike, y: ArrayLike, p: ArrayLike, *, width: int, height: int, t_offset_us: int = 0
    ) -> None:
        _check_sensor(width, height)
        if not -MAX_TIME_US < t_offset_us < MAX_TIME_US:
            raise InputError("t_offset_us", t_offset_us, "an integer within +-2**62")
        columns = {name: _as_integers(name, values) for name, values in zip("txyp", (t, x, y, p), strict=True)}
        count = len(columns["t"])
        limits = {"t": (-MAX_TIME_US, MAX_TIME_US), "x": (0, width - 1), "y": (0, height - 1), "p": (0, 1)}
        for name, values in columns.items():
            if len(values) != count:
                raise InputError(name, len(values), f"as many values as t has ({count})")
            _check_range(name, values, *limits[name])
        if count and bool((columns["t"][1:] < columns["t"][:-1]).any()):
            first = int(np.argmax(columns["t"][1:] < columns["t"][:-1])) + 1
            raise InputError("t", f"a step back at event {first}", "non-decreasing times (Events.from_arrays sorts)")
        self._fill([columns[name].astype(dtype, copy=False) for name, dtype in _FIELDS], width, height, t_offset_us)

    def _fill(self, columns: Iterable[NDArray[Any]], width: int, height: int, t_offset_us: int) -> None:
        for (name, _), values in zip(_FIELDS, columns, strict=True):
            view = values.view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)
        object.__setattr__(self, "width", int(width))
        object.__setattr__(self, "height", int(height))
        object.__setattr__(self, "t_offset_us", int(t_offset_us))

    @classmethod
    def from_arrays(
        cls, t: ArrayLike, x: ArrayLike, y: ArrayLike, p: ArrayLike, *, width: int, height: int, t_offset_us: int = 0
    ) -> Events:
        """Like `Events`, but takes what files hold: sorts by time (stable), reads a polarity of -1 as OFF."""
        times, xs, ys, ps = (_as_integers(name, v) for name, v in zip("txyp", (t, x, y, p), strict=True))
        if len({len(times), len(xs), len(ys), len(ps)}) != 1:
            raise InputError("t, x, y, p", (len(times), len(xs), len(ys), len(ps)), "equal lengths")
        if ps.dtype.kind == "i":
            _check_range("p", ps, -1, 1)
            ps = ps > 0
        if bool((times[1:] < times[:-1]).any()):
            order = np.argsort(times, kind="stable")
            times, xs, ys, ps = times[order], xs[order], ys[order], ps[order]
        return cls(times, xs, ys, ps.astype(np.uint8), width=width, height=height, t_offset_us=t_offset_us)

    @classmethod
    def concat(cls, parts: Iterable[Events]) -> Events:
        """Joins recordings of one sensor in the order given; times are kept absolute, on the first part's offset."""
        several = list(parts)
        if not several:
            raise InputError("parts", several, "at least one Events")
        first = several[0]
        for part in several:
            if (part.width, part.height) != (first.width, first.height):
                raise InputError("parts", (part.width, part.height), f"one sensor size, {(first.width, first.height)}")
        t = np.concatenate([part.t + (part.t_offset_us - first.t_offset_us) for part in several])
        x, y, p = (np.concatenate([getattr(part, name) for part in several]) for name in "xyp")
        return cls(t, x, y, p, width=first.width, height=first.height, t_offset_us=first.t_offset_us)

    def __len__(self) -> int:
        return len(self.t)

    def __repr__(self) -> str:
        span = f"{self.duration_us / 1000:g} ms"
        return f"Events({len(self):,} in {span}, {self.width}x{self.height}, t_offset_us={self.t_offset_us})"

    def __eq__(self, other: object) -> bool:
        """Same sensor, offset and events."""
        if not isinstance(other, Events):
            return NotImplemented
        mine, theirs = (self.width, self.height, self.t_offset_us), (other.width, other.height, other.t_offset_us)
        return mine == theirs and all(np.array_equal(getattr(self, name), getattr(other, name)) for name in "txyp")

    __hash__ = None  # type: ignore[assignment]  # arrays are compared by value

    def __reduce__(self) -> tuple[object, ...]:  # frozen slots do not pickle on their own
        return (_rebuild, (self.t, self.x, self.y, self.p, self.width, self.height, self.t_offset_us))

    @property
    def duration_us(self) -> int:
        """Last time minus first; 0 when there are fewer than two events."""
        return int(self.t[-1] - self.t[0]) if len(self) else 0

    @property
    def rate(self) -> float:
        """Mean events per second over `duration_us`; 0.0 where there is no duration."""
        return len(self) * 1e6 / self.duration_us if self.duration_us else 0.0

    def slice(self, start: int, stop: int) -> Events:
        """Events number start..stop-1, sharing memory with this recording."""
        part = object.__new__(Events)
        columns = [getattr(self, name)[start:stop] for name in "txyp"]
        part._fill(columns, self.width, self.height, self.t_offset_us)
        return part

    def window(self, t0_us: int, t1_us: int) -> Events:
        """Events with t0_us <= t < t1_us (relative times, like `t`). Shares memory."""
        start, stop = np.searchsorted(self.t, [t0_us, t1_us])
        return self.slice(int(start), max(int(start), int(stop)))

    def windows_by_time(self, window_us: int) -> Iterator[Events]:
        """Consecutive windows of `window_us`, the first from the first event on; quiet stretches give empty ones.

        Raises InputError where that would be over a million windows (one stray time stamp can do it).
        """
        _check_positive("window_us", window_us)
        count = self.duration_us // window_us + 1 if len(self) else 0
        if count > _MAX_WINDOWS:
            raise InputError("window_us", window_us, f"at most {_MAX_WINDOWS} windows; this recording gives {count}")
        edges = (int(self.t[0]) if len(self) else 0) + np.arange(count + 1, dtype=np.int64) * window_us
        bounds = np.searchsorted(self.t, edges)
        return (self.slice(int(a), int(b)) for a, b in pairwise(bounds))

    def windows_by_count(self, count: int) -> Iterator[Events]:
        """Consecutive windows of `count` events; the last may hold fewer."""
        _check_positive("count", count)
        return (self.slice(start, min(start + count, len(self))) for start in range(0, len(self), count))

    def densest_window(self, window_us: int) -> Events:
        """The window of `window_us` with most events, of those that begin at an event (the first such)."""
        _check_positive("window_us", window_us)
        if not len(self):
            return self
        stops = np.searchsorted(self.t, self.t + min(window_us, MAX_TIME_US))
        start = int(np.argmax(stops - np.arange(len(self))))
        return self.slice(start, int(stops[start]))

    def to_record_batch(self) -> pa.RecordBatch:
        """The same memory as an Arrow record batch; sensor, offset and layout version are in its metadata."""
        metadata = {
            b"cascade.events.version": SCHEMA_VERSION,
            b"width": str(self.width).encode(),
            b"height": str(self.height).encode(),
            b"t_offset_us": str(self.t_offset_us).encode(),
        }
        columns = [pa.array(getattr(self, name)) for name, _ in _FIELDS]
        return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA.with_metadata(metadata))

    @classmethod
    def from_record_batch(cls, batch: pa.RecordBatch) -> Events:
        """The inverse of `to_record_batch`, sharing the batch's memory. Raises InputError naming the field."""
        metadata = batch.schema.metadata or {}
        version = metadata.get(b"cascade.events.version")
        if version != SCHEMA_VERSION:
            raise InputError("cascade.events.version", version, repr(SCHEMA_VERSION))
        if not batch.schema.equals(_SCHEMA, check_metadata=False):
            found = ", ".join(f"{field.name}: {field.type}" for field in batch.schema)[:200]
            raise InputError("schema", found, "t: int64, x: uint16, y: uint16, p: uint8, none nullable")
        if any(column.null_count for column in batch.columns):
            raise InputError("columns", "null values", "no nulls")
        facts = [_metadata_integer(metadata, name) for name in ("width", "height", "t_offset_us")]
        columns = [batch.column(name).to_numpy(zero_copy_only=True) for name, _ in _FIELDS]
        return cls(*columns, width=facts[0], height=facts[1], t_offset_us=facts[2])

    def to_ipc_bytes(self, compression: str | None = None) -> bytes:
        """An Arrow IPC stream of one record batch; compression: None, "zstd" or "lz4"."""
        if compression not in (None, "zstd", "lz4"):
            raise InputError("compression", compression, "None, 'zstd', 'lz4'")
        sink = pa.BufferOutputStream()
        batch = self.to_record_batch()
        with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
            writer.write_batch(batch)
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_ipc_bytes(cls, data: bytes | memoryview, limit: int = 256 * 2**20) -> Events:
        """The inverse of `to_ipc_bytes`; without compression it shares the bytes' memory. Reads hostile bytes safely.

        limit: bytes allowed, both as sent and once decompressed. Raises InputError.
        """
        batches = read_batches(data, limit)
        if len(batches) == 1:
            return cls.from_record_batch(batches[0])
        return cls.concat(cls.from_record_batch(batch) for batch in batches)


def _rebuild(t: ArrayLike, x: ArrayLike, y: ArrayLike, p: ArrayLike, width: int, height: int, offset: int) -> Events:
    return Events(t, x, y, p, width=width, height=height, t_offset_us=offset)


def _check_sensor(width: int, height: int) -> None:
    for name, side in (("width", width), ("height", height)):
        if not isinstance(side, int | np.integer) or isinstance(side, bool) or not 1 <= side <= MAX_SENSOR_SIDE:
            raise InputError(name, side, f"an integer from 1 to {MAX_SENSOR_SIDE}")


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int | np.integer) or value < 1:
        raise InputError(name, value, "an integer of at least 1")


def _check_range(name: str, values: NDArray[Any], low: int, high: int) -> None:
    if len(values) and (int(values.min()) < low or int(values.max()) > high):
        worst = int(values.min()) if int(values.min()) < low else int(values.max())
        raise InputError(name, worst, f"integers from {low} to {high}")


def _as_integers(name: str, values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    if array.size == 0 and array.dtype.kind == "f":
        array = array.astype(np.int64)  # np.asarray([]) is float
    if array.ndim != 1 or array.dtype.kind not in "iub":
        raise InputError(name, f"{array.ndim}-d array of {array.dtype}", "a 1-d array of integers")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array.astype(np.uint8) if array.dtype.kind == "b" else array


def _metadata_integer(metadata: dict[bytes, bytes], name: str) -> int:
    text = metadata.get(name.encode(), b"")
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or len(digits) > 20:
        raise InputError(name, text, "a decimal integer in the schema's metadata")
    return int(text)
