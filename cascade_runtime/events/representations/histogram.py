"""Event counts per pixel and polarity (Maqueda et al., CVPR 2018)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cascade_runtime.events.array import Events
from cascade_runtime.events.representations.pixels import pixel_numbers


def histogram(events: Events) -> NDArray[np.int32]:
    """(2, H, W) int32: how many OFF (channel 0) and ON (channel 1) events each pixel saw."""
    size = events.height * events.width
    numbers = pixel_numbers(events)
    numbers += events.p.astype(np.intp) * size
    return np.bincount(numbers, minlength=2 * size).astype(np.int32).reshape(2, events.height, events.width)
