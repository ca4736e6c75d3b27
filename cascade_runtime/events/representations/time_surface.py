"""Exponential time surface (Lagorce et al., HOTS, PAMI 2017, eq. 2-3, over the entire sensor)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cascade_runtime.errors import InputError
from cascade_runtime.events.array import Events
from cascade_runtime.events.representations.pixels import pixel_numbers


def time_surface(events: Events, *, tau_us: float = 10_000.0) -> NDArray[np.float32]:
    """(2, H, W) float32 in [0, 1], OFF then ON: exp(-(t_last - t) / tau) of each pixel's latest event, 0 where there
    is none.

    t_last is the time of the last event. Raises InputError unless tau_us > 0.
    """
    if not tau_us > 0:
        raise InputError("tau_us", tau_us, "a positive number of microseconds")
    size = events.height * events.width
    numbers = pixel_numbers(events)
    numbers += events.p.astype(np.intp) * size
    surface = np.zeros(2 * size, np.float32)
    if len(events):
        surface[numbers] = np.exp((events.t - events.t[-1]) / tau_us)  # numpy assigns repeated indices in order
    return surface.reshape(2, events.height, events.width)
