"""`arrows`: the two records of each message between stages, sender's and receiver's, brought together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cascade_runtime.tracing.tracer import Message, Trace


class Arrow(NamedTuple):
    """A message that was sent and taken. Times in ns of the wall clock: sending began, the receiver had it."""

    sent: Message
    taken: Message
    start_ns: int
    end_ns: int

    @property
    def name(self) -> str:
        """Which message: the same for nobody else in a trace."""
        return f"{self.sent.sender}>{self.sent.receiver} #{self.sent.number}"


def arrows(traces: Iterable[Trace]) -> list[Arrow]:
    """Every message of which both ends are in the traces, by the time it was sent."""
    traces = list(traces)
    sent = {
        message[:3]: (message, trace.wall_minus_monotonic_ns)
        for trace in traces
        for message in trace.messages
        if message.sender == trace.stage
    }
    found: list[Arrow] = []
    for trace in traces:
        for taken in trace.messages:
            if taken.receiver == trace.stage and taken[:3] in sent:
                message, shift_ns = sent[taken[:3]]
                end_ns = taken.start_ns + trace.wall_minus_monotonic_ns
                found.append(Arrow(message, taken, message.start_ns + shift_ns, end_ns))
    return sorted(found, key=lambda arrow: arrow.start_ns)
