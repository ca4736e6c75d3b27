"""Prophesee EVT 3.0: little-endian 16-bit words, type in the top four bits, decoded by the vendor's state rules.

    0 ADDR_Y       row                                     6 TIME_LOW    low 12 bits of time
    2 ADDR_X       one event at x, polarity bit 11         8 TIME_HIGH   next 12 bits; on a *change* low becomes 0, and
    3 VECT_BASE_X  x and polarity for the vectors                        time wraps when old >= 2048 + new
    4 VECT_12, 5 VECT_8   a bit per column from the base, which then moves on by 12 or 8; other types are skipped

openeb hal/.../evt3/evt3_decoder.h. A driving recording spans 8.801 ms by these rules; a popular package that keeps
`low` across a change of `high` says 53.9 ms. Each piece of state is forward-filled with a running count of the words
that set it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade_runtime.events.array import Events
from cascade_runtime.events.readers.columns import to_events
from cascade_runtime.events.readers.raw_header import read_raw_header
from cascade_runtime.events.readers.source import Source

_ADDR_Y, _ADDR_X, _VECT_BASE_X, _VECT_12, _VECT_8, _TIME_LOW, _TIME_HIGH = 0, 2, 3, 4, 5, 6, 8
_ADVANCE = np.zeros(16, np.int64)
_ADVANCE[[_VECT_12, _VECT_8]] = 12, 8
_BLOCK_WORDS = 1 << 16
_LARGEST_BASE = 4095 - 12


@dataclass
class _State:
    """What earlier words have set. `high` counts the wraps of the 12-bit counter too."""

    high: int
    low: int = 0
    y: int = 0
    base_x: int = 0
    base_on: int = 0


def read_evt3(source: Source) -> Events:
    """A last odd byte is ignored, as the vendor does. Raises EventFormatError."""
    header = read_raw_header(source)
    words = np.frombuffer(source.data, "<u2", (len(source.data) - header.body) // 2, header.body)
    return to_events(source, decode_evt3(source, words), sensor=header.sensor, guess=header.guess)


def decode_evt3(source: Source, words: NDArray[np.uint16]) -> list[NDArray[Any]]:
    """(N,) uint16 words -> t (int64 us, in file order, may step back), x, y (uint16), p (uint8).

    Words before the first TIME_HIGH are dropped, as the vendor does: they have no time. Raises EventFormatError for
    more than max_events and for vectors beyond any sensor.
    """
    words = words[_first_high(words) :]
    blocks = [words[at : at + _BLOCK_WORDS] for at in range(0, len(words), _BLOCK_WORDS)]
    total = sum(_count_events(block) for block in blocks)
    source.check_events(total)
    columns = [np.empty(total, dtype) for dtype in (np.int64, np.uint16, np.uint16, np.uint8)]
    state, at = _State(high=int(words[0]) & 0xFFF if len(words) else 0), 0
    for number, block in enumerate(blocks):
        decoded = _decode_block(block, state)
        if not 0 <= state.base_x <= _LARGEST_BASE:
            raise source.error(f"block {number} of words", f"vectors reach column {state.base_x}, beyond any sensor")
        for column, part in zip(columns, decoded, strict=True):
            column[at : at + len(part)] = part
        at += len(decoded[0])
    return list(columns)


def _first_high(words: NDArray[np.uint16]) -> int:
    for at in range(0, len(words), _BLOCK_WORDS):
        found = np.flatnonzero(words[at : at + _BLOCK_WORDS] >> np.uint16(12) == _TIME_HIGH)
        if len(found):
            return at + int(found[0])
    return len(words)


def _count_events(words: NDArray[np.uint16]) -> int:
    kind = (words >> np.uint16(12)).astype(np.uint8)
    vectors = words[np.flatnonzero((kind == _VECT_12) | (kind == _VECT_8))]
    return int(np.count_nonzero(kind == _ADDR_X)) + int(np.bitwise_count(_valid_bits(vectors)).sum(dtype=np.int64))


def _valid_bits(vectors: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Of VECT words, a bit for each event."""
    return vectors & np.where(vectors >> np.uint16(12) == _VECT_12, np.uint16(0xFFF), np.uint16(0xFF))


