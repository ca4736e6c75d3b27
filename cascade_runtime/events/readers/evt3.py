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

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade_runtime.events.array import Events
from cascade_runtime.events.readers.columns import to_events
from cascade_runtime.events.readers.raw_header import read_raw_header
from cascade_runtime.events.readers.source import Source

_ADDR_Y, _ADDR_X, _VECT_BASE_X, _VECT_12, _VECT_8, _TIME_LOW, _TIME_HIGH = 0, 2, 3, 4, 5, 6, 8
_ADVANCE = np.zeros(16, np.uint8)
_ADVANCE[[_VECT_12, _VECT_8]] = 12, 8
_EVENT_BITS = np.zeros(16, np.uint16)
_EVENT_BITS[[_ADDR_X, _VECT_12, _VECT_8]] = 0x001, 0xFFF, 0x0FF


def read_evt3(source: Source) -> Events:
    """A last odd byte is ignored, as the vendor does. Raises EventFormatError."""
    header = read_raw_header(source)
    words = np.frombuffer(source.data, "<u2", (len(source.data) - header.body) // 2, header.body)
    return to_events(source, decode_evt3(source, words), sensor=header.sensor, guess=header.guess)


def decode_evt3(source: Source, words: NDArray[np.uint16]) -> list[NDArray[Any]]:
    """(N,) uint16 words -> t (int64 us, in file order, may step back), x, y (uint16), p (uint8).

    Words before the first TIME_HIGH are dropped, as the vendor does: they have no time. Raises EventFormatError over
    max_events.
    """
    kind = (words >> np.uint16(12)).astype(np.uint8)
    is_high = kind == _TIME_HIGH
    start = int(np.argmax(is_high)) if bool(is_high.any()) else len(words)
    words, kind = words[start:], kind[start:]
    value = words & np.uint16(0xFFF)
    vector = (kind == _VECT_12) | (kind == _VECT_8)
    emit_at = np.flatnonzero((kind == _ADDR_X) | vector)
    t = (
        _times(kind, value)[_fill_index((kind == _TIME_LOW) | (kind == _TIME_HIGH), emit_at)]
        if len(emit_at)
        else (np.zeros(0, np.int64))
    )
    y = _filled(kind == _ADDR_Y, value & np.uint16(0x7FF), emit_at)
    emitted = value[emit_at]
    x, on = emitted & np.uint16(0x7FF), emitted >> np.uint16(11)
    if not bool(vector.any()):
        source.check_events(len(emit_at))
        return [t, x, y, on.astype(np.uint8)]
    return _expand(source, kind, value, vector, emit_at, [t, x, y, on])


def _expand(
    source: Source,
    kind: NDArray[np.uint8],
    value: NDArray[np.uint16],
    vector: NDArray[np.bool_],
    emit_at: NDArray[np.intp],
    single: list[NDArray[Any]],
) -> list[NDArray[Any]]:
    """Opens the vectors: one event a set bit, at the base's column plus the bit's number, in the order of the words."""
    t, x, y, on = single
    moved = np.cumsum(_ADVANCE[kind], dtype=np.int64)  # past the word's own advance
    base_at = np.flatnonzero(kind == _VECT_BASE_X)
    is_vector = vector[emit_at]
    vector_at = emit_at[is_vector]
    base_x = np.zeros(len(vector_at), np.int64) + moved[vector_at] - _ADVANCE[kind[vector_at]]
    base_on = np.zeros(len(vector_at), np.uint16)
    if len(base_at):
        which = np.cumsum(kind == _VECT_BASE_X)[vector_at]
        known = which > 0
        base = base_at[np.maximum(which - 1, 0)]
        base_x += np.where(known, (value[base] & np.uint16(0x7FF)) - moved[base], 0)
        base_on = np.where(known, value[base] >> np.uint16(11), 0).astype(np.uint16)
    if len(base_x) and int(base_x.max()) > 4095:
        raise source.error("VECT words", f"columns from {int(base_x.max())}, beyond any sensor")
    bits = np.where(is_vector, value[emit_at], np.uint16(1)) & _EVENT_BITS[kind[emit_at]]
    count = np.bitwise_count(bits)
    source.check_events(int(count.sum(dtype=np.int64)))
    x, on = x.copy(), on.astype(np.uint8)
    x[is_vector], on[is_vector] = base_x, base_on
    columns = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little").view(np.bool_)) & 15
    t, x, y, on = (np.repeat(column, count) for column in (t, x, y, on))
    return [t, x + columns.astype(np.uint16), y, on]


def _times(kind: NDArray[np.uint8], value: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Time after each TIME word (us), by the vendor's rules. The first word is a TIME_HIGH."""
    time_at = np.flatnonzero((kind == _TIME_LOW) | (kind == _TIME_HIGH))
    is_high = kind[time_at] == _TIME_HIGH
    values = value[time_at].astype(np.int64)
    high_value = values[is_high]
    old = np.concatenate([high_value[:1], high_value[:-1]])
    wrapped = high_value + (np.cumsum(old >= 2048 + high_value) << 12)
    high = wrapped[np.cumsum(is_high) - 1]
    sets_low = ~is_high
    sets_low[is_high] = high_value != old
    sets_low[0] = True
    low_values = np.where(is_high, 0, values)[sets_low]
    return (high << 12) + low_values[np.cumsum(sets_low) - 1]


def _fill_index(sets: NDArray[np.bool_], at: NDArray[np.intp]) -> NDArray[np.int32]:
    """For each position in `at`, which setting word came last before it."""
    return np.cumsum(sets, dtype=np.int32)[at] - np.int32(1)


def _filled(sets: NDArray[np.bool_], value: NDArray[np.uint16], at: NDArray[np.intp]) -> NDArray[np.uint16]:
    """The last value set before each position in `at`; 0 before any."""
    values = np.concatenate([np.zeros(1, np.uint16), value[sets]])
    return values[_fill_index(sets, at) + 1]
