"""`error_of`: an error as OpenAI's JSON -> one of this project's tree, with the request's id."""

from __future__ import annotations

from collections.abc import Mapping

from cascade_runtime.errors import (
    AccessError,
    CapacityError,
    CascadeError,
    DeadlineExceeded,
    EventFormatError,
    InputError,
    NotFound,
    PromptTooLong,
    RateLimitError,
    RemoteError,
    StageError,
)

_LONGEST = 2000  # characters of somebody else's message
_INPUT_STATUS = (400, 409, 413, 415, 422)
_INPUT_CODES = {"context_length_exceeded": PromptTooLong, "media_rejected": EventFormatError}


def error_of(status: int, data: object, request_id: str, asked_s: float | None = None) -> CascadeError:
    """The error in `{"error": {...}}`, or, where that is not what was answered, a `RemoteError` with the status.

    status: of the response; 200 for an error within a stream, whose code then says what it is. asked_s: when the
    server wants to be asked again.
    """
    told = data.get("error") if isinstance(data, Mapping) else None
    facts: Mapping[str, object] = told if isinstance(told, Mapping) else {}
    message = _text(facts, "message") or f"the server answered with status {status} and no reason"
    code, param = _text(facts, "code"), _text(facts, "param") or "request"
    if status == 429:
        error: CascadeError = RateLimitError(message, asked_s or 0.0)
    else:
        error = _of_kind(status, code, _text(facts, "type"), param, message, request_id)
    error.request_id = _text(facts, "request_id") or request_id
    return error


def _of_kind(status: int, code: str, kind: str, param: str, message: str, request_id: str) -> CascadeError:
    if code in _INPUT_CODES or status in _INPUT_STATUS or kind == "invalid_request_error":
        return _input_error(_INPUT_CODES.get(code, InputError), param, message)
    if status in (401, 403):
        return AccessError(message, status)
    if status == 404:
        return NotFound(message, status)
    if status == 503 or code in ("overloaded", "draining", "not_ready"):
        return CapacityError(message)
    if status in (408, 504) or code == "deadline_exceeded":
        return DeadlineExceeded(message)
    if status == 499 or code in ("stage_failed", "cancelled"):
        return StageError("server", request_id, message)
    return RemoteError(message, status, retryable=status == 502)


def _input_error(kind: type[InputError], param: str, message: str) -> InputError:
    """In the server's own words: it has named the field, the value and what is allowed."""
    error = EventFormatError(param, "-", message) if kind is EventFormatError else kind(param, "", message)
    error.args = (message,)
    return error


def _text(facts: Mapping[str, object], name: str) -> str:
    value = facts.get(name)
    return value[:_LONGEST] if isinstance(value, str) else ""
