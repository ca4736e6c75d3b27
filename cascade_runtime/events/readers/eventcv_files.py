"""AEDAT 2 (jAER / DAVIS) and Prophesee DAT through eventcv: `pip install cascade-runtime[events]`.

eventcv flips AEDAT 2's bottom-left origin and drops its frames and IMU words. It is native code: what it raises, a
Rust panic included, comes out as an EventFormatError.
"""

from __future__ import annotations

import importlib

import numpy as np

from cascade_runtime.errors import InputError
from cascade_runtime.events.array import Events
from cascade_runtime.events.readers.columns import to_events
from cascade_runtime.events.readers.source import Source

_COLUMNS = 4  # x, y, t, p


def read_with_eventcv(source: Source) -> Events:
    """Raises InputError where eventcv is not installed, EventFormatError where it cannot read the file."""
    try:
        eventcv = importlib.import_module("eventcv")
    except ImportError as error:
        raise InputError("format", source.path.suffix, "pip install 'cascade-runtime[events]' to read it") from error
    try:
        stream = eventcv.load(str(source.path), sensor_size=source.sensor, max_events=source.limits.max_events)
        table = stream.numpy()
        sensor = tuple(map(int, stream.sensor_size))
    except (ValueError, OSError, RuntimeError, OverflowError, MemoryError, TypeError) as error:
        raise source.error("eventcv", str(error)[:300]) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # pyo3's, deliberately outside Exception
            raise
        raise source.error("eventcv", f"its reader gave up: {str(error)[:200]}") from error
    if table.ndim != 2 or table.shape[1] != _COLUMNS or not len(table):
        raise source.error("eventcv", "no events found")
    x, y, t, p = (np.ascontiguousarray(table[:, column]) for column in range(_COLUMNS))
    return to_events(source, [t, x, y, p], sensor=(sensor[0], sensor[1]))
