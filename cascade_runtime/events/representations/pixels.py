"""Flat pixel numbers of events, shared by the rules."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cascade_runtime.events.array import Events


def pixel_numbers(events: Events) -> NDArray[np.intp]:
    """(N,) y * width + x. intp, the dtype numpy indexes with: any other is converted again at each use."""
    numbers = events.y.astype(np.intp)
    numbers *= events.width
    numbers += events.x
    return numbers
