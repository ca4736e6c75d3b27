"""Events per square patch of the sensor: which parts of a scene a vision tower's patches would see anything in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cascade_runtime.errors import InputError
from cascade_runtime.events.array import MAX_SENSOR_SIDE, Events


def density(events: Events, *, patch: int = 14) -> NDArray[np.int64]:
    """(ceil(H / patch), ceil(W / patch)) int64 counts; patches at the right and bottom edge may be cut off by the
    sensor.
    """
    if not isinstance(patch, int) or not 1 <= patch <= MAX_SENSOR_SIDE:
        raise InputError("patch", patch, f"an integer from 1 to {MAX_SENSOR_SIDE}")
    rows, columns = -(-events.height // patch), -(-events.width // patch)
    numbers = (events.y // np.uint16(patch)).astype(np.intp) * columns + events.x // np.uint16(patch)
    return np.bincount(numbers, minlength=rows * columns).astype(np.int64).reshape(rows, columns)
