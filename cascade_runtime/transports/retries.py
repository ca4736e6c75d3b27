"""`wait_before_retry`: when and how soon to ask a server again. Pure: no clock, no I/O.

Asking again is safe, since an answer is a function of the request and every try carries the same idempotency key: a
server that has the answer, or is at it, does not begin anew. Of a stream that broke off, what was passed on is not told
again (`told.py`).
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_FIRST_S, _LONGEST_S = 0.25, 8.0


def wait_before_retry(
    tries: int, max_retries: int, asked_s: float | None, left_s: float, chance: random.Random
) -> float | None:
    """Seconds to wait after `tries` tries that failed, or None: give up.

    asked_s: what the server asked for (Retry-After); it is kept, and a little more, so that not everybody is back at
    once. left_s: seconds until the deadline; a try that could not begin before it is none.
    """
    if tries > max_retries:
        return None
    if asked_s is not None:
        wait_s = asked_s * (1 + 0.25 * chance.random())
    else:
        wait_s = min(_LONGEST_S, _FIRST_S * 2.0 ** (tries - 1)) * (0.5 + 0.5 * chance.random())
    return wait_s if wait_s < left_s else None


def retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """The header Retry-After, seconds or a date (RFC 9110, 10.2.3), in seconds from now; None for none or nonsense."""
    if value is None or len(value) > 64:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - (now or datetime.now(UTC))).total_seconds())
