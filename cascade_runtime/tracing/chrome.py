"""`chrome_trace`: all stages as one Chrome trace, to be opened in ui.perfetto.dev or chrome://tracing.

A process per stage. Its threads: "passes" (several where a stage does several things at once), and "messages", with a
slice per message sent or taken. Flow events lead from the sender's slice to the receiver's, so that a click on a
message shows where it went; instant events are what a stage's policy decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cascade_runtime.tracing.arrows import Arrow, arrows
from cascade_runtime.tracing.occupancy import side_by_side
from cascade_runtime.tracing.tracer import Message, Span, Trace

_MESSAGES = 1000  # the thread of the messages


def chrome_trace(traces: Iterable[Trace]) -> dict[str, Any]:
    """The JSON object format: times are microseconds since the earliest span."""
    traces = list(traces)
    origin_ns = min(
        (span.start_ns + trace.wall_minus_monotonic_ns for trace in traces for span in trace.spans), default=0
    )
    events = [event for pid, trace in enumerate(traces) for event in _stage_events(pid, trace, origin_ns)]
    pids = {trace.stage: pid for pid, trace in enumerate(traces)}
    for number, arrow in enumerate(arrows(traces)):
        events += _flow_events(number, arrow, pids, origin_ns)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"dropped": {trace.stage: trace.dropped for trace in traces}},
    }


def _stage_events(pid: int, trace: Trace, origin_ns: int) -> Iterator[dict[str, Any]]:
    shift_ns = trace.wall_minus_monotonic_ns - origin_ns
    rows = side_by_side(trace.spans)
    yield _name(pid, 0, "process_name", trace.stage)
    yield {"name": "process_sort_index", "ph": "M", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
    for tid, row in enumerate(rows):
        yield _name(pid, tid, "thread_name", "passes" if not tid else f"passes, too ({tid})")
        for span in row:
            times = {"ts": (span.start_ns + shift_ns) / 1000, "dur": (span.end_ns - span.start_ns) / 1000}
            yield {"name": span.name, "ph": "X", "pid": pid, "tid": tid, **times, "args": _facts(span)}
    if trace.messages:
        yield _name(pid, _MESSAGES, "thread_name", "messages")
    for message in trace.messages:
        times = {"ts": (message.start_ns + shift_ns) / 1000, "dur": (message.end_ns - message.start_ns) / 1000}
        facts = {"number": message.number, "request": message.request, "tokens": message.tokens}
        yield {"name": _way(message, trace), "ph": "X", "pid": pid, "tid": _MESSAGES, **times, "args": facts}
    for note in trace.notes:
        at = (note.at_ns + shift_ns) / 1000
        yield {"name": note.name, "ph": "i", "s": "p", "pid": pid, "tid": 0, "ts": at, "args": note.facts}


def _flow_events(number: int, arrow: Arrow, pids: dict[str, int], origin_ns: int) -> list[dict[str, Any]]:
    flow = {"name": arrow.name, "cat": "message", "id": number, "tid": _MESSAGES}
    start = {"ph": "s", "pid": pids[arrow.sent.sender], "ts": (arrow.start_ns - origin_ns) / 1000}
    end = {"ph": "f", "bp": "e", "pid": pids[arrow.sent.receiver], "ts": (arrow.end_ns - origin_ns) / 1000}
    return [flow | start, flow | end]


def _name(pid: int, tid: int, kind: str, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def _way(message: Message, trace: Trace) -> str:
    return f"to {message.receiver}" if message.sender == trace.stage else f"from {message.sender}"


def _facts(span: Span) -> dict[str, Any]:
    return {
        "rows": len(span.shares),
        "tokens": span.tokens,
        "drafts": span.drafts,
        "accepted": span.accepted,
        "requests": [share._asdict() for share in span.shares],
    }
