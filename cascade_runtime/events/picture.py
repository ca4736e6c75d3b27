"""Pictures of recordings: `render_png` for a file, `film` for a page, `preview` for a terminal, `describe` in words.

A pixel's brightness says how many events it saw, its colour whether they were ON (warm) or OFF (cool), on a dark
ground; the brightest pixels are clipped at the 98th percentile so that one hot pixel does not darken the scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cascade_runtime.errors import InputError
from cascade_runtime.events.array import Events
from cascade_runtime.events.facts import measure_facts
from cascade_runtime.events.png import encode_png
from cascade_runtime.events.representations.histogram import histogram

_GROUND = np.array([14, 16, 24], np.float32)
_OFF_COLOUR = np.array([64, 156, 255], np.float32)
_ON_COLOUR = np.array([255, 176, 64], np.float32)
_WINDOW_US = 50_000


def render(events: Events, *, window_us: int | None = _WINDOW_US) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 picture of the densest `window_us`, or of everything with None."""
    shown = events if window_us is None else events.densest_window(window_us)
    return _colour(histogram(shown).astype(np.float32))


def render_png(events: Events, path: str | PathLike[str] | None = None, *, window_us: int | None = _WINDOW_US) -> bytes:
    """The bytes of a PNG of `render`, also written to `path` where one is given."""
    data = encode_png(render(events, window_us=window_us))
    if path is not None:
        Path(path).write_bytes(data)
    return data


@dataclass(frozen=True)
class Frame:
    """What was seen between two moments (relative times, microseconds): how many events, and their picture."""

    start_us: int
    end_us: int
    events: int
    png: bytes


def film(events: Events, frames: int, *, most_columns: int = 480) -> Iterator[Frame]:
    """The recording as `frames` pictures of equal time, no wider than `most_columns`."""
    start, end = (int(events.t[0]), int(events.t[-1]) + 1) if len(events) else (0, 1)
    columns = min(most_columns, events.width)
    rows = max(1, round(events.height * columns / events.width))
    for number in range(frames):
        begin, until = (start + (end - start) * k // frames for k in (number, number + 1))
        window = events.window(begin, until)
        yield Frame(begin, until, len(window), encode_png(_colour(_shrink(window, rows, columns))))


def preview(events: Events, columns: int = 80, *, window_us: int | None = _WINDOW_US) -> str:
    """A terminal picture: lines of upper half blocks, two pixels a character, in 24-bit ANSI colours, each line
    reset.
    """
    if not isinstance(columns, int) or not 2 <= columns <= 1000:
        raise InputError("columns", columns, "an integer from 2 to 1000")
    shown = events if window_us is None else events.densest_window(window_us)
    columns = min(columns, events.width)
    rows = max(2, round(events.height * columns / events.width / 2) * 2)
    picture = _colour(_shrink(shown, rows, columns))
    lines = []
    for upper, lower in zip(picture[0::2], picture[1::2], strict=True):
        cells = (
            f"\x1b[38;2;{a[0]};{a[1]};{a[2]}m\x1b[48;2;{b[0]};{b[1]};{b[2]}m▀"
            for a, b in zip(upper.tolist(), lower.tolist(), strict=True)
        )
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def describe(events: Events) -> dict[str, object]:
    """Facts for people and for JSON: sensor, counts, time, rate, ON share, busiest region, dominant motion (None: no
    direction).
    """
    facts = measure_facts(events)
    moving = facts.direction != "none"
    return {
        "events": len(events),
        "width": events.width,
        "height": events.height,
        "t_offset_us": events.t_offset_us,
        "duration_us": events.duration_us,
        "rate_hz": facts.rate_hz,
        "on_share": facts.on_share,
        "active_pixel_share": float((histogram(events).sum(axis=0) > 0).mean()),
        "busiest_region": facts.busiest_region,
        "direction": facts.direction,
        "direction_deg": facts.direction_deg if moving else None,
        "speed_px_per_s": facts.speed_px_per_s if moving else None,
    }


def _shrink(events: Events, rows: int, columns: int) -> NDArray[np.float32]:
    """(2, rows, columns) counts."""
    numbers = (events.y.astype(np.intp) * rows // events.height) * columns
    numbers += events.x.astype(np.intp) * columns // events.width
    numbers += events.p.astype(np.intp) * (rows * columns)
    return np.bincount(numbers, minlength=2 * rows * columns).reshape(2, rows, columns).astype(np.float32)


def _colour(counts_2HW: NDArray[np.float32]) -> NDArray[np.uint8]:
    total = counts_2HW.sum(axis=0)
    active = total[total > 0]
    if not active.size:
        return np.broadcast_to(_GROUND.astype(np.uint8), (*total.shape, 3)).copy()
    white = max(float(np.percentile(active, 98)), 1.0)
    light = np.sqrt(np.minimum(total / white, 1.0))
    light = np.where(total > 0, 0.25 + 0.75 * light, 0.0)[..., None]
    on = (counts_2HW[1] / np.maximum(total, 1.0))[..., None]
    colour = on * _ON_COLOUR + (1 - on) * _OFF_COLOUR
    return (light * colour + (1 - light) * _GROUND).astype(np.uint8)
