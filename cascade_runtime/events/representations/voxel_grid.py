"""Voxel grid with linear weights in time (Zhu et al., CVPR 2019, eq. 1-3; rpg_e2vid events_to_voxel_grid)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cascade_runtime.errors import InputError
from cascade_runtime.events.array import Events
from cascade_runtime.events.representations.pixels import pixel_numbers

_MAX_BINS = 1024


def voxel_grid(events: Events, *, bins: int = 5) -> NDArray[np.float32]:
    """(B, H, W) float32: sums of polarity (+1 ON, -1 OFF) times max(0, 1 - |b - u|), u = (B - 1)(t - t_first) / span.

    Not normalised. With one bin, or no span, every event falls whole into bin 0. Raises InputError for bins outside
    1..1024.
    """
    if not isinstance(bins, int) or not 1 <= bins <= _MAX_BINS:
        raise InputError("bins", bins, f"an integer from 1 to {_MAX_BINS}")
    size = events.height * events.width
    sign = events.p * 2.0 - 1.0
    numbers = pixel_numbers(events)
    if not len(events):
        return np.zeros((bins, events.height, events.width), np.float32)
    position = (events.t - events.t[0]) * ((bins - 1) / max(events.duration_us, 1))
    lower = np.minimum(position.astype(np.intp), bins - 1)
    upper_share = position - lower
    numbers += lower * size
    grid = np.bincount(numbers, sign * (1.0 - upper_share), minlength=bins * size)
    if bins > 1:
        inside = lower < bins - 1
        grid += np.bincount(numbers[inside] + size, (sign * upper_share)[inside], minlength=bins * size)
    return grid.astype(np.float32).reshape(bins, events.height, events.width)
