"""N-Caltech101 / N-MNIST `.bin`: five big-endian bytes an event, x8 y8 p1 t23 (microseconds).

A row of 240 is no event but an overflow: 2**13 us are added to every later time (the data sets' own reader,
https://github.com/gorchard/event-Python eventvision.py). N-MNIST's 34x34 sensor has no row 240 either.
"""

from __future__ import annotations

import numpy as np

from cascade_runtime.events.array import Events
from cascade_runtime.events.readers.columns import to_events
from cascade_runtime.events.readers.source import Source

_OVERFLOW_ROW = 240
_OVERFLOW_US = 2**13


def read_forty_bit(source: Source) -> Events:
    """Raises EventFormatError where the file is not whole events."""
    if len(source.data) % 5:
        raise source.error(
            f"offset {len(source.data) // 5 * 5}", f"{len(source.data) % 5} bytes left over; events are 5 bytes"
        )
    source.check_events(len(source.data) // 5)
    raw = np.frombuffer(source.data, np.uint8).reshape(-1, 5)
    t = ((raw[:, 2].astype(np.int64) & 0x7F) << 16) | (raw[:, 3].astype(np.int64) << 8) | raw[:, 4]
    overflow = raw[:, 1] == _OVERFLOW_ROW
    if bool(overflow.any()):
        t += np.cumsum(overflow) * _OVERFLOW_US
    real = ~overflow
    return to_events(source, [t[real], raw[real, 0], raw[real, 1], raw[real, 2] >> 7])
