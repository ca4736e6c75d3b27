"""`NewestWindows`: a queue for a live source that is never slowed down: of what waits, the newest stay.

One consumer; both ends on one event loop. The client keeps one in front of the wire, the server one behind it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

from cascade_runtime.config.checks import integer
from cascade_runtime.errors import InputError, StageError

T = TypeVar("T")
MAX_WAITING = 64


class NewestWindows(Generic[T]):
    """room: how many may wait. Raises `InputError` for one that is not from 1 to `MAX_WAITING`."""

    def __init__(self, room: int) -> None:
        integer(InputError, "waiting", room, 1, MAX_WAITING)
        self.dropped = 0
        self._room = room
        self._waiting: deque[T] = deque()
        self._closed = False
        self._news = asyncio.Event()

    def put(self, window: T) -> None:
        """Let a window wait; where that is one too many, the oldest is dropped. Raises `StageError` once closed."""
        if self._closed:
            raise StageError("session", "-", "no window may follow: it was finished")
        if len(self._waiting) == self._room:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(window)
        self._news.set()

    def close(self) -> None:
        """No more windows; those that wait are still given out."""
        self._closed = True
        self._news.set()

    async def get(self) -> T | None:
        """The oldest window that waits, or None where none does and none will."""
        while not self._waiting:
            if self._closed:
                return None
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()
