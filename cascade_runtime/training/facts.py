"""The facts that questions are about: seven, each one of a few classes with a gap between neighbours.

`AMBIGUOUS` marks a measured value inside a gap; `NONE` a fact that does not apply (no direction where nothing moves).
All values are relative to the view and the window: speed is the share of the view crossed, rate is events per pixel
of the sensor. `turn` says what becomes of the facts when a recording is flipped, rotated, reversed in time or
inverted in contrast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import NDArray

AMBIGUOUS = -1
NONE = -2
SHAPES = ("disk", "square", "triangle", "bar")
SUBJECTS = ("nothing", "camera", *SHAPES)
DIRECTIONS = ("right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right", "toward", "away")
SPEEDS = ("slow", "moderate", "fast")
RATES = ("low", "moderate", "high", "very high")
BALANCES = ("mostly OFF", "balanced", "mostly ON")
REGIONS = (
    *("upper left", "upper middle", "upper right"),
    *("middle left", "center", "middle right"),
    *("lower left", "lower middle", "lower right"),
    "everywhere",
)
CLASSES: dict[str, tuple[str, ...]] = {
    "subject": SUBJECTS,
    "count": ("none", "one", "two", "three"),
    "direction": DIRECTIONS,
    "speed": SPEEDS,
    "rate": RATES,
    "balance": BALANCES,
    "region": REGIONS,
}
_RATE_GAPS = ((0.16, 0.21), (0.52, 0.68), (1.65, 2.15))
_ON_GAPS = ((0.41, 0.46), (0.54, 0.59))


@dataclass(frozen=True)
class Facts:
    """One class number per fact, an index into CLASSES, or AMBIGUOUS or NONE."""

    subject: int
    count: int
    direction: int
    speed: int
    rate: int
    balance: int
    region: int

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    @classmethod
    def from_row(cls, row: Sequence[int] | NDArray[np.integer]) -> Facts:
        return cls(*(int(value) for value in row))

    def row(self) -> tuple[int, ...]:
        return astuple(self)

    @property
    def decided(self) -> bool:
        """Whether no fact is ambiguous, so that a description can name them all."""
        return AMBIGUOUS not in self.row()

    def name(self, fact: str) -> str:
        """The class's name. Only for facts that apply and are decided."""
        value = getattr(self, fact)
        assert value >= 0, fact
        return CLASSES[fact][value]


def rate_class(events_per_pixel: float) -> int:
    """Class of a rate in events per pixel and window; AMBIGUOUS in a gap."""
    return _between(events_per_pixel, _RATE_GAPS)


def balance_class(on_share: float) -> int:
    """Class of the share of ON events, 0..1; AMBIGUOUS in a gap."""
    return _between(on_share, _ON_GAPS)


def region_class(counts: Sequence[int] | NDArray[np.integer]) -> int:
    """The busiest ninth of the view, row by row, or "everywhere" where none stands out. counts: nine event counts."""
    values = np.asarray(counts, dtype=np.float64)
    first, second = np.sort(values)[::-1][:2] / max(values.sum(), 1.0)
    if first < 0.2:
        return REGIONS.index("everywhere")
    if first > 0.24 and first > 1.5 * second:
        return int(np.argmax(values))
    return AMBIGUOUS


def _between(value: float, gaps: Sequence[tuple[float, float]]) -> int:
    for index, (low, high) in enumerate(gaps):
        if value < low:
            return index
        if value <= high:
            return AMBIGUOUS
    return len(gaps)


def turn(rows: NDArray[np.integer], *, flip: bool, quarter: int, reverse: bool, invert: bool) -> NDArray[np.int8]:
    """Facts (n, 7) after flipping left-right, then `quarter` clockwise quarter turns, reversing time, inverting
    contrast.
    """
    out = np.array(rows, dtype=np.int8)
    names = Facts.names()
    direction = np.arange(len(DIRECTIONS))
    direction[:8] = ((4 - direction[:8] if flip else direction[:8]) + 2 * quarter + (4 if reverse else 0)) % 8
    if reverse:
        direction[8:] = [9, 8]
    places = np.arange(9).reshape(3, 3)
    places = np.rot90(places[:, ::-1] if flip else places, -quarter)
    region = np.append(np.argsort(places.ravel()), 9)
    balance = np.arange(3)[::-1] if reverse != invert else np.arange(3)
    for name, mapping in (("direction", direction), ("region", region), ("balance", balance)):
        column = out[:, names.index(name)]
        known = column >= 0
        column[known] = mapping[column[known]]
    return out
