"""The messages of cascade.proto as a client sends and reads them.

    question(request) -> GenerateRequest     terms(...), window(...) -> SessionRequest      the recording as Arrow IPC
    read_answer(message) -> Answer           PieceReader().read(message) -> Piece
    error_of(code, ...) -> CascadeError      of a call, or of one window

What comes in is not trusted: an answer goes through the reader of the HTTP API's JSON (chat.py), whose names it has.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import grpc
from google.protobuf.json_format import MessageToDict

from cascade_runtime.api import Answer, GenerateRequest, Piece
from cascade_runtime.config import MAX_LEVELS, SamplingParams
from cascade_runtime.errors import CascadeError, DeadlineExceeded, InputError, RemoteError
from cascade_runtime.proto import cascade_pb2 as wire
from cascade_runtime.transports import chat
from cascade_runtime.transports import refusal as refusals
from cascade_runtime.transports.fields import Fields
from cascade_runtime.transports.session import SessionTerms, Window

# gRPC's status -> the HTTP status that the same refusal has in JSON
_HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_RATE_LIMIT = "rate_limit_exceeded"
_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_MAX_NAME = 64


@runtime_checkable
class _Sendable(Protocol):
    def to_ipc_bytes(self, compression: str | None = None) -> bytes: ...


def question(request: GenerateRequest) -> wire.GenerateRequest:
    """One request; its id is its idempotency key too. Raises `InputError` for a recording that cannot be sent."""
    return wire.GenerateRequest(
        request_id=request.request_id,
        idempotency_key=request.request_id,
        question=request.question,
        recording=_recording(request.events),
        sampling=_sampling(request.sampling),
        speculate=request.speculate,
    )


def opening(terms: SessionTerms, timeout_s: float | None, waiting: int) -> wire.SessionRequest:
    """The first message of a session."""
    message = wire.SessionTerms(
        question=terms.question, sampling=_sampling(terms.sampling), speculate=terms.speculate, waiting=waiting
    )
    if timeout_s is not None:
        message.deadline_ms = max(1, round(1000 * timeout_s))
    return wire.SessionRequest(terms=message)


def window(one: Window) -> wire.SessionRequest:
    """One window of a session."""
    return wire.SessionRequest(window=wire.Window(number=one.number, recording=_recording(one.events)))


def _recording(events: object) -> wire.Recording:
    if not isinstance(events, _Sendable):
        raise InputError("events", type(events).__name__, "an Events recording")
    return wire.Recording(data=events.to_ipc_bytes("zstd"))


def _sampling(sampling: SamplingParams) -> wire.Sampling:
    return wire.Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        max_tokens=sampling.max_tokens,
        stop=sampling.stop,
        ignore_eos=sampling.ignore_eos,
    )


def read_answer(message: wire.Answer) -> Answer:
    """The answer in a message. Raises `InputError` for one that cannot be."""
    fields = Fields(_json(message), "answer")
    answer = chat.read_answer(fields, fields.text("text", chat.MAX_TEXT), fields.text("finish_reason", _MAX_NAME))
    return replace(answer, prompt_tokens=message.usage.prompt_tokens)


class PieceReader:
    """The pieces of one stream."""

    def __init__(self) -> None:
        self._levels: tuple[str, ...] = ()
        self._tokens = self._length = 0

    def open(self, message: wire.Opening) -> None:
        """What comes before them."""
        self._levels = Fields(_json(message), "opening").texts("levels", MAX_LEVELS, _MAX_NAME)

    def read(self, message: wire.Piece) -> Piece:
        """One piece. Raises `InputError` for one that cannot be, and for more than an answer can hold."""
        fields = Fields(_json(message), "piece")
        piece = chat.read_piece(fields, fields.text("text", chat.MAX_TEXT), self._levels, self._tokens)
        self._tokens += len(piece.tokens)
        self._length += len(piece)
        if self._length > chat.MAX_TEXT:
            raise InputError("piece.text", f"{self._length} characters", f"at most {chat.MAX_TEXT}")
        return piece


def _json(message: Any) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


# -- errors ----------------------------------------------------------------------------------------------------------


def error_of_call(error: grpc.aio.AioRpcError, request_id: str) -> tuple[CascadeError, float | None]:
    """The error of a call, and in how many seconds the server wants to be asked again, where it says so."""
    trailers = {str(key): value for key, value in error.trailing_metadata() or () if isinstance(value, str)}
    after = trailers.get("retry-after", "")
    asked_s = float(after) if after.isascii() and after.isdigit() and len(after) < 9 else None
    code, field, name = (trailers.get(f"cascade-{name}", "") for name in ("error-code", "error-field", "request-id"))
    return error_of(error.code(), error.details() or "", code, field, name or request_id, asked_s), asked_s


def error_of_window(failure: wire.Failure) -> CascadeError:
    """Why a window has no answer."""
    status = _BY_NUMBER.get(failure.status, grpc.StatusCode.UNKNOWN)
    asked_s = failure.retry_after_s if failure.HasField("retry_after_s") else None
    return error_of(status, failure.message, failure.code, failure.field, "", asked_s)


def error_of(
    status: grpc.StatusCode, message: str, code: str, field: str, request_id: str, asked_s: float | None
) -> CascadeError:
    """One of this project's errors. code: the HTTP API's, empty where it was not this project's server that spoke."""
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if "larger than max" in message:  # gRPC's own words for a message over a limit, the server's or ours
            return InputError("events", message[:200], "a message that the other side takes")
        http = 429 if code == _RATE_LIMIT else 503
    elif not code and status is grpc.StatusCode.UNAVAILABLE:
        return RemoteError(f"not reached, or broke off: {message[:300]}", retryable=True)
    elif not code and status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"request {request_id}: no answer in time")
    elif not code and status not in _HTTP:
        return RemoteError(f"{status.name}: {message[:300]}")
    else:
        http = _HTTP.get(status, 500)
    told = {"message": message, "code": code, "param": field, "request_id": request_id}
    return refusals.error_of(http, {"error": told}, request_id, asked_s)
