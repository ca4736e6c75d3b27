"""Columns as files hold them -> `Events`: names, units, polarity, order of time, sensor size.

Files disagree on everything but the idea. The rules, in one place:
- names: t | ts | time | timestamp(s) | t_us, x | x_coordinate(s), y | y_coordinate(s), p | pol | polarity | polarities;
- times that are floats with a fractional part are seconds, whole numbers are microseconds;
- polarity: 0/1, -1/1 or False/True;
- sensor: what the caller says, else what the file says, else the smallest common sensor that holds every event;
- times are sorted (stable), `t` starts at 0 and `t_offset_us` is the first event's own time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade_runtime.errors import InputError
from cascade_runtime.events.array import MAX_SENSOR_SIDE, MAX_TIME_US, Events
from cascade_runtime.events.readers.source import Source

COMMON_SENSORS = ((34, 34), (128, 128), (240, 180), (304, 240), (346, 260), (640, 480), (1280, 720), (1280, 800))
COLUMN_NAMES = {
    "t": ("t", "ts", "time", "timestamp", "timestamps", "t_us", "timestamp_us"),
    "x": ("x", "x_coordinate", "x_coordinates", "xs"),
    "y": ("y", "y_coordinate", "y_coordinates", "ys"),
    "p": ("p", "pol", "polarity", "polarities", "ps"),
}
_Columns = Sequence[NDArray[Any]]


def pick_columns(source: Source, names: Mapping[str, object] | Sequence[str]) -> list[str]:
    """The file's own names of t, x, y, p, in that order. Raises EventFormatError naming the one that is missing."""
    by_lower = {str(name).strip().lower(): str(name) for name in names}
    picked = []
    for column, aliases in COLUMN_NAMES.items():
        found = [by_lower[alias] for alias in aliases if alias in by_lower]
        if not found:
            shown = ", ".join(sorted(map(str, names)))[:100]
            raise source.error(f"field {column}", f"absent; the file has: {shown or 'nothing'}")
        picked.append(found[0])
    return picked


def to_events(source: Source, columns: _Columns, *, sensor: tuple[int, int] | None = None, guess: int = 0) -> Events:
    """`columns`: t, x, y, p, any numeric dtype, any order of time. `sensor`: (width, height) where the file states it.

    guess: index into COMMON_SENSORS from which an unstated sensor is looked for. Raises EventFormatError.
    """
    source.check_events(max(len(column) for column in columns))
    t, x, y, p = (np.asarray(column) for column in columns)
    t = microseconds(source, t)
    x, y, p = (_whole(source, name, column) for name, column in zip("xyp", (x, y, p), strict=True))
    width, height = source.sensor or sensor or smallest_sensor(source, x, y, guess)
    offset = int(t.min()) if len(t) else 0
    if not -MAX_TIME_US < offset < MAX_TIME_US:
        raise source.error("field t", f"first time {offset} us is beyond +-2**62")
    relative = np.subtract(t, offset, out=t if t.flags.writeable else None) if offset else t
    if len(relative) and int(relative.min()) < 0:
        raise source.error("field t", "times span more than int64 holds")
    try:
        return Events.from_arrays(relative, x, y, p, width=width, height=height, t_offset_us=offset)
    except InputError as error:
        raise source.error(f"field {error.field}", f"{error.value!r} where {error.allowed} is allowed") from error


def smallest_sensor(source: Source, x: NDArray[Any], y: NDArray[Any], first: int = 0) -> tuple[int, int]:
    """The smallest common sensor (from index `first`) that holds every event, or the tight bound where none does."""
    right, bottom = (int(v.max()) + 1 if len(v) else 1 for v in (x, y))
    if max(right, bottom) > MAX_SENSOR_SIDE:
        raise source.error("field x, y", f"an event at column {right - 1}, row {bottom - 1} or beyond")
    fitting = [size for size in COMMON_SENSORS[first:] if right <= size[0] and bottom <= size[1]]
    return fitting[0] if fitting else (right, bottom)


def from_table(source: Source, table: NDArray[Any]) -> Events:
    """(N, 4) numbers: t, x, y, p where the first column is the one that never steps back and exceeds a sensor, else
    x, y, t, p.
    """
    if table.ndim != 2 or table.shape[1] != 4 or table.dtype.kind not in "iuf":
        raise source.error("field event_data", f"an array of shape {table.shape} and dtype {table.dtype}, not (N, 4)")
    first, third = table[:, 0], table[:, 2]
    rising = not bool((first[1:] < first[:-1]).any()) and bool((third[1:] < third[:-1]).any())
    order = (0, 1, 2, 3) if rising else (2, 0, 1, 3)
    return to_events(source, [table[:, column] for column in order])


def from_structured(source: Source, rows: NDArray[np.void]) -> Events:
    """A structured array with fields t, x, y, p under any of their usual names."""
    names = pick_columns(source, list(rows.dtype.names or ()))
    return to_events(source, [rows[name].reshape(-1) for name in names])


def microseconds(source: Source, t: NDArray[Any]) -> NDArray[Any]:
    """Times as int64 microseconds: floats with a fractional part are seconds. Raises EventFormatError."""
    if t.ndim != 1 or t.dtype.kind not in "iuf":
        raise source.error("field t", f"{t.ndim}-d values of {t.dtype}")
    if t.dtype.kind != "f":
        if t.dtype == np.uint64 and len(t) and int(t.max()) >= MAX_TIME_US:
            raise source.error("field t", f"{int(t.max())} is beyond 2**62")
        return t.astype(np.int64, copy=False)
    seconds = t.astype(np.float64, copy=False)
    if not bool(np.isfinite(seconds).all()):
        raise source.error("field t", "a time that is not a number")
    scaled = seconds if bool((seconds == np.floor(seconds)).all()) else seconds * 1e6
    if len(scaled) and float(np.abs(scaled).max()) >= MAX_TIME_US:
        raise source.error("field t", "a time beyond 2**62 us")
    return np.rint(scaled).astype(np.int64)


def _whole(source: Source, name: str, values: NDArray[Any]) -> NDArray[Any]:
    if values.ndim != 1 or values.dtype.kind not in "iufb":
        raise source.error(f"field {name}", f"{values.ndim}-d values of {values.dtype}")
    if values.dtype.kind != "f":
        return values
    whole = values.astype(np.float64, copy=False)
    if len(whole) and not bool(((np.abs(whole) < 2**31) & (whole == np.floor(whole))).all()):
        raise source.error(f"field {name}", "a value that is not a small whole number")
    return whole.astype(np.int64)
