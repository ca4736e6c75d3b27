"""`Tracer`: what one stage did when. Rings of records, cheap enough to stay on.

    tracer.record(start_ns, end_ns, shares, tokens)      a pass, and what each row had of it
    with tracer.span("encode", request=7): ...           the same for what is done for one request
    tracer.sent("heavy", request, tokens, start_ns)      one end of a message; the other end has `took` it
    tracer.noted("decision", {"min_drafts": 4, ...})     something that was decided
    tracer.of(request, since_ns)                         what was done for one request: Answer.timings come from here
    tracer.snapshot() -> Trace                           everything held: the trace comes from here

A record is a row of integers in a ring whose memory is taken at the start (`python -m benchmarks.channels` times it);
when a ring is full its oldest records are overwritten and counted, shares of a pass one by one. Clocks are
`time.monotonic_ns`, the same for all processes of a machine; snapshots also carry the wall clock, and stages on other
machines are placed by that (as good as NTP: do not read causality across machines from it).
"""

from __future__ import annotations

import itertools
import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from cascade_runtime.errors import ConfigError

NO_REQUEST = -1
MAX_MOMENTS = 1024  # of one request, as `Tracer.of` tells them
_LOOKS = 9  # at both clocks, for the offset between them
Moments = tuple[tuple[str, int, int], ...]  # what was done for one request, and its start and end


class Share(NamedTuple):
    """One request's share of a pass: what was done for it, the drafts looked at, how many of them were accepted."""

    request: int
    name: str
    drafts: int = 0
    accepted: int = 0


class Span(NamedTuple):
    """One thing that was done, for one request or several. Times in ns of `time.monotonic_ns` of the machine; tokens:
    positions fed to the model.
    """

    start_ns: int
    end_ns: int
    shares: tuple[Share, ...]
    tokens: int = 0

    @property
    def name(self) -> str:
        """What was done: "verify", or "prefill+verify" where it was not the same for everybody."""
        return "+".join(sorted({share.name for share in self.shares}))

    @property
    def requests(self) -> tuple[int, ...]:
        """Whose work it was."""
        return tuple(share.request for share in self.shares)

    @property
    def drafts(self) -> int:
        """Drafts looked at, of all requests."""
        return sum(share.drafts for share in self.shares)

    @property
    def accepted(self) -> int:
        """How many of them were accepted."""
        return sum(share.accepted for share in self.shares)


class Message(NamedTuple):
    """One end's record of a message between neighbours; the trace's stage is one of the two.

    number: counts what `sender` sent to `receiver`, from 0. Links keep order and lose nothing, so both ends give a
    message the same number. start_ns: sending began, or the message was there; end_ns: it was sent, or taken in.
    """

    sender: str
    receiver: str
    number: int
    request: int
    tokens: int
    start_ns: int
    end_ns: int


class Note(NamedTuple):
    """Something that was decided at a moment."""

    name: str
    at_ns: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class Trace:
    """What a tracer held when asked. `dropped` records were overwritten.

    wall_minus_monotonic_ns places the records beside other machines'.
    """

    stage: str
    spans: tuple[Span, ...]
    messages: tuple[Message, ...]
    notes: tuple[Note, ...]
    dropped: int
    wall_minus_monotonic_ns: int

    def since(self, wall_ns: int) -> Trace:
        """Only what began at `time.time_ns()` = wall_ns or later."""
        at = wall_ns - self.wall_minus_monotonic_ns
        return replace(
            self,
            spans=tuple(span for span in self.spans if span.start_ns >= at),
            messages=tuple(message for message in self.messages if message.start_ns >= at),
            notes=tuple(note for note in self.notes if note.at_ns >= at),
        )


