"""`to_events`: a recording from whatever a user has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from cascade_runtime.errors import InputError
from cascade_runtime.events import Events, read_events
from cascade_runtime.events.readers.arrow_files import from_batches
from cascade_runtime.events.readers.columns import COLUMN_NAMES, from_table, microseconds
from cascade_runtime.events.readers.source import Source


class Columns(Protocol):
    """eventcv's `EventStream`: a table with times in microseconds; sensor_size: (width, height)."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def sensor_size(self) -> tuple[int, int]: ...

    def numpy(self) -> np.ndarray: ...


EventsLike = Events | str | Path | Mapping[str, Any] | np.ndarray | pa.RecordBatch | pa.Table | Columns

_VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm")
_ALLOWED = "Events, a path, Arrow, an (N, 4) array, or arrays named t, x, y, p"
_NOWHERE = Source(Path("array"))  # what errors call an array


def to_events(source: EventsLike) -> Events:
    """A recording from what a user has.

    Events; a path (a video or a folder of frames becomes events by the simulator); an Arrow batch or table; eventcv's
    `EventStream`; a mapping or a structured array (tonic's) with fields t, x, y, p under any of their usual names; an
    (N, 4) array of t, x, y, p or x, y, t, p. Times are microseconds, or seconds where they have fractions. A mapping
    may hold `width` and `height` of the sensor; without, it is as large as the events need. Raises `InputError`.
    """
    try:
        return _to_events(source)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # what numpy and pathlib make of nonsense
        raise InputError(
            "events", f"{type(source).__name__}: {error}", "numbers named t, x, y, p, or a path"
        ) from error


def _to_events(source: EventsLike) -> Events:
    if isinstance(source, Events):
        return source
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if path.suffix.lower() in _VIDEOS or path.is_dir():
            from cascade_runtime.events.video_to_events import video_to_events

            return video_to_events(path)
        return read_events(path)
    if isinstance(source, pa.RecordBatch | pa.Table):
        arrow: Any = source
        batches = arrow.to_batches() if isinstance(source, pa.Table) else [arrow]
        return from_batches(_NOWHERE, arrow.schema, batches)
    if isinstance(source, np.ndarray) and not source.dtype.names:
        return from_table(_NOWHERE, source)
    if isinstance(source, np.ndarray):
        return _from_columns({name: source[name].reshape(-1) for name in source.dtype.names or ()})
    if isinstance(source, Mapping):
        return _from_columns(source)
    if all(hasattr(source, name) for name in ("columns", "sensor_size", "numpy")):
        return _from_stream(source)
    raise InputError("events", type(source).__name__, _ALLOWED)


def _from_stream(stream: Columns) -> Events:
    table = np.asarray(stream.numpy())
    columns: dict[str, Any] = dict(zip(stream.columns, table.T, strict=True))
    columns["width"], columns["height"] = stream.sensor_size
    return _from_columns(columns)


def _from_columns(source: Mapping[str, Any]) -> Events:
    by_lower = {str(name).strip().lower(): name for name in source}
    found = {
        column: next((by_lower[alias] for alias in aliases if alias in by_lower), None)
        for column, aliases in COLUMN_NAMES.items()
    }
    missing = [column for column, name in found.items() if name is None]
    if missing:
        raise InputError("events", sorted(map(str, source)), f"also {', '.join(missing)}")
    t, x, y, p = (np.asarray(source[str(found[column])]) for column in COLUMN_NAMES)
    width = int(source.get("width", int(x.max()) + 1 if x.size else 1))
    height = int(source.get("height", int(y.max()) + 1 if y.size else 1))
    if t.dtype.kind == "f":
        t = microseconds(_NOWHERE, t)
    return Events.from_arrays(t, x, y, p, width=width, height=height)
