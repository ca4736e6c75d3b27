"""What each stage did when: a ring buffer of spans per stage, merged into one Chrome trace.

    tracer = Tracer("mid", capacity=65536)
    with tracer.span("extend", request=7): ...
    tracer.record("extend", start_ns, end_ns, request=7, drafted=4, accepted=3)
    json.dump(chrome_trace([tracer.snapshot(), other.snapshot()]), file)     # chrome://tracing, ui.perfetto.dev

A record is one tuple written into a preallocated list (about a microsecond, no lock: benchmarks/channels.py measures
it), so it may stay on; when the ring is full the oldest spans are overwritten and counted. Clocks are
`time.monotonic_ns`, the same for all processes of a machine; snapshots also carry the wall clock,
and stages on other machines are placed by that (as good as NTP: do not read causality across machines from it).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field

from cascade_runtime.errors import ConfigError

NO_REQUEST = -1


@dataclass(frozen=True)
class Span:
    """One thing that was done. Times in ns of `time.monotonic_ns` of the machine; `ints` are its figures."""

    name: str
    start_ns: int
    end_ns: int
    request: int = NO_REQUEST
    ints: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Trace:
    """What a tracer held when asked. `dropped` spans were overwritten.

    wall_minus_monotonic_ns places the spans beside other machines'.
    """

    stage: str
    spans: tuple[Span, ...]
    dropped: int
    wall_minus_monotonic_ns: int


class Tracer:
    """The newest `capacity` spans of one stage. Any thread may record; nothing ever waits."""

    def __init__(self, stage: str, capacity: int = 65536) -> None:
        if capacity < 1:
            raise ConfigError("tracer.capacity", capacity, "at least 1 span")
        self.stage = stage
        self._capacity = capacity
        self._ring: list[tuple[int, str, int, int, int, dict[str, int]] | None] = [None] * capacity
        self._next = itertools.count().__next__  # atomic under the GIL

    def record(self, name: str, start_ns: int, end_ns: int, request: int = NO_REQUEST, **ints: int) -> None:
        """Keep a finished span; times from `time.monotonic_ns`."""
        number = self._next()
        self._ring[number % self._capacity] = (number, name, start_ns, end_ns, request, ints)

    @contextmanager
    def span(self, name: str, request: int = NO_REQUEST, **ints: int) -> Generator[None]:
        """Record the block, also when it raises."""
        start_ns = time.monotonic_ns()
        try:
            yield
        finally:
            self.record(name, start_ns, time.monotonic_ns(), request, **ints)

    def snapshot(self) -> Trace:
        """The spans held now, in the order they were recorded. The ring goes on."""
        held = sorted((entry for entry in list(self._ring) if entry is not None), key=lambda entry: entry[0])
        spans = tuple(Span(*entry[1:]) for entry in held)
        dropped = held[-1][0] + 1 - len(held) if held else 0
        return Trace(self.stage, spans, dropped, time.time_ns() - time.monotonic_ns())


def chrome_trace(traces: Iterable[Trace]) -> dict[str, object]:
    """Several stages as one Chrome trace (JSON object format): a process row per stage, a thread row per request.

    Times are microseconds since the earliest span. Spans of no request lie in row 0, request r in row r + 1.
    """
    traces = list(traces)
    origin_ns = min(
        (span.start_ns + trace.wall_minus_monotonic_ns for trace in traces for span in trace.spans), default=0
    )
    events: list[dict[str, object]] = []
    for pid, trace in enumerate(traces):
        shift_ns = trace.wall_minus_monotonic_ns - origin_ns
        events.append({"name": "process_name", "ph": "M", "pid": pid, "tid": 0, "args": {"name": trace.stage}})
        for span in trace.spans:
            args = {"request": span.request, **span.ints} if span.request != NO_REQUEST else dict(span.ints)
            events.append(
                {
                    "name": span.name,
                    "ph": "X",
                    "pid": pid,
                    "tid": span.request + 1,
                    "ts": (span.start_ns + shift_ns) / 1000,
                    "dur": (span.end_ns - span.start_ns) / 1000,
                    "args": args,
                }
            )
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"dropped": {t.stage: t.dropped for t in traces}},
    }
