"""`Sensor`: a camera's windows as they close, and `arrow_sensor`, which cuts them out of a pipe.

    camera's program --- Arrow IPC stream: batches as of `Events.to_record_batch` --->  windows of the sensor's time

All batches of a stream share its schema, and with it the sensor's size and one `t_offset_us`: times count from there. A
window has closed when an event of a later one comes: a camera that sees nothing has nothing to ask about, and stretches
without any event give no window. How late a batch is, is told by the batches that were least so: what the sensor's own
times and this machine's clock differed by there, in the last minute, counts as the offset between the two.
"""

from __future__ import annotations

import io
import os
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
_HALF_NS = 30_000_000_000  # clocks drift apart: an offset is forgotten after one of these or two
_NEVER_US = 2**62


@dataclass(eq=False)
class Sensor:
    """windows: the next one blocks until it has closed, and raises `InputError` for events that cannot be meant.
    events_dropped: the oldest of windows beyond what any may hold, until now.
    """

    width: int
    height: int
    windows: Iterator[Window] = field(default_factory=lambda: iter(()))
    events_dropped: int = 0


class Pipe(io.RawIOBase):
    """A descriptor, read to the full size that is asked for. Nothing is buffered and nobody waits for a lock of it: a
    thread that is blocked here does not keep a process from ending.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def readable(self) -> bool:
        """Yes."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """So many bytes, fewer at the end."""
        parts, left = list[bytes](), size
        while left and (part := os.read(self._descriptor, left if 0 < left < 1 << 20 else 1 << 20)):
            parts.append(part)
            left -= len(part) if size > 0 else 0
        return b"".join(parts)


def arrow_sensor(stream: BinaryIO | Pipe, window_us: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> Sensor:
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


def _parts(stream: BinaryIO | Pipe) -> Iterator[Events]:
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


class _Offset:
    """This machine's clock minus the sensor's, by the batch that came soonest after its last event."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns, self._since_ns = clock_ns, 0
        self._before: int | None = None
        self._now: int | None = None

    def heard(self, last_us: int) -> None:
        """A batch is there."""
        now_ns = self._clock_ns()
        if self._now is None or now_ns - self._since_ns > _HALF_NS:
            self._before, self._now, self._since_ns = self._now, None, now_ns
        late = now_ns - 1000 * last_us
        self._now = late if self._now is None else min(self._now, late)

    def here_ns(self, sensor_us: int) -> int:
        """A time of the sensor's by the clock here; what is still to come is now."""
        assert self._now is not None
        offset_ns = self._now if self._before is None else min(self._before, self._now)
        return min(self._clock_ns(), 1000 * sensor_us + offset_ns)


class _Held:
    """Events of the window that is open, the newest of them where they are too many."""

    def __init__(self, sensor: Sensor) -> None:
        self._sensor, self._parts, self._count = sensor, list[Events](), 0

    def __len__(self) -> int:
        return self._count

    def add(self, part: Events) -> None:
        """The next ones."""
        if len(part):
            self._parts.append(part)
            self._count += len(part)
        while self._count - len(self._parts[0]) >= MAX_WINDOW_EVENTS:
            oldest = self._parts.pop(0)
            self._count -= len(oldest)
            self._sensor.events_dropped += len(oldest)

    def taken(self) -> Events:
        """All, once."""
        events, self._parts, self._count = Events.concat(self._parts), [], 0
        return events


def _windows(
    sensor: Sensor, parts: Iterator[Events], window_us: int, clock_ns: Callable[[], int]
) -> Iterator[Window]:  # fmt: skip
    held, offset, number, begin_us, seen_us = _Held(sensor), _Offset(clock_ns), 0, 0, -_NEVER_US

    def closed() -> Window:
        end_us = begin_us + window_us
        return Window(number, begin_us, end_us, held.taken(), closed_ns=offset.here_ns(end_us))

    for part in parts:
        if (part.width, part.height) != (sensor.width, sensor.height):
            raise InputError("batch", (part.width, part.height), f"one sensor size, {(sensor.width, sensor.height)}")
        if not len(part):
            continue
        first_us, last_us = (part.t_offset_us + int(part.t[at]) for at in (0, -1))
        if first_us < seen_us:
            raise InputError("batch", f"an event at {first_us} us", f"none before {seen_us} us, which were there")
        offset.heard(last_us)
        if seen_us == -_NEVER_US:
            begin_us = first_us
        seen_us = last_us
        while last_us >= begin_us + window_us:
            edge_us = begin_us + window_us - part.t_offset_us
            head, part = part.window(-_NEVER_US, edge_us), part.window(edge_us, _NEVER_US)
            if len(head) or len(held):
                held.add(head)
                yield closed()
                number += 1
            first_us = part.t_offset_us + int(part.t[0])
            begin_us += max(1, (first_us - begin_us) // window_us) * window_us
        held.add(part)
    if len(held):
        yield closed()
