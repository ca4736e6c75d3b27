"""Where the events of each frame lie, independent of any model: counts on a square grid laid over the sensor.

A drafter that sees few patches is given the busiest (`sees = "events:64"`). Which patches there are differs from tower
to tower, so what travels with the features are counts on one fine grid; `resampled` adds them up in the rectangles of
a coarser one, a cell that lies in two of them divided by area.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cascade_runtime.events.array import Events

CELLS = 56
"""Cells along each side: a multiple of 4, 7, 8, 14 and 28, the sides of most towers' grids."""


def cell_counts(events: Events, frame: NDArray[np.integer], frames: int, *, cells: int = CELLS) -> NDArray[np.float32]:
    """(frames, cells, cells) float32: events per cell. frame: (N,), which frame each event belongs to."""
    row = events.y.astype(np.int64) * cells // events.height
    column = events.x.astype(np.int64) * cells // events.width
    numbers = (frame.astype(np.int64) * cells + row) * cells + column
    counts = np.bincount(numbers, minlength=frames * cells * cells)
    return counts.astype(np.float32).reshape(frames, cells, cells)


def resampled(
    counts: NDArray[np.float32],
    rows: int,
    columns: int,
    window: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
) -> NDArray[np.float32]:
    """Counts (F, a, b) added up in rows x columns equal rectangles of a window: (F, rows, columns) float32.

    window: top, left, bottom, right as shares of the sides. Over the whole, sums are kept.
    """
    top, left, bottom, right = window
    down, across = _shares(counts.shape[1], rows, top, bottom), _shares(counts.shape[2], columns, left, right)
    return (down @ counts.astype(np.float64) @ across.T).astype(np.float32)


def _shares(cells: int, parts: int, low: float, high: float) -> NDArray[np.float64]:
    """(parts, cells): which share of each cell lies in each of the equal parts of low..high."""
    edges = np.linspace(low, high, parts + 1) * cells
    at = np.arange(cells)
    overlap = np.minimum(edges[1:, None], at + 1) - np.maximum(edges[:-1, None], at)
    return np.clip(overlap, 0.0, 1.0)
