"""Rings keep the newest records exactly, whoever records; and what several stages recorded is told on one time axis."""

from __future__ import annotations

import json
import threading
import time
import tracemalloc

import pytest
from emulated import emulated_table

from actors.adapter import AdapterVerifierStage
from actors.encoder import EventEncoderStage
from cascade_runtime.config import recipe_from_dict
from cascade_runtime.errors import ConfigError
from cascade_runtime.tracing import Message, Note, Share, Span, Trace, Tracer
from cascade_runtime.tracing.arrows import arrows
from cascade_runtime.tracing.chrome import chrome_trace
from cascade_runtime.tracing.occupancy import occupancy, side_by_side


def trace(stage: str, *spans: Span, messages: tuple[Message, ...] = (), notes: tuple[Note, ...] = (), shift: int = 0):
    return Trace(stage, spans, messages, notes, dropped=0, wall_minus_monotonic_ns=shift)


def busy(start: int, end: int, *requests: int, name: str = "verify") -> Span:
    return Span(start, end, tuple(Share(request, name) for request in requests))


def test_a_pass_is_one_record_with_a_share_for_each_request_in_it() -> None:
    tracer = Tracer("mid", capacity=8)
    tracer.record(10, 30, (Share(7, "verify", 4, 3), Share(8, "verify", 2, 0)), tokens=8)
    tracer.record(30, 31, (Share(7, "verify"), Share(9, "prefill")), tokens=40)
    first, second = tracer.snapshot().spans
    assert (first.name, first.requests, first.drafts, first.accepted, first.tokens) == ("verify", (7, 8), 6, 3, 8)
    assert (second.name, second.requests, second.drafts) == ("prefill+verify", (7, 9), 0)
    assert tracer.snapshot().dropped == 0


def test_what_was_done_for_a_request_is_told_oldest_first_and_not_from_before_its_time() -> None:
    tracer = Tracer("mid")
    tracer.record(0, 5, (Share(7, "verify"),))  # another request of the same number, long ago
    tracer.record(10, 30, (Share(7, "prefill"), Share(8, "verify")))
    tracer.record(30, 40, (Share(8, "verify"),))
    tracer.record(40, 50, (Share(7, "verify"),))
    assert tracer.of(7, since_ns=8) == (("prefill", 10, 30), ("verify", 40, 50))
    assert tracer.of(8) == (("verify", 10, 30), ("verify", 30, 40))
    assert tracer.of(9) == ()


def test_a_span_is_recorded_even_when_its_block_raises() -> None:
    tracer = Tracer("adapter")
    with pytest.raises(KeyError), tracer.span("dense", request=1):
        raise KeyError
    (span,) = tracer.snapshot().spans
    assert (span.name, span.requests) == ("dense", (1,))
    assert span.start_ns <= span.end_ns


def test_a_full_ring_keeps_the_newest_and_counts_the_rest() -> None:
    tracer = Tracer("mid", capacity=4)
    for k in range(11):
        tracer.record(k, k + 1, (Share(k, "verify"),))
    assert [span.start_ns for span in tracer.snapshot().spans] == [7, 8, 9, 10]
    assert tracer.snapshot().dropped == 7
    assert (tracer.of(6), tracer.of(7)) == ((), (("verify", 7, 8),))
    with pytest.raises(ConfigError):
        Tracer("mid", capacity=0)


def test_shares_are_overwritten_one_by_one_also_where_the_ring_ends_within_a_pass() -> None:
    tracer = Tracer("mid", capacity=5)
    for k in range(4):
        tracer.record(k, k + 1, (Share(1, "verify", k, 1), Share(2, "draft", k, 2)), tokens=k)
    assert tracer.snapshot().spans == (
        Span(1, 2, (Share(2, "draft", 1, 2),), 1),
        Span(2, 3, (Share(1, "verify", 2, 1), Share(2, "draft", 2, 2)), 2),
        Span(3, 4, (Share(1, "verify", 3, 1), Share(2, "draft", 3, 2)), 3),
    )
    assert tracer.snapshot().dropped == 3
    assert tracer.of(2) == (("draft", 1, 2), ("draft", 2, 3), ("draft", 3, 4))


def test_what_a_tracer_holds_takes_no_more_memory_than_it_took_at_first() -> None:
    tracer = Tracer("mid", capacity=4096)
    shares = tuple(Share(1000 + row, "verify", 4, 3) for row in range(16))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for k in range(2000):
            tracer.record(10**12 + k, 10**12 + k + 1, shares, tokens=80)
            tracer.sent("heavy", 1000, 4, 10**12 + k)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 10_000


