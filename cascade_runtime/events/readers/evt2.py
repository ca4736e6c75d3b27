"""Prophesee EVT 2.0: little-endian 32-bit words, type in the top four bits.

    0 CD_OFF, 1 CD_ON   time low 6 bits 22-27, x 11 bits 11-21, y 11 bits 0-10
    8 TIME_HIGH         28 bits: time = high << 6 | low; a step back by more than half its range is the counter's wrap
    others              triggers and vendor words, skipped

https://docs.prophesee.ai/stable/data/encoding_formats/evt2.html. No Python loop over words.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade_runtime.events.array import Events
from cascade_runtime.events.readers.columns import to_events
from cascade_runtime.events.readers.raw_header import read_raw_header
from cascade_runtime.events.readers.source import Source

_TIME_HIGH = 8
_HIGH_BITS = 28


def read_evt2(source: Source) -> Events:
    """Bytes of an unfinished last word are ignored, as the vendor does. Raises EventFormatError."""
    header = read_raw_header(source)
    words = np.frombuffer(source.data, "<u4", (len(source.data) - header.body) // 4, header.body)
    source.check_events(len(words))
    return to_events(source, decode_evt2(words), sensor=header.sensor, guess=header.guess)


def decode_evt2(words: NDArray[np.uint32]) -> list[NDArray[Any]]:
    """(N,) uint32 words -> t (int64 us), x, y (uint16), p (uint8). Events before the first TIME_HIGH are dropped:
    they have no time.
    """
    kind = (words >> np.uint32(28)).astype(np.uint8)
    high_at = np.flatnonzero(kind == _TIME_HIGH)
    if not len(high_at):
        empty = np.zeros(0, np.uint32)
        return [empty.astype(np.int64), empty.astype(np.uint16), empty.astype(np.uint16), empty.astype(np.uint8)]
    high = (words[high_at] & np.uint32(0x0FFFFFFF)).astype(np.int64)
    wraps = np.cumsum(np.diff(high, prepend=high[:1]) < -(1 << (_HIGH_BITS - 1)))
    base = (high + (wraps << _HIGH_BITS)) << 6
    event_at = np.flatnonzero(kind <= 1)
    event_at = event_at[np.searchsorted(event_at, high_at[0]) :]
    per_base = np.diff(np.append(np.searchsorted(event_at, high_at), len(event_at)))
    cd = words[event_at]
    t = np.repeat(base, per_base)
    t += (cd >> np.uint32(22)) & np.uint32(0x3F)
    low = cd.astype(np.uint16) & np.uint16(0x7FF)
    x = ((cd >> np.uint32(11)) & np.uint32(0x7FF)).astype(np.uint16)
    return [t, x, low, kind[event_at]]
