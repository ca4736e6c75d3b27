"""The ring keeps the newest spans exactly, whoever records, and several stages merge onto one time axis."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest

from cascade_runtime.errors import ConfigError
from cascade_runtime.tracing import Span, Trace, Tracer, chrome_trace


def test_spans_come_back_as_recorded() -> None:
    tracer = Tracer("mid", capacity=8)
    tracer.record("extend", 10, 30, request=7, drafted=4, accepted=3)
    tracer.record("idle", 30, 31)
    trace = tracer.snapshot()
    assert trace.stage == "mid"
    assert trace.spans == (Span("extend", 10, 30, 7, {"drafted": 4, "accepted": 3}), Span("idle", 30, 31))
    assert trace.dropped == 0


def test_a_span_is_recorded_even_when_its_block_raises() -> None:
    tracer = Tracer("mid")
    with pytest.raises(KeyError), tracer.span("extend", request=1, rows=2):
        raise KeyError
    (span,) = tracer.snapshot().spans
    assert (span.name, span.request, span.ints) == ("extend", 1, {"rows": 2})
    assert span.start_ns <= span.end_ns


def test_a_full_ring_keeps_the_newest_and_counts_the_rest() -> None:
    tracer = Tracer("mid", capacity=4)
    for k in range(11):
        tracer.record("s", k, k + 1)
    trace = tracer.snapshot()
    assert [span.start_ns for span in trace.spans] == [7, 8, 9, 10]
    assert trace.dropped == 7
    with pytest.raises(ConfigError):
        Tracer("mid", capacity=0)


def test_threads_lose_no_span_of_each_other() -> None:
    tracer = Tracer("mid", capacity=8000)

    def record(thread: int) -> None:
        for k in range(1000):
            tracer.record(f"t{thread}", k, k)

    threads = [threading.Thread(target=record, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = tracer.snapshot().spans
    assert len(spans) == 8000
    for n in range(8):
        assert [span.start_ns for span in spans if span.name == f"t{n}"] == list(range(1000))


def test_stages_of_two_machines_merge_on_the_wall_clock() -> None:
    light = Trace("light", (Span("draft", 2_000, 5_000, 3, {"rows": 2}),), 0, wall_minus_monotonic_ns=1_000_000)
    heavy = Trace("heavy", (Span("verify", 900_000, 904_500),), 6, wall_minus_monotonic_ns=104_000)
    merged = json.loads(json.dumps(chrome_trace([light, heavy])))
    names, spans = merged["traceEvents"][::2], merged["traceEvents"][1::2]
    assert [(event["pid"], event["args"]["name"]) for event in names] == [(0, "light"), (1, "heavy")]
    assert spans == [
        {"name": "draft", "ph": "X", "pid": 0, "tid": 4, "ts": 0.0, "dur": 3.0, "args": {"request": 3, "rows": 2}},
        {"name": "verify", "ph": "X", "pid": 1, "tid": 0, "ts": 2.0, "dur": 4.5, "args": {}},
    ]
    assert merged["otherData"]["dropped"] == {"light": 0, "heavy": 6}
    assert chrome_trace([replace(light, spans=())])["traceEvents"] == names[:1]
