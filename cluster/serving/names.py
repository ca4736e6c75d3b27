"""What callers may call a request: its id, and its idempotency key."""

from __future__ import annotations

import re
import uuid

from cluster.serving.refusals import bad_request

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def given_request_id(name: str | None) -> str:
    """The caller's id, or a new one. Raises `Refusal`."""
    if name is None:
        return uuid.uuid4().hex
    if not _REQUEST_ID.fullmatch(name):
        message = "X-Request-Id may have 1 to 64 letters, digits, '_', '.', ':', '-'"
        raise bad_request(message, "invalid_value", param="X-Request-Id")
    return name


def given_key(key: str | None) -> str | None:
    """The caller's idempotency key. Raises `Refusal`."""
    if key is not None and not _KEY.fullmatch(key):
        message = "Idempotency-Key may have 1 to 255 printable ASCII characters"
        raise bad_request(message, "invalid_value", param="Idempotency-Key")
    return key
