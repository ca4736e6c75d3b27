"""`activity`: what the bundled models look at. Time slices of three maps, independent of the sensor's size and of the
window's length.

A recording is cut into `frames` slices of equal time and its sensor into `size` x `size` cells. Per slice and cell,
with n events on a pixels: channel 0 is log1p(4 n_ON / a) / 4, channel 1 the same for OFF, channel 2 the mean time of
the cell's events within the slice, from -1 (all at its start) to 1, and 0 where there are none. Motion is the slope
of channel 2: an edge moving right leaves later times on the right, so its direction and speed are linear in it. A
mean rather than the last time stamp, because a cell covers many pixels of a large sensor and its last event always
comes late (Zhu et al. 2018 use the mean for the same reason).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cascade_runtime.errors import InputError
from cascade_runtime.events.array import Events

DENSITY_GAIN = 4.0
_MAX_FRAMES, _MAX_SIZE = 64, 512


def activity(events: Events, *, frames: int = 2, size: int = 64) -> NDArray[np.float32]:
    """(frames, 3, size, size) maps of a whole recording. Empty recordings give zeros. Raises InputError for
    impossible sizes.
    """
    group = np.zeros(len(events), dtype=np.int64)
    sensor = (events.width, events.height)
    return activity_of_groups(
        group, 1, events.t, events.x, events.y, events.p, sensor=sensor, frames=frames, size=size
    )[0]


def activity_of_groups(
    group: NDArray[np.integer],
    groups: int,
    t: NDArray[np.int64],
    x: NDArray[np.integer],
    y: NDArray[np.integer],
    p: NDArray[np.integer],
    *,
    sensor: tuple[int, int],
    frames: int = 2,
    size: int = 64,
) -> NDArray[np.float32]:
    """The maps (groups, frames, 3, size, size) of many recordings of one sensor (width, height) at once.

    group: (N,) which recording each event belongs to; events need no order. Equal to `activity` recording by recording.
    """
    for name, value, limit in (("frames", frames, _MAX_FRAMES), ("size", size, _MAX_SIZE)):
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
            raise InputError(name, value, f"an integer from 1 to {limit}")
    width, height = sensor
    shape = (groups, frames, size, size)
    if not len(t):
        return np.zeros((groups, frames, 3, size, size), dtype=np.float32)
    first = np.full(groups, np.iinfo(np.int64).max)
    last = np.full(groups, np.iinfo(np.int64).min)
    np.minimum.at(first, group, t)
    np.maximum.at(last, group, t)
    slice_, place = time_slices(t, first[group], last[group], frames)
    late = 2.0 * (place - slice_) - 1.0
    cell_y, cell_x = y.astype(np.int64) * size // height, x.astype(np.int64) * size // width
    cell = ((group * frames + slice_) * size + cell_y) * size + cell_x
    cells = groups * frames * size * size
    n_on = np.bincount(cell, weights=p, minlength=cells)
    n_all = np.bincount(cell, minlength=cells)
    late_sum = np.bincount(cell, weights=late, minlength=cells)
    gain = DENSITY_GAIN * size * size / (width * height)
    maps = np.empty((groups, frames, 3, size, size), dtype=np.float32)
    maps[:, :, 0] = (np.log1p(gain * n_on) / DENSITY_GAIN).reshape(shape)
    maps[:, :, 1] = (np.log1p(gain * (n_all - n_on)) / DENSITY_GAIN).reshape(shape)
    maps[:, :, 2] = (late_sum / np.maximum(n_all, 1)).reshape(shape)
    return maps


def time_slices(
    t: NDArray[np.int64], first: NDArray[np.int64], last: NDArray[np.int64], frames: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Which of `frames` equal slices of first..last each time lies in, and where exactly: 2.5 is the middle of slice 2.

    t, first, last: us, of one shape or of one value.
    """
    place = (t - first).astype(np.float64) * frames / ((last - first) + 1.0)
    return np.minimum(place.astype(np.int64), frames - 1), place
