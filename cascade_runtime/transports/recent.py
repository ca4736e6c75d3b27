"""`RecentAnswers`: what was done when for the last requests, for who asks later. Any thread may keep and ask."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from cascade_runtime.api import Answer, Timings
from cascade_runtime.errors import NotFound

_KEPT = 128


class RecentAnswers:
    """The times of the last answers, by request id."""

    def __init__(self) -> None:
        self._timings: OrderedDict[str, Timings] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, answer: Answer) -> None:
        """Remember an answer's times; the oldest are forgotten."""
        with self._lock:
            self._timings[answer.request_id] = answer.timings
            self._timings.move_to_end(answer.request_id)
            while len(self._timings) > _KEPT:
                self._timings.popitem(last=False)

    def trace(self, request_id: str) -> dict[str, Any]:
        """The Chrome trace of a request. Raises `NotFound`."""
        with self._lock:
            timings = self._timings.get(request_id)
        if timings is None:
            raise NotFound(f"request {request_id[:64]!r} is not among the last {_KEPT} answered here")
        return timings.chrome_trace()
