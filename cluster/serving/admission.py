"""How many requests may be inside: all together, and of one caller. A pure state machine; times come with the calls."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from cascade_runtime.errors import CapacityError, RateLimitError

PATIENT = "patient"
"""Whose name work has that waits for a place which nobody else wants; callers' names are others."""


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class Admission:
    """Counts requests from `enter` to `leave`. room: how many run and wait at most; 0 switches a caller's limit off."""

    def __init__(self, *, room: int, key_concurrency: int = 0, key_per_minute: int = 0) -> None:
        self._room, self._key_concurrency, self._per_minute = room, key_concurrency, key_per_minute
        self._inside: Counter[str] = Counter()
        self._buckets: dict[str, _Bucket] = {}  # one per API key at most: callers are known before they get here

    @property
    def inside(self) -> int:
        """Requests that have entered and not left."""
        return self._inside.total()

    def enter(self, caller: str, now_s: float) -> None:
        """Let one request in. Raises `RateLimitError` for its caller's limits and `CapacityError` where all is full."""
        if self._key_concurrency and self._inside[caller] >= self._key_concurrency:
            raise RateLimitError(f"{self._key_concurrency} requests of this key are running", 1.0)
        if self.inside >= self._room:
            raise CapacityError(f"{self._room} requests are running or waiting")
        if self._per_minute:
            self._spend(caller, now_s)
        self._inside[caller] += 1

    def enter_patient(self, spare: int) -> bool:
        """Let work in that can wait, if it and all who are inside are `spare` at most; it counts for no caller."""
        if self.inside >= spare:
            return False
        self._inside[PATIENT] += 1
        return True

    def leave(self, caller: str) -> None:
        """One request of this caller has ended."""
        self._inside[caller] -= 1
        if not self._inside[caller]:
            del self._inside[caller]

    def _spend(self, caller: str, now_s: float) -> None:
        """Take one token of the caller's bucket, which holds a minute's worth and fills steadily."""
        per_s = self._per_minute / 60
        bucket = self._buckets.setdefault(caller, _Bucket(float(self._per_minute), now_s))
        bucket.tokens = min(float(self._per_minute), bucket.tokens + (now_s - bucket.filled_at) * per_s)
        bucket.filled_at = now_s
        if bucket.tokens < 1:
            raise RateLimitError(f"{self._per_minute} requests of this key in a minute", (1 - bucket.tokens) / per_s)
        bucket.tokens -= 1