class Tracer:
    """What one stage did last: `capacity` shares of passes, half as many messages, of notes one for 256. Any
    thread may record. All memory but that of notes is taken at the start: 64 bytes a share, 48 a message.
    """

    def __init__(self, stage: str, capacity: int = 65_536) -> None:
        if capacity < 1:
            raise ConfigError("tracer.capacity", capacity, "at least 1 record")
        self.stage = stage
        self._shares = _Ring(capacity, width=8)
        self._messages = _Ring(max(1, capacity // 2), width=6)
        self._notes: deque[Note] = deque(maxlen=max(1, capacity // 256))
        self._noted = self._spans = 0
        self._names: dict[Any, int] = {}  # of what is done, and of ways that messages go
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._running: dict[object, int] = {}  # since when, of spans that have not ended
        self._lock = threading.Lock()

    def record(self, start_ns: int, end_ns: int, shares: tuple[Share, ...], tokens: int = 0) -> None:
        """Keep a finished span, of at least one share; times from `time.monotonic_ns`."""
        with self._lock:
            span, cells = self._spans, list[int]()
            for request, name, drafts, accepted in shares:
                cells += (request, self._number(name), drafts, accepted, start_ns, end_ns, tokens, span)
            self._spans += 1
            self._shares.add(cells)

    @contextmanager
    def span(self, name: str, request: int = NO_REQUEST) -> Generator[None]:
        """Record the block, also when it raises."""
        start_ns, this = time.monotonic_ns(), object()
        self._running[this] = start_ns
        try:
            yield
        finally:
            del self._running[this]
            self.record(start_ns, time.monotonic_ns(), (Share(request, name),))

    @property
    def running_s(self) -> float:
        """For how long the oldest `span` that has not ended has been going on; 0 where none is."""
        since = min(tuple(self._running.values()), default=0)
        return (time.monotonic_ns() - since) * 1e-9 if since else 0.0

    def sent(self, receiver: str, request: int, tokens: int, start_ns: int) -> None:
        """A message has left; sending it began at start_ns."""
        self._message((self.stage, receiver), request, tokens, start_ns)

    def took(self, sender: str, request: int, tokens: int, start_ns: int) -> None:
        """A message was taken in, which was there at start_ns. One that is refused counts as well."""
        self._message((sender, self.stage), request, tokens, start_ns)

    def _message(self, way: tuple[str, str], request: int, tokens: int, start_ns: int) -> None:
        with self._lock:
            number = self._numbers[way]
            self._numbers[way] += 1
            self._messages.add([self._number(way), number, request, tokens, start_ns, time.monotonic_ns()])

    def noted(self, name: str, facts: Mapping[str, Any]) -> None:
        """Keep what was decided just now."""
        with self._lock:
            self._noted += 1
            self._notes.append(Note(name, time.monotonic_ns(), dict(facts)))

    def of(self, request: int, since_ns: int = 0) -> Moments:
        """What was done for a request, oldest first: (what, start, end). The newest `MAX_MOMENTS` of it, and nothing
        that had ended before since_ns.
        """
        with self._lock:
            held = self._shares.with_first(request)
            names = list(self._names)
        times = held[held[:, 5] >= since_ns][-MAX_MOMENTS:, [1, 4, 5]].tolist()
        return tuple((names[name], start_ns, end_ns) for name, start_ns, end_ns in times)

    def snapshot(self) -> Trace:
        """What is held now, in the order it was recorded. The rings go on."""
        with self._lock:
            shares, messages, notes = self._shares.held(), self._messages.held(), tuple(self._notes)
            dropped = self._shares.dropped + self._messages.dropped + self._noted - len(notes)
            names = list(self._names)
        spans: list[Span] = []
        for _, rows in itertools.groupby(shares.tolist(), key=lambda row: row[7]):
            of_span = list(rows)
            start_ns, end_ns, tokens = of_span[0][4:7]
            said = tuple(Share(row[0], names[row[1]], row[2], row[3]) for row in of_span)
            spans.append(Span(start_ns, end_ns, said, tokens))
        told = tuple(Message(*names[way], *rest) for way, *rest in messages.tolist())
        return Trace(self.stage, tuple(spans), told, notes, dropped, _wall_minus_monotonic_ns())

    def _number(self, name: Any) -> int:
        return self._names.setdefault(name, len(self._names))


class _Ring:
    """The newest `capacity` rows of `width` integers. All memory is taken, and touched, at once."""

    def __init__(self, capacity: int, width: int) -> None:
        self._cells = memoryview(array("q", bytes(8 * capacity * width)))
        self._rows = np.frombuffer(self._cells, dtype=np.int64).reshape(capacity, width)
        self._added = 0

    def add(self, cells: Sequence[int]) -> None:
        """Rows, one after the other; of more than there is room for, the last."""
        rows, at = array("q", cells[-len(self._cells) :]), self._added * self._rows.shape[1] % len(self._cells)
        before_end = rows[: len(self._cells) - at]
        self._cells[at : at + len(before_end)] = before_end
        self._cells[: len(rows) - len(before_end)] = rows[len(before_end) :]
        self._added += len(rows) // self._rows.shape[1]

    def held(self) -> np.ndarray:
        """Those held, oldest first."""
        return self._in_order(np.arange(min(self._added, len(self._rows))))

    def with_first(self, value: int) -> np.ndarray:
        """Of those held, oldest first, the ones that begin with this value."""
        return self._in_order(np.flatnonzero(self._rows[: self._added, 0] == value))

    def _in_order(self, at: np.ndarray) -> np.ndarray:
        oldest = self._added % len(self._rows) if self._added > len(self._rows) else 0
        return self._rows[np.concatenate((at[at >= oldest], at[at < oldest]))]

    @property
    def dropped(self) -> int:
        """How many were overwritten."""
        return max(0, self._added - len(self._rows))


def _wall_minus_monotonic_ns() -> int:
    """The offset between the two clocks, from the look at both that was least disturbed."""
    looks: list[tuple[int, int]] = []
    for _ in range(_LOOKS):
        before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        looks.append((after - before, wall - (before + after) // 2))
    return min(looks)[1]
