"""`Ingest`: windows of the sensor that wait to be packed. Bounded at any event rate; what is left out is counted.

    keep    when no more may wait
    newest  the oldest is dropped
    join    the two oldest become one, within `max_events` and `MAX_JOINED_US`; else the oldest is dropped
    all     the source has to wait: for recordings only

A window of more than `max_events` keeps its newest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cascade_runtime.errors import ConfigError
from cascade_runtime.events import Events
from cascade_runtime.proto import edge_pb2

KEEPS = ("newest", "join", "all")
MAX_WAITING = 4096
MAX_JOINED_US = 1_000_000


@dataclass(frozen=True, eq=False)
class Window:
    """begin_us <= t < end_us of the sensor's own time. closed_ns: when it was end_us, by this machine's clock."""

    number: int
    begin_us: int
    end_us: int
    events: Events
    closed_ns: int = 0


def windows_of(events: Events, window_us: int) -> Iterator[Window]:
    """A recording as consecutive windows, numbered from 0; quiet stretches give empty ones."""
    start_us = events.t_offset_us + (int(events.t[0]) if len(events) else 0)
    for number, part in enumerate(events.windows_by_time(window_us)):
        begin_us = start_us + number * window_us
        yield Window(number, begin_us, begin_us + window_us, part)


class Ingest:
    """A bounded queue of windows, oldest first, and the counts of all that came and of what was left out."""

    def __init__(self, keep: str, capacity: int, max_events: int) -> None:
        if keep not in KEEPS:
            raise ConfigError("keep", keep, ", ".join(KEEPS))
        if not 1 <= capacity <= MAX_WAITING:
            raise ConfigError("waiting", capacity, f"from 1 to {MAX_WAITING} windows")
        self.keep, self.capacity, self.max_events = keep, capacity, max_events
        self.counts = edge_pb2.Ingest()
        self._waiting: deque[Window] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(self, window: Window) -> bool:
        """A window has closed. False, and nothing is counted: it does not fit and nothing may be left out."""
        if not len(window.events):
            self.counts.windows += 1
            self.counts.empty += 1
            return True
        if len(self._waiting) >= self.capacity and not self._make_room():
            return False
        self.counts.windows += 1
        self.counts.events += len(window.events)
        over = len(window.events) - self.max_events
        if over > 0:
            self.counts.events_dropped += over
            window = replace(window, events=window.events.slice(over, len(window.events)))
        self._waiting.append(window)
        return True

    def next(self) -> Window | None:
        """The oldest window, which waits no more."""
        return self._waiting.popleft() if self._waiting else None

    def _make_room(self) -> bool:
        if self.keep == "all":
            return False
        oldest = self._waiting.popleft()
        if self.keep == "join" and self._waiting and self._fits(oldest, self._waiting[0]):
            after = self._waiting[0]
            events = Events.concat([oldest.events, after.events])
            self._waiting[0] = replace(after, begin_us=oldest.begin_us, events=events)
            self.counts.joined += 1
        else:
            self.counts.dropped += 1
            self.counts.events_dropped += len(oldest.events)
        return True

    def _fits(self, one: Window, other: Window) -> bool:
        span_us = other.end_us - one.begin_us
        return span_us <= MAX_JOINED_US and len(one.events) + len(other.events) <= self.max_events
