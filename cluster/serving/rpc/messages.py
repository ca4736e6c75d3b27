"""cascade.proto's messages: requests as chat completion bodies, answers and refusals as messages. Pure.

A request becomes the body that the HTTP API would have got, so that `parse_chat` is the one validator of both; an
answer has what `chat_answer` says of it, under the same names. What `parse_chat` blames in a body is told in the names
of the message (_FIELDS).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from cascade_runtime.api import Answer, Piece
from cascade_runtime.proto import cascade_pb2 as wire
from cluster.serving.chat_answer import ChatHead, cascade, metrics, token_spans, usage
from cluster.serving.media import SentBytes
from cluster.serving.refusals import CLIENT_CLOSED, Refusal

M = TypeVar("M", bound=Message)
_ARROW = "application/vnd.apache.arrow.stream"
_SAMPLING = ("temperature", "top_p", "top_k", "seed", "max_tokens", "ignore_eos")
_FIELDS = (  # as the body has them -> as the message has them; the first that fits
    ("messages[0].content[0].events_url.url", "recording.data"),
    ("messages[0].content[0].events_url", "recording"),
    ("messages[0].content[1].text", "question"),
    ("messages[0].content", "question"),
    ("messages", "question"),
    ("cascade.clip", "clip"),
    ("cascade.deadline_ms", "deadline_ms"),
    ("X-Request-Id", "request_id"),
    ("Idempotency-Key", "idempotency_key"),
)
_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ALREADY_EXISTS,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    CLIENT_CLOSED: grpc.StatusCode.CANCELLED,
}
_LONGEST = 1000  # characters of an error: trailers are small


def body_of(request: wire.GenerateRequest | wire.SessionTerms, recording: wire.Recording) -> dict[str, Any]:
    """The chat completion's body that asks the same."""
    source: dict[str, Any] = {}
    if recording.data or not recording.file_id:
        source["url"] = SentBytes(recording.media_type.strip() or _ARROW, recording.data)
    if recording.file_id:
        source["file_id"] = recording.file_id
    if recording.format:
        source["format"] = recording.format
    source |= {name: getattr(recording, name) for name in ("width", "height") if recording.HasField(name)}
    content = [{"type": "events_url", "events_url": source}, {"type": "text", "text": request.question}]
    body: dict[str, Any] = {"messages": [{"role": "user", "content": content}]}
    if request.model:
        body["model"] = request.model
    sampling = request.sampling
    body |= {name: getattr(sampling, name) for name in _SAMPLING if sampling.HasField(name)}
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    extra: dict[str, Any] = {
        name: getattr(request, name) for name in ("speculate", "deadline_ms") if request.HasField(name)
    }
    if isinstance(request, wire.GenerateRequest) and request.HasField("clip"):
        bounds = ("t_start_us", "t_end_us")
        extra["clip"] = {name: getattr(request.clip, name) for name in bounds if request.clip.HasField(name)}
    return body | {"cascade": extra}


def answer_of(head: ChatHead, answer: Answer) -> wire.Answer:
    """A whole answer."""
    told = {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "model": head.model,
        "system_fingerprint": head.fingerprint,
        "created": head.created,
        "usage": usage(answer),
        "metrics": metrics(answer),
        "cascade": cascade(head, answer),
    }
    return _message(told, wire.Answer())


def opening_of(head: ChatHead) -> wire.Update:
    """What a stream begins with."""
    return wire.Update(opening=wire.Opening(request_id=head.request_id, levels=head.levels))


def piece_of(head: ChatHead, piece: Piece, first: int) -> wire.Update:
    """One round. first: the number of its first token in the answer."""
    told = {"text": str(piece), "token_ids": list(piece.tokens), "pieces": list(piece.words)}
    spans = token_spans(head.levels, piece.masks, first)
    return wire.Update(piece=_message(told | {"spans": spans}, wire.Piece()))


def _message(told: dict[str, Any], empty: M) -> M:
    """What the message has fields for: a fact that is new in JSON does not break an older schema."""
    return ParseDict(told, empty, ignore_unknown_fields=True)


def status_of(refusal: Refusal) -> grpc.StatusCode:
    """The status of an error. A full server is RESOURCE_EXHAUSTED, one that drains or is broken UNAVAILABLE."""
    if refusal.code == "overloaded":
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    return _STATUS.get(refusal.status, grpc.StatusCode.INTERNAL)


def in_fields(refusal: Refusal) -> Refusal:
    """The same refusal in the names of the message's fields, and short."""
    message, param = refusal.message, refusal.param
    for theirs, ours in _FIELDS:
        if param is not None and param.startswith(theirs):
            message, param = message.replace(theirs, ours, 1), ours + param[len(theirs) :]
            break
        if message.startswith(theirs):
            message = ours + message[len(theirs) :]
            break
    return replace(refusal, message=message[:_LONGEST], param=param)


def failure_of(refusal: Refusal) -> wire.Failure:
    """Why one window has no answer."""
    told = in_fields(refusal)
    failure = wire.Failure(
        status=status_of(told).value[0], message=told.message, code=told.code, field=told.param or ""
    )
    if told.retry_after_s is not None:
        failure.retry_after_s = told.retry_after_s
    return failure
