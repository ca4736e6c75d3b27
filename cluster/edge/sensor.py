"""`Sensor`: a camera's windows as they close, and `arrow_sensor`, which cuts them out of a pipe.

    camera's program --- Arrow IPC stream: batches as of `Events.to_record_batch` --->  windows of the sensor's time

A window has closed when an event of a later one comes: a camera that sees nothing has nothing to ask about. Stretches
without any event give no window. How late a batch is, is told by the batches that were least so: what the sensor's own
times and this machine's clock differ by there counts as the offset between the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import BinaryIO

import pyarrow as pa

from cascade_runtime.edge.cut import MAX_WINDOW_EVENTS
from cascade_runtime.edge.ingest import Window
from cascade_runtime.errors import InputError
from cascade_runtime.events import Events

MAX_BATCH_EVENTS = MAX_WINDOW_EVENTS


@dataclass(eq=False)
class Sensor:
    """windows: the next one blocks until it has closed, and raises `InputError` for events that cannot be meant.
    events_dropped: the oldest of windows beyond what any may hold.
    """

    width: int
    height: int
    windows: Iterator[Window] = field(default_factory=lambda: iter(()))
    events_dropped: int = 0


def arrow_sensor(stream: BinaryIO, window_us: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> Sensor:
    """The windows of a stream. Blocks until its first batch is there: that has the sensor's size. Raises `InputError`.

    Each batch has at most `MAX_BATCH_EVENTS` events, none earlier than those of the batch before.
    """
    parts = _parts(stream)
    first = next(parts, None)
    if first is None:
        raise InputError("stream", "no batch", "an Arrow IPC stream of events")
    sensor = Sensor(first.width, first.height)
    sensor.windows = _windows(sensor, chain([first], parts), window_us, clock_ns)
    return sensor


def _parts(stream: BinaryIO) -> Iterator[Events]:
    try:
        for batch in pa.ipc.open_stream(stream):
            if batch.num_rows > MAX_BATCH_EVENTS:
                raise InputError("batch", f"{batch.num_rows} events", f"at most {MAX_BATCH_EVENTS}")
            batch.validate(full=True)
            yield Events.from_record_batch(batch)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("stream", str(error)[:200], "an Arrow IPC stream of events") from error


def _windows(
    sensor: Sensor, parts: Iterator[Events], window_us: int, clock_ns: Callable[[], int]
) -> Iterator[Window]:  # fmt: skip
    held, number, begin_us, seen_us, offset_ns = list[Events](), 0, 0, -(2**62), 2**62
    for part in parts:
        if (part.width, part.height) != (sensor.width, sensor.height):
            raise InputError("batch", (part.width, part.height), f"one sensor size, {(sensor.width, sensor.height)}")
        if not len(part):
            continue
        first_us, last_us = (part.t_offset_us + int(part.t[at]) for at in (0, -1))
        if first_us < seen_us:
            raise InputError("batch", f"an event at {first_us} us", f"none before {seen_us} us, which were there")
        seen_us, offset_ns = last_us, min(offset_ns, clock_ns() - 1000 * last_us)
        if not held:
            begin_us += (first_us - begin_us) // window_us * window_us if number else first_us
        while last_us >= begin_us + window_us:
            end_us = begin_us + window_us
            held.append(part.window(-(2**62), end_us - part.t_offset_us))
            if any(map(len, held)):
                yield Window(number, begin_us, end_us, Events.concat(held), closed_ns=1000 * end_us + offset_ns)
                number += 1
            part, held = part.window(end_us - part.t_offset_us, 2**62), []
            first_us = part.t_offset_us + int(part.t[0])
            begin_us += (first_us - begin_us) // window_us * window_us
        held.append(part)
        while sum(map(len, held)) - len(held[0]) >= MAX_WINDOW_EVENTS:
            sensor.events_dropped += len(held.pop(0))
    if any(map(len, held)):
        end_us = begin_us + window_us
        yield Window(number, begin_us, end_us, Events.concat(held), closed_ns=1000 * end_us + offset_ns)
