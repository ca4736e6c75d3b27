"""What a network and a hostile server can do to the client: every case ends in the answer or in a typed error."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from client.http_servers import events_head, response, scripted_server
from toy_family import toy_events

from cascade_runtime.api import Answer
from cascade_runtime.client import CascadeClient
from cascade_runtime.errors import CapacityError, RateLimitError, RemoteError, StageError
from cascade_runtime.transports import http
from cascade_runtime.transports.retries import retry_after_s, wait_before_retry

CASCADE = {
    "request_id": "r1",
    "mode": "strict",
    "target_passes": 1,
    "gate": None,
    "stages": [{"name": "light"}, {"name": "heavy"}],
    "token_ids": [5, 9],
    "pieces": ["a", " car"],
    "spans": [
        {"start": 0, "end": 1, "by": "light", "accepted_by": ["heavy"]},
        {"start": 1, "end": 2, "by": "heavy", "accepted_by": []},
    ],
    "edges": [],
    "rejections": [],
    "timeline": [],
    "notes": [],
}
METRICS = {"time_to_first_token_ms": 2.0, "generation_time_ms": 3.0}
COMPLETION = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a car"}, "finish_reason": "stop"}],
    "metrics": METRICS,
    "cascade": CASCADE,
}
GOOD = response("200 OK", json.dumps(COMPLETION).encode())
PIECE = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
LAST = {"choices": [{"index": 0, "delta": {"content": " car"}, "finish_reason": "stop"}]}


def event(data: dict[str, Any] | str) -> bytes:
    return b"data: " + (data if isinstance(data, str) else json.dumps(data)).encode() + b"\n\n"


STREAM = event(PIECE) + event(LAST | {"metrics": METRICS, "cascade": CASCADE}) + event("[DONE]")


def sends(*answers: bytes | Callable[[socket.socket], None]) -> Callable[[socket.socket, bytes, int], None]:
    """Answers one request after the other, the last one for ever."""

    def handler(connection: socket.socket, request: bytes, number: int) -> None:
        requests.append(request)
        answer = answers[min(number, len(answers) - 1)]
        if callable(answer):
            answer(connection)
        else:
            connection.sendall(answer)

    requests: list[bytes] = []
    handler.requests = requests  # type: ignore[attr-defined]
    return handler


def resets(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def refusal(status: str, code: str, *headers: str) -> bytes:
    error = {"message": "no room", "type": "server_error", "param": None, "code": code, "request_id": "r-server"}
    return response(status, json.dumps({"error": error}).encode(), "application/json", *headers)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascade_runtime.transports.retries._FIRST_S", 0.01)


def ask(address: str, stream: bool = False, **options: Any) -> Answer:
    with CascadeClient(address, timeout=20, **options) as client:
        if stream:
            *_, last = client.stream(toy_events(), "What?")
            assert isinstance(last, Answer)
            return last
        return client.generate(toy_events(), "What?")


def test_an_address_where_nobody_listens_is_tried_again_and_then_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(RemoteError, match=f"127.0.0.1:{port}") as failed:
        ask(f"http://127.0.0.1:{port}")
    assert failed.value.retryable and failed.value.status == 0 and failed.value.request_id


@pytest.mark.parametrize(
    "first",
    [
        refusal("503 Service Unavailable", "overloaded", "Retry-After: 0"),
        refusal("429 Too Many Requests", "rate_limit_exceeded", "Retry-After: 0"),
        refusal("500 Internal Server Error", "stage_failed", "Retry-After: 0"),
        response("502 Bad Gateway", b"<html>", "text/html"),
        response("500 Internal Server Error", b"The actor died unexpectedly", "text/plain"),
        refusal("503 Service Unavailable", "overloaded", "Retry-After: 0")[:-20],
        resets,
        b"",
        response("200 OK", json.dumps(COMPLETION).encode())[:-20],
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_may_be_asked_again_is_with_the_same_key_and_body(first: Any, stream: bool) -> None:
    if stream and first == GOOD[:-20]:
        first = events_head()  # it ends before the first piece
    handler = sends(first, events_head() + STREAM if stream else GOOD)
    with scripted_server(handler) as address:
        assert ask(address, stream).text == "a car"
    one, two = handler.requests  # type: ignore[attr-defined]
    keys = [line for line in one.split(b"\r\n") if line.lower().startswith((b"idempotency-key:", b"x-request-id:"))]
    assert len(keys) == 2 and one == two


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        ("503 Service Unavailable", "overloaded", CapacityError),
        ("429 Too Many Requests", "rate_limit_exceeded", RateLimitError),
        ("500 Internal Server Error", "stage_failed", StageError),
    ],
)
def test_tries_are_counted_and_the_last_error_is_the_server_s(status: str, code: str, kind: type[Exception]) -> None:
    handler = sends(refusal(status, code))
    with scripted_server(handler) as address, pytest.raises(kind, match="no room") as failed:
        ask(address, max_retries=2)
    assert failed.value.request_id == "r-server"  # type: ignore[attr-defined]
    assert len(handler.requests) == (1 if code == "stage_failed" else 3)  # type: ignore[attr-defined]


def test_a_wait_beyond_the_deadline_is_not_waited_for() -> None:
    handler = sends(refusal("503 Service Unavailable", "overloaded", "Retry-After: 3600"))
    with scripted_server(handler) as address, pytest.raises(CapacityError):
        ask(address)
    assert len(handler.requests) == 1  # type: ignore[attr-defined]


def breaks_off(*pieces: dict[str, Any], end: Callable[[socket.socket], None]) -> tuple[Any, threading.Event]:
    """A stream that ends so after these pieces, once they were read."""

    def begins(connection: socket.socket) -> None:
        connection.sendall(events_head() + b"".join(map(event, pieces)))
        taken.wait(10)
        end(connection)

    taken = threading.Event()
    return begins, taken


@pytest.mark.parametrize("end", [resets, lambda connection: None])
def test_a_stream_that_breaks_off_goes_on_where_it_was(end: Any) -> None:
    begins, taken = breaks_off(PIECE, end=end)
    next_one = {"choices": [{"index": 0, "delta": {"content": " car"}}]}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "metrics": METRICS, "cascade": CASCADE}
    handler = sends(begins, begins, events_head() + b"".join(map(event, (PIECE, next_one, last, "[DONE]"))))
    with scripted_server(handler) as address, CascadeClient(address) as client:
        stream = client.stream(toy_events(), "What?")
        assert next(stream) == "a"
        taken.set()
        *pieces, answer = stream
        assert pieces == [" car"] and isinstance(answer, Answer) and answer.text == "a car"
    assert len(handler.requests) == 3 and len(set(handler.requests)) == 1  # type: ignore[attr-defined]


def test_a_stream_that_always_breaks_off_is_an_error_in_the_end() -> None:
    begins, taken = breaks_off(PIECE, end=resets)
    handler = sends(begins)
    with scripted_server(handler) as address, CascadeClient(address) as client:
        stream = client.stream(toy_events(), "What?")
        assert next(stream) == "a"
        taken.set()
        with pytest.raises(RemoteError, match="stream") as failed:
            list(stream)
    assert failed.value.retryable and len(handler.requests) == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("first", ["the", "a car moves"])  # another, and one that goes on where the second ends
def test_nobody_is_told_the_halves_of_two_answers(first: str) -> None:
    begins, taken = breaks_off({"choices": [{"index": 0, "delta": {"content": first}}]}, end=resets)
    handler = sends(begins, events_head() + STREAM)
    with scripted_server(handler) as address, CascadeClient(address) as client:
        stream = client.stream(toy_events(), "What?")
        assert next(stream) == first
        taken.set()
        with pytest.raises(RemoteError, match="another one"):
            list(stream)
    assert len(handler.requests) == 2  # type: ignore[attr-defined]


def test_an_error_within_a_stream_is_the_error_it_is() -> None:
    error = {"error": {"message": "stage 'heavy' failed", "code": "stage_failed", "request_id": "r1"}}
    handler = sends(events_head() + event(PIECE) + event(error) + event("[DONE]"))
    with scripted_server(handler) as address, pytest.raises(StageError, match="heavy") as failed:
        ask(address, stream=True)
    assert failed.value.request_id == "r1"


def changed(**fields: Any) -> bytes:
    return response("200 OK", json.dumps(COMPLETION | {"cascade": CASCADE | fields}).encode())


@pytest.mark.parametrize(
    "answer",
    [
        response("200 OK", b"<html>hello</html>", "text/html"),
        response("200 OK", b"[" * 100_000),
        response("200 OK", b'{"choices": []}'),
        response("200 OK", b"3"),
        response("302 Found", b"", "text/plain", "Location: http://127.0.0.1:1/"),
        response("200 OK", b"\x1f\x8b", "application/json", "Content-Encoding: gzip"),
        response("418 I'm a teapot", b'{"error": "no object"}'),
        changed(token_ids=[5]),
        changed(token_ids=[5, -1]),
        changed(token_ids=[5, 10**400]),
        changed(pieces=["a", 3]),
        changed(stages=[]),
        changed(spans=[{"start": 0, "end": 10**9, "by": "light", "accepted_by": []}]),
        changed(spans=[{"start": 0, "end": 2, "by": "nobody", "accepted_by": []}]),
        changed(spans=[{"start": 1, "end": 3, "by": "light", "accepted_by": []}]),
        changed(edges=[{"edge": "light-heavy", "spec_decode_num_drafts": -1}]),
        changed(rejections=[{"position": 0, "by": 7, "token_ids": [], "masks": [], "text": ""}]),
        changed(timeline=[{"stage": "x", "what": "y", "start_ms": "soon", "end_ms": 1}]),
        changed(notes=["n"] * 10_000),
        changed(gate=[1]),
        response("200 OK", json.dumps(COMPLETION).replace("2.0", "NaN").encode()),
    ],
)
def test_what_is_no_answer_is_a_typed_error(answer: bytes) -> None:
    handler = sends(answer)
    with scripted_server(handler) as address, pytest.raises(RemoteError):
        ask(address)
    assert len(handler.requests) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "chunks",
    [
        event("{"),
        event("[" * 100_000),
        event({"choices": [{"delta": {"content": 3}, "finish_reason": None}]}),
        event({"choices": [PIECE["choices"][0]] * 2}),
        event(PIECE | {"cascade": {"token_ids": [1], "pieces": [], "spans": []}}),
        event(PIECE | {"cascade": {"token_ids": [1], "pieces": ["a"], "spans": []}}),
        event(LAST | {"metrics": METRICS, "cascade": CASCADE | {"masks": None, "pieces": None}}),
    ],
)
def test_what_is_no_chunk_is_a_typed_error(chunks: bytes) -> None:
    handler = sends(events_head() + chunks)
    with scripted_server(handler) as address, pytest.raises(RemoteError):
        ask(address, stream=True)


@pytest.mark.parametrize("stream", [False, True])
def test_a_flood_is_cut_off(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_MAX_BYTES", 1 << 20)
    sent = [0]

    def floods(connection: socket.socket) -> None:
        head = events_head() if stream else b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
        connection.sendall(head)
        part = event(PIECE) * 1000 if stream else b" " * 65536
        while sent[0] < 1 << 28:
            connection.sendall(part)
            sent[0] += len(part)

    with scripted_server(sends(floods)) as address, pytest.raises(RemoteError):
        ask(address, stream=stream)
    assert sent[0] < 1 << 25


def test_one_endless_event_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_MAX_EVENT_BYTES", 1 << 16)
    handler = sends(events_head() + b"data: " + b"x" * (1 << 17))
    with scripted_server(handler) as address, pytest.raises(RemoteError, match="65536"):
        ask(address, stream=True)


def test_waits_grow_are_jittered_and_end() -> None:
    chance = random.Random(3)
    waits = [wait_before_retry(tries, 5, None, 1e9, chance) for tries in range(1, 6)]
    for tries, wait in enumerate(waits):
        assert wait is not None and 0.5 <= wait / min(8.0, 0.01 * 2**tries) <= 1.0
    assert len(set(waits)) == 5
    assert wait_before_retry(6, 5, None, 1e9, chance) is None
    asked = wait_before_retry(1, 5, 4.0, 1e9, chance)
    assert asked is not None and 4.0 <= asked <= 5.0
    assert wait_before_retry(1, 5, 4.0, 3.9, chance) is None


def test_retry_after_is_read_in_both_forms_and_nonsense_is_none() -> None:
    now = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
    assert retry_after_s("7") == 7.0
    assert retry_after_s("Thu, 01 Jan 2026 12:00:30 GMT", now) == 30.0
    assert retry_after_s("Thu, 01 Jan 2026 11:00:00 GMT", now) == 0.0
    for nonsense in (None, "", "-3", "soon", "7" * 100, "\u0663"):
        assert retry_after_s(nonsense) is None
