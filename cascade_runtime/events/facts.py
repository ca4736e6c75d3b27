"""What a recording's own events say: `measure_facts(events)`.

Direction and speed come from contrast maximisation (Gallego et al., CVPR 2018): events are moved back along a candidate
velocity, and the right one piles them up into sharp edges, that is, maximises the sum of squared pixel counts (per
polarity, so that an ON edge does not hide behind an OFF one). One velocity for the whole window: the dominant
translation in the picture, which is the scene's, opposite to the camera's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade_runtime.events.array import Events
from cascade_runtime.events.representations.histogram import histogram

DIRECTIONS = ("right", "up-right", "up", "up-left", "left", "down-left", "down", "down-right")
REGIONS = ("top-left", "top", "top-right", "left", "centre", "right", "bottom-left", "bottom", "bottom-right")
NO_DIRECTION = "none"

_WINDOW_US = 50_000
_MAX_WINDOW_US = 800_000
_MIN_WINDOW_US = 2_000
_REACH = 24
"""Candidate displacements over the window, in finest cells, each axis."""
_STAGES = ((4.0, 2.0, 24.0), (2.0, 1.0, 2.0), (1.0, 0.5, 1.0))
"""(square counted in, stride and reach of the candidates), all in finest cells. Later stages only refine: in fine
squares a regular texture has sharp false answers."""
_MAX_EVENTS = 10_000
_MIN_EVENTS = 200
_MIN_MOVE = 2.0
_GAIN_SQUARE = 2.0
_MIN_GAIN = 1.08
"""Contrast at the best velocity over contrast standing still, below which no direction is claimed."""


@dataclass(frozen=True, kw_only=True)
class EventFacts:
    """Facts a question may ask for. Angles: 0 right, 90 up (the picture's y axis points down, angles do not)."""

    direction: str
    """One of DIRECTIONS, or "none" where no common motion stands out."""
    direction_deg: float
    """-180 < angle <= 180; nan where direction is "none"."""
    speed_px_per_s: float
    """0.0 where direction is "none"."""
    busiest_region: str
    """One of REGIONS (a 3x3 grid of the sensor), or "none" without events."""
    rate_hz: float
    on_share: float
    """ON events / events; 0.0 without events."""


def measure_facts(events: Events) -> EventFacts:
    """Facts of the whole recording; motion is measured in its densest stretch (about 0.1-0.3 s of one core)."""
    vx, vy = dominant_velocity(events)
    speed = math.hypot(vx, vy)
    angle = math.degrees(math.atan2(-vy, vx)) if speed else math.nan
    return EventFacts(
        direction=DIRECTIONS[round(angle / 45) % 8] if speed else NO_DIRECTION,
        direction_deg=angle,
        speed_px_per_s=speed,
        busiest_region=busiest_region(events),
        rate_hz=events.rate,
        on_share=float(events.p.mean()) if len(events) else 0.0,
    )


def busiest_region(events: Events) -> str:
    """The ninth of the sensor with most events: one of REGIONS, or "none"."""
    if not len(events):
        return NO_DIRECTION
    ninth = (events.y.astype(np.intp) * 3 // events.height) * 3 + events.x.astype(np.intp) * 3 // events.width
    return REGIONS[int(np.argmax(np.bincount(ninth, minlength=9)))]


def dominant_velocity(events: Events) -> tuple[float, float]:
    """(vx, vy) in px/s, y downwards; (0.0, 0.0) where no translation sharpens the events enough to be believed.

    The window grows until something has moved, and shrinks until it has not moved too far.
    """
    window_us, tried, found = _WINDOW_US, set(), (0.0, 0.0)
    longest_us = min(_MAX_WINDOW_US, events.duration_us)
    while window_us not in tried:
        tried.add(window_us)
        window = _without_hot_pixels(events.densest_window(window_us))
        if len(window) < _MIN_EVENTS:
            dx, dy, gain = 0.0, 0.0, 0.0
        else:
            dx, dy, gain = _best_displacement(window)
        cell = _finest_cell(events)
        moved = max(abs(dx), abs(dy)) / cell
        if gain >= _MIN_GAIN and moved >= _MIN_MOVE / 2:
            found = dx * 1e6 / window.duration_us, dy * 1e6 / window.duration_us
        if moved < _MIN_MOVE and window_us < longest_us:
            window_us *= 4
        elif moved > 0.8 * _REACH and window_us // 4 >= _MIN_WINDOW_US:
            window_us //= 4
    return found


def _without_hot_pixels(events: Events) -> Events:
    """Drops pixels that fire far more than the rest: a stuck pixel is the sharpest thing there is, and it stands
    still.
    """
    counts = histogram(events).sum(axis=0)
    active = counts[counts > 0]
    if not len(active):
        return events
    keep = counts[events.y, events.x] <= active.mean() + 10 * active.std()
    columns = [getattr(events, name)[keep] for name in "txyp"]
    return Events(*columns, width=events.width, height=events.height, t_offset_us=events.t_offset_us)


def _finest_cell(events: Events) -> float:
    """Side in pixels of the finest squares counted in: large sensors are looked at more coarsely."""
    return max(1.0, max(events.width, events.height) / 320)


def _best_displacement(window: Events) -> tuple[float, float, float]:
    """(dx, dy) px over the window and the contrast gained by it over standing still; coarse to fine."""
    step = max(1, -(-len(window) // _MAX_EVENTS))
    cell = _finest_cell(window)
    x, y = (values[::step].astype(np.float32) / np.float32(cell) for values in (window.x, window.y))
    age = ((window.t - window.t[0]) / max(window.duration_us, 1)).astype(np.float32)[::step]
    p = window.p[::step].astype(np.intp)
    best = (0.0, 0.0)
    for square, stride, reach in _STAGES:
        offsets = np.arange(-reach, reach + stride / 2, stride)
        grid = [(best[0] + float(i), best[1] + float(j)) for i in offsets for j in offsets]
        scores = [_contrast(x, y, age, p, dx, dy, square) for dx, dy in grid]
        best = grid[int(np.argmax(scores))]
    still = _contrast(x, y, age, p, 0.0, 0.0, _GAIN_SQUARE)
    gain = _contrast(x, y, age, p, *best, _GAIN_SQUARE) / max(still, 1.0)
    return best[0] * cell, best[1] * cell, gain


def _contrast(
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    age: NDArray[np.float32],
    p: NDArray[np.intp],
    dx: float,
    dy: float,
    cell: float,
) -> float:
    """Sum of squared counts of the events moved back by age * (dx, dy), in square cells of `cell` pixels, per
    polarity.
    """
    margin = 2 * _REACH  # and half a unit, so that small moves either way round alike
    columns = ((x - age * np.float32(dx) + np.float32(margin + 0.5)) * np.float32(1 / cell)).astype(np.intp)
    rows = ((y - age * np.float32(dy) + np.float32(margin + 0.5)) * np.float32(1 / cell)).astype(np.intp)
    width = int(columns.max()) + 1
    rows *= 2
    rows += p
    rows *= width
    rows += columns
    counts = np.bincount(rows)
    return float(np.dot(counts.astype(np.float64), counts))


def patch_occupancy(events: Events, patch: int = 14) -> float:
    """Share of the sensor's square patches of `patch` pixels in which at least one event lies: 0 to 1."""
    columns, rows = -(-events.width // patch), -(-events.height // patch)
    hit = np.zeros((rows, columns), bool)
    hit[events.y // patch, events.x // patch] = True
    return float(hit.mean())