def test_threads_lose_no_span_of_each_other() -> None:
    tracer = Tracer("mid", capacity=8000)

    def record(thread: int) -> None:
        for k in range(1000):
            tracer.record(k, k, (Share(thread, "verify"),))

    threads = [threading.Thread(target=record, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = tracer.snapshot().spans
    assert len(spans) == 8000
    for n in range(8):
        assert [span.start_ns for span in spans if span.requests == (n,)] == list(range(1000))


def test_messages_are_counted_per_neighbour_and_direction() -> None:
    tracer = Tracer("mid")
    tracer.sent("heavy", 7, 4, 100)
    tracer.took("light", 7, 3, 200)
    tracer.sent("light", 7, 2, 300)
    tracer.sent("heavy", 8, 5, 400)
    held = tracer.snapshot().messages
    assert [message[:5] for message in held] == [
        ("mid", "heavy", 0, 7, 4),
        ("light", "mid", 0, 7, 3),
        ("mid", "light", 0, 7, 2),
        ("mid", "heavy", 1, 8, 5),
    ]
    assert [message.start_ns for message in held] == [100, 200, 300, 400]
    assert all(message.start_ns <= message.end_ns for message in held)


def test_a_trace_is_cut_on_the_wall_clock() -> None:
    early, late = busy(10, 20, 1), busy(50, 60, 2)
    notes = (Note("decision", 10, {}), Note("decision", 55, {"min_drafts": 3}))
    messages = (Message("mid", "heavy", 0, 1, 4, 20, 21), Message("mid", "heavy", 1, 2, 4, 60, 61))
    cut = trace("mid", early, late, messages=messages, notes=notes, shift=1000).since(1050)
    assert (cut.spans, cut.messages, cut.notes) == ((late,), messages[1:], notes[1:])


def sent_and_taken() -> list[Trace]:
    """Two machines: mid's clock reads 0 when heavy's reads 900. Message 1 got lost on its way into the trace."""
    sent = (Message("mid", "heavy", 0, 7, 4, 5_000, 5_500), Message("mid", "heavy", 1, 7, 4, 9_000, 9_500))
    taken = (Message("mid", "heavy", 0, 7, 4, 7_900, 8_000), Message("mid", "heavy", 2, 7, 4, 9_900, 9_999))
    mid = trace("mid", Span(2_000, 5_000, (Share(7, "verify", 3, 2),), 4), messages=sent, shift=1_000_000)
    notes = (Note("decision", 5_900, {"min_drafts": 4, "reason": "as configured"}),)
    heavy = trace("heavy", busy(8_900, 12_900, 7, 8), messages=taken, notes=notes, shift=999_100)
    return [mid, heavy]


def test_an_arrow_joins_both_ends_of_the_same_message() -> None:
    (arrow,) = arrows(sent_and_taken())
    assert (arrow.name, arrow.sent.number, arrow.taken.number) == ("mid>heavy #0", 0, 0)
    assert (arrow.start_ns, arrow.end_ns) == (1_005_000, 1_007_000)


def test_stages_of_two_machines_are_one_chrome_trace_with_a_process_each() -> None:
    told = json.loads(json.dumps(chrome_trace(sent_and_taken())))
    events = told["traceEvents"]

    def some(phase: str, name: str | None = None) -> list[dict]:
        return [event for event in events if event["ph"] == phase and name in (None, event["name"])]

    assert [(e["pid"], e["args"]["name"]) for e in some("M", "process_name")] == [(0, "mid"), (1, "heavy")]
    passes = [(e["pid"], e["tid"], e["ts"], e["dur"]) for e in some("X", "verify")]
    assert passes == [(0, 0, 0.0, 3.0), (1, 0, 6.0, 4.0)]
    assert some("X", "verify")[0]["args"] == {
        "rows": 1,
        "tokens": 4,
        "drafts": 3,
        "accepted": 2,
        "requests": [{"request": 7, "name": "verify", "drafts": 3, "accepted": 2}],
    }
    (start,), (end,) = some("s"), some("f")
    assert (start["id"], start["name"], start["pid"], start["ts"]) == (end["id"], end["name"], 0, 3.0)
    assert (end["pid"], end["ts"], end["bp"]) == (1, 5.0, "e")
    for flow, way in ((start, "to heavy"), (end, "from mid")):  # each lies in a slice, or no viewer would draw it
        slices = [e for e in some("X", way) if e["pid"] == flow["pid"] and e["tid"] == flow["tid"]]
        assert any(e["ts"] <= flow["ts"] <= e["ts"] + e["dur"] for e in slices)
    assert [(e["pid"], e["ts"], e["args"]["min_drafts"]) for e in some("i")] == [(1, 3.0, 4)]
    assert told["otherData"]["dropped"] == {"mid": 0, "heavy": 0}


def test_what_overlaps_within_a_stage_lies_in_rows_of_its_own() -> None:
    one, two, three, four = busy(0, 10, 1), busy(5, 8, 2), busy(8, 20, 3), busy(10, 12, 4)
    assert side_by_side([four, three, two, one]) == [[one, four], [two, three]]
    events = chrome_trace([trace("adapter", one, two, three, four)])["traceEvents"]
    assert [event["tid"] for event in events if event["ph"] == "X"] == [0, 0, 1, 1]


def test_latency_hidden_is_what_was_computed_by_hand() -> None:
    light = trace("light", busy(0, 4_000_000_000, 1))
    heavy = trace("heavy", busy(1_000_000_000, 7_000_000_000, 1), busy(8_000_000_000, 10_000_000_000, 1))
    adapter = trace("adapter", busy(0, 1_000_000_000, 1), busy(500_000_000, 2_000_000_000, 2))  # overlap counts once
    figures = occupancy([light, heavy, adapter])
    assert figures.busy_s == {"light": 4.0, "heavy": 8.0, "adapter": 2.0}
    assert figures.wall_s == 10.0
    assert figures.busy_share == {"light": 0.4, "heavy": 0.8, "adapter": 0.2}
    assert figures.latency_hidden == pytest.approx(1 - (10 - 8) / (14 - 8))
    assert occupancy([light]).latency_hidden is None
    assert occupancy([trace("light", busy(0, 5, 1)), trace("heavy", busy(5, 9, 1))]).latency_hidden == pytest.approx(0)
    assert occupancy([]).wall_s == 0.0


def test_how_long_the_oldest_span_has_been_going_on_is_known_and_a_stage_says_so() -> None:
    recipe = recipe_from_dict(emulated_table([], {"agreement": []}))
    for stage in (EventEncoderStage(recipe), AdapterVerifierStage(recipe)):
        assert stage.pulse().busy_s == 0
        with stage.tracer.span("dense", 1):
            time.sleep(0.05)
            with stage.tracer.span("align", 2):
                assert stage.pulse().busy_s >= 0.05
            assert stage.pulse().busy_s >= 0.05
        assert stage.pulse().busy_s == 0
