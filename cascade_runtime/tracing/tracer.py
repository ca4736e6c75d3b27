"""`Tracer`: what one stage did when. Rings of records, cheap enough to stay on.

    tracer.record(start_ns, end_ns, shares, tokens)      a pass: one record, whoever and however many were in it
    with tracer.span("encode", request=7): ...           the same for what is done for one request
    tracer.sent("heavy", request, tokens, start_ns)      one end of a message; the other end has `took` it
    tracer.noted("decision", {"min_drafts": 4, ...})     something that was decided
    tracer.of(request, since_ns)                         what was done for one request: Answer.timings come from here
    tracer.snapshot() -> Trace                           everything held: the trace comes from here

A record is one tuple in a preallocated list (no lock; `python -m benchmarks.channels` times it); when a ring is full
its oldest records are overwritten and counted. Clocks are `time.monotonic_ns`, the same for all processes of a machine;
snapshots also carry the wall clock, and stages on other machines are placed by that (as good as NTP: do not read
causality across machines from it).
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

from cascade_runtime.errors import ConfigError

NO_REQUEST = -1
MAX_MOMENTS = 1024  # of one request, as `Tracer.of` tells them
_LOOKS = 9  # at both clocks, for the offset between them
Record = TypeVar("Record")
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
    """The newest `capacity` spans and notes of one stage, and four times as many messages. Any thread may record spans
    and notes, messages are recorded by the one thread that owns the links; nothing ever waits. A pass over 16 rows
    takes 1.8 kB.
    """

    def __init__(self, stage: str, capacity: int = 8192) -> None:
        if capacity < 1:
            raise ConfigError("tracer.capacity", capacity, "at least 1 record")
        self.stage = stage
        self._spans: _Ring[Span] = _Ring(capacity)
        self._messages: _Ring[Message] = _Ring(4 * capacity)
        self._notes: _Ring[Note] = _Ring(capacity)
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._running: dict[object, int] = {}  # since when, of spans that have not ended

    def record(self, start_ns: int, end_ns: int, shares: tuple[Share, ...], tokens: int = 0) -> None:
        """Keep a finished span; times from `time.monotonic_ns`."""
        self._spans.add(Span(start_ns, end_ns, shares, tokens))

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
        self._message(self.stage, receiver, request, tokens, start_ns)

    def took(self, sender: str, request: int, tokens: int, start_ns: int) -> None:
        """A message was taken in, which was there at start_ns. One that is refused counts as well."""
        self._message(sender, self.stage, request, tokens, start_ns)

    def _message(self, sender: str, receiver: str, request: int, tokens: int, start_ns: int) -> None:
        number = self._numbers[sender, receiver]
        self._numbers[sender, receiver] += 1
        self._messages.add(Message(sender, receiver, number, request, tokens, start_ns, time.monotonic_ns()))

    def noted(self, name: str, facts: Mapping[str, Any]) -> None:
        """Keep what was decided just now."""
        self._notes.add(Note(name, time.monotonic_ns(), dict(facts)))

    def of(self, request: int, since_ns: int = 0) -> Moments:
        """What was done for a request, oldest first: (what, start, end). The newest `MAX_MOMENTS` of it, and nothing
        that lies behind a span that had ended before since_ns.
        """
        moments: list[tuple[str, int, int]] = []
        for span in self._spans.newest_first():
            if span.end_ns < since_ns or len(moments) == MAX_MOMENTS:
                break
            moments += [(share.name, span.start_ns, span.end_ns) for share in span.shares if share.request == request]
        return tuple(reversed(moments))

    def snapshot(self) -> Trace:
        """What is held now, in the order it was recorded. The rings go on."""
        spans, messages, notes = self._spans.held(), self._messages.held(), self._notes.held()
        dropped = self._spans.dropped + self._messages.dropped + self._notes.dropped
        return Trace(self.stage, spans, messages, notes, dropped, _wall_minus_monotonic_ns())


class _Ring(Generic[Record]):
    """The newest `capacity` records, each with its number."""

    def __init__(self, capacity: int) -> None:
        self._slots: list[tuple[int, Record] | None] = [None] * capacity
        self._next = itertools.count().__next__  # atomic under the GIL
        self._last = -1

    def add(self, record: Record) -> None:
        number = self._next()
        self._slots[number % len(self._slots)] = (number, record)
        self._last = max(self._last, number)

    def newest_first(self) -> Iterator[Record]:
        """Those held, while others may be added: a record that was overwritten meanwhile is left out."""
        last, capacity = self._last, len(self._slots)
        for number in range(last, max(-1, last - capacity), -1):
            entry = self._slots[number % capacity]
            if entry is not None and entry[0] == number:
                yield entry[1]

    def held(self) -> tuple[Record, ...]:
        """Those held, in the order they were added."""
        return tuple(reversed(list(self.newest_first())))

    @property
    def dropped(self) -> int:
        """How many were overwritten."""
        return max(0, self._last + 1 - len(self._slots))


def _wall_minus_monotonic_ns() -> int:
    """The offset between the two clocks, from the look at both that was least disturbed."""
    looks: list[tuple[int, int]] = []
    for _ in range(_LOOKS):
        before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        looks.append((after - before, wall - (before + after) // 2))
    return min(looks)[1]