def _decode_block(words: NDArray[np.uint16], state: _State) -> list[NDArray[Any]]:
    """t, x, y, p of a block, and `state` moved past it."""
    kind = (words >> np.uint16(12)).astype(np.uint8)
    value = words & np.uint16(0xFFF)
    vector = (kind == _VECT_12) | (kind == _VECT_8)
    emit_at = np.flatnonzero((kind == _ADDR_X) | vector)
    t = _times(kind, value, emit_at, state)
    y, state.y = _rows(kind == _ADDR_Y, value, emit_at, state.y)
    emitted = value[emit_at]
    x, on = emitted & np.uint16(0x7FF), (emitted >> np.uint16(11)).astype(np.uint8)
    at_vector = np.flatnonzero(vector[emit_at])  # rows of t, x, y, on that stand for a VECT word
    vector_at = emit_at[at_vector]
    x[at_vector], on[at_vector] = _vector_bases(kind, value, vector_at, state)
    if not len(at_vector):
        return [t, x, y, on]
    bits = _valid_bits(words[vector_at])
    count = np.ones(len(emit_at), np.intp)
    count[at_vector] = np.bitwise_count(bits)
    row = np.repeat(np.arange(len(emit_at)), count)
    t, x, y, on = t[row], x[row], y[row], on[row]
    column = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")) & 15
    x[np.flatnonzero(vector[emit_at[row]])] += column.astype(np.uint16)
    return [t, x, y, on]


def _vector_bases(
    kind: NDArray[np.uint8], value: NDArray[np.uint16], vector_at: NDArray[np.intp], state: _State
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """First column and polarity of each VECT word: its base, moved on by the VECT words between."""
    sets = kind == _VECT_BASE_X
    moved = np.cumsum(_ADVANCE.take(kind))
    base_at = np.flatnonzero(sets)
    start = np.concatenate([[state.base_x], (value[base_at] & np.uint16(0x7FF)) - moved[base_at]])
    polarity = np.concatenate([[state.base_on], value[base_at] >> np.uint16(11)]).astype(np.uint8)
    which = np.cumsum(sets)[vector_at]
    first = start[which] + moved[vector_at] - _ADVANCE[kind[vector_at]]
    state.base_x, state.base_on = int(start[-1] + moved[-1]), int(polarity[-1])
    if len(first) and int(first.max()) > _LARGEST_BASE:
        state.base_x = int(first.max())  # refused by the caller
    return first.astype(np.uint16), polarity[which]


def _times(
    kind: NDArray[np.uint8], value: NDArray[np.uint16], at: NDArray[np.intp], state: _State
) -> NDArray[np.int64]:
    """Time (us) at each position in `at`, by the vendor's rules."""
    is_time = (kind == _TIME_LOW) | (kind == _TIME_HIGH)
    time_at = np.flatnonzero(is_time)
    before = (state.high << 12) + state.low
    if not len(time_at):
        return np.full(len(at), before, np.int64)
    is_high = kind[time_at] == _TIME_HIGH
    values = value[time_at].astype(np.int64)
    high_value = values[is_high]
    old = np.concatenate([[state.high & 0xFFF], high_value])[:-1]
    loops = (state.high >> 12) + np.cumsum(old >= 2048 + high_value)
    high = np.concatenate([[state.high], (loops << 12) + high_value])
    sets_low = ~is_high
    sets_low[is_high] = high_value != old
    low = np.concatenate([[state.low], np.where(is_high, 0, values)[sets_low]])
    times = np.concatenate([[before], (high[np.cumsum(is_high)] << 12) + low[np.cumsum(sets_low)]])
    state.high, state.low = int(high[-1]), int(low[-1])
    return times[np.cumsum(is_time)[at]]


def _rows(
    sets: NDArray[np.bool_], value: NDArray[np.uint16], at: NDArray[np.intp], initial: int
) -> tuple[NDArray[np.uint16], int]:
    """The last row (11 bits) set before each position in `at`, `initial` before any; and the last of all."""
    rows = np.concatenate([np.array([initial], np.uint16), value[np.flatnonzero(sets)] & np.uint16(0x7FF)])
    return rows[np.cumsum(sets)[at]], int(rows[-1])
