"""Errors as OpenAI's JSON: `Refusal`, and `refusal_of` for every error of the project's own.

A caller is told what it can act on. What a stage said of itself (paths, addresses, tracebacks) goes to the log only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cascade_runtime.errors import (
    CapacityError,
    CascadeError,
    ConfigError,
    DeadlineExceeded,
    EventFormatError,
    InputError,
    PromptTooLong,
    RateLimitError,
    StageError,
)

CLIENT_CLOSED = 499  # nginx's: there is no official one
_RETRY_AFTER_S = 1.0
_CONFLICTS = {"X-Request-Id": (409, "request_id_in_use"), "Idempotency-Key": (422, "idempotency_key_reused")}


@dataclass(eq=False, kw_only=True)
class Refusal(Exception):
    """One error response. retry_after_s: when to come back, None where that would not help."""

    status: int
    type: str
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def body(self, request_id: str | None) -> dict[str, object]:
        """OpenAI's error object, and two fields of ours."""
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
            "retryable": self.retry_after_s is not None,
            "request_id": request_id,
        }
        return {"error": error}

    def all_headers(self) -> dict[str, str]:
        """`Retry-After` where a retry helps; `x-should-retry` stops OpenAI's clients where it does not."""
        if self.retry_after_s is None:
            return {**self.headers, "x-should-retry": "false"}
        return {**self.headers, "Retry-After": str(max(1, round(self.retry_after_s)))}


def bad_request(message: str, code: str, *, status: int = 400, param: str | None = None) -> Refusal:
    """A refusal that blames the request."""
    return Refusal(status=status, type="invalid_request_error", code=code, message=message, param=param)


def not_found(what: str, code: str = "not_found", param: str | None = None) -> Refusal:
    """404."""
    return Refusal(status=404, type="not_found_error", code=code, message=what, param=param)


def overloaded(message: str, code: str) -> Refusal:
    """503: the same call may succeed in a moment."""
    return Refusal(status=503, type="server_error", code=code, message=message, retry_after_s=_RETRY_AFTER_S)


def refusal_of(error: CascadeError) -> Refusal:
    """What a caller is told of an error."""
    if isinstance(error, PromptTooLong):
        return bad_request(str(error), "context_length_exceeded", param="messages")
    if isinstance(error, EventFormatError):
        return bad_request(str(error), "media_rejected", param=error.file)
    if isinstance(error, InputError) and error.field == "model":
        return not_found(
            f"the model {error.value!r} does not exist; there is: {error.allowed}", "model_not_found", "model"
        )
    if isinstance(error, InputError) and error.field in _CONFLICTS:
        status, code = _CONFLICTS[error.field]
        return bad_request(str(error), code, status=status, param=error.field)
    if isinstance(error, InputError | ConfigError):
        return bad_request(str(error), "invalid_value", param=error.field)
    if isinstance(error, RateLimitError):
        return Refusal(
            status=429,
            type="rate_limit_error",
            code="rate_limit_exceeded",
            message=str(error),
            retry_after_s=error.retry_after_s,
        )
    if isinstance(error, CapacityError):
        return overloaded(str(error), "overloaded")
    if isinstance(error, DeadlineExceeded):
        message = "no answer before the request's deadline"
        return Refusal(status=504, type="server_error", code="deadline_exceeded", message=message)
    if isinstance(error, StageError) and error.problem == "cancelled":
        message = "the request was cancelled"
        return Refusal(status=CLIENT_CLOSED, type="request_cancelled", code="cancelled", message=message)
    stage = f"stage {error.stage!r}" if isinstance(error, StageError) else "a stage"
    message = f"{stage} failed on this request"
    return Refusal(status=500, type="server_error", code="stage_failed", message=message, retry_after_s=_RETRY_AFTER_S)
