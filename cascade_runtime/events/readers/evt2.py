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

_CD_ON, _TIME_HIGH = 1, 8
_BLOCK_WORDS = 1 << 16
_HIGH_BITS = 28


def read_evt2(source: Source) -> Events:
    """Bytes of an unfinished last word are ignored, as the vendor does. Raises EventFormatError."""
    header = read_raw_header(source)
    words = np.frombuffer(source.data, "<u4", (len(source.data) - header.body) // 4, header.body)
    source.check_events(len(words))
    return to_events(source, decode_evt2(words), sensor=header.sensor, guess=header.guess)


def decode_evt2(words: NDArray[np.uint32]) -> list[NDArray[Any]]:
    """(N,) uint32 words -> t (int64 us), x, y (uint16), p (uint8).

    Events before the first TIME_HIGH are dropped: they have no time.
    """
    columns = [np.empty(len(words), dtype) for dtype in (np.int64, np.uint16, np.uint16, np.uint8)]
    at, high = 0, -1
    for start in range(0, len(words), _BLOCK_WORDS):
        decoded, high = _decode_block(words[start : start + _BLOCK_WORDS], high)
        for column, part in zip(columns, decoded, strict=True):
            column[at : at + len(part)] = part
        at += len(decoded[0])
    return [column[:at] for column in columns]


def _decode_block(words: NDArray[np.uint32], high: int) -> tuple[list[NDArray[Any]], int]:
    """The block's events, and the TIME_HIGH in force after it (wraps counted in; -1 before the first)."""
    kind = (words >> np.uint32(28)).astype(np.uint8)
    high_at = np.flatnonzero(kind == _TIME_HIGH)
    highs = _unwrapped((words[high_at] & np.uint32(0x0FFFFFFF)).astype(np.int64), high)
    event_at = np.flatnonzero(kind <= _CD_ON)
    starts = np.searchsorted(event_at, high_at)
    if high < 0:
        first = int(starts[0]) if len(starts) else len(event_at)
        event_at, starts = event_at[first:], starts - first
    cd = words[event_at]
    in_force = np.concatenate([[high], highs])
    t = np.repeat(in_force << 6, np.diff(starts, prepend=0, append=len(event_at)))
    t += (cd >> np.uint32(22)) & np.uint32(0x3F)
    x = ((cd >> np.uint32(11)) & np.uint32(0x7FF)).astype(np.uint16)
    y = (cd & np.uint32(0x7FF)).astype(np.uint16)
    return [t, x, y, kind[event_at]], int(in_force[-1])


def _unwrapped(highs: NDArray[np.int64], before: int) -> NDArray[np.int64]:
    """28-bit counts made to run on: a step back by more than half the range is the counter's wrap."""
    if not len(highs):
        return highs
    previous = np.concatenate([[highs[0] if before < 0 else before & ((1 << _HIGH_BITS) - 1)], highs[:-1]])
    loops = max(before, 0) >> _HIGH_BITS
    return highs + ((loops + np.cumsum(highs - previous < -(1 << (_HIGH_BITS - 1)))) << _HIGH_BITS)
