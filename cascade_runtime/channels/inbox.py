"""`Inbox`: the bounded queue of one end of a channel whose frames are delivered by somebody else's thread."""

from __future__ import annotations

import select
import threading
from collections import deque

from cascade_runtime.channels.wake import Wake
from cascade_runtime.errors import ChannelClosed


class Inbox:
    """Frames that arrived and were not read. Any thread may call anything.

    `finish(reason)` is the peer leaving: what arrived is still read. `abandon()` is this end leaving: it is not.
    """

    def __init__(self, link: str, capacity: int) -> None:
        self._link = link
        self._capacity = capacity
        self._frames: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._wake = Wake()
        self._armed = 0
        self._reason: str | None = None
        self._abandoned = False

    @property
    def reason(self) -> str | None:
        """Why no more will arrive, or None."""
        return self._reason

    def put(self, frame: bytes, timeout_s: float) -> bool:
        """Deliver. False when it stays full until then. Raises `ChannelClosed`."""
        with self._changed:
            self._changed.wait_for(lambda: self._reason or len(self._frames) < self._capacity, timeout_s)
            self._check_open()
            if len(self._frames) >= self._capacity:
                return False
            self._frames.append(frame)
            self._notify()
            return True

    def get(self, timeout_s: float) -> bytes | None:
        """The oldest frame, or None in time. Raises `ChannelClosed` at the end."""
        with self._changed:
            self._changed.wait_for(self.ready, timeout_s)
            if self._frames:
                frame = self._frames.popleft()
                if not self.ready():
                    self._wake.clear()
                self._changed.notify_all()
                return frame
            self._check_open()
            return None

    def ready(self) -> bool:
        """Whether `get(0)` returns a frame or raises."""
        return bool(self._frames) or self._reason is not None

    def finish(self, reason: str) -> None:
        """No more will arrive."""
        with self._changed:
            if self._reason is None:
                self._reason = reason
                self._notify()

    def abandon(self) -> None:
        """Nobody will read any more: drop what waits, and the descriptor unless somebody polls it."""
        with self._changed:
            if self._reason is None:
                self._reason = "this end was closed"
            self._frames.clear()
            self._notify()
            if not self._abandoned:
                self._abandoned = True
                self._drop()

    def arm(self) -> dict[int, int]:
        """See `Channel.arm`."""
        with self._changed:
            self._armed += 1
            return {} if self._abandoned else {self._wake.fileno(): select.POLLIN}

    def disarm(self) -> None:
        """See `Channel.disarm`."""
        with self._changed:
            self._armed -= 1
            if self._abandoned:
                self._drop()

    def _check_open(self) -> None:
        if self._reason is not None:
            raise ChannelClosed(f"link {self._link!r}: {self._reason}")

    def _notify(self) -> None:
        self._wake.set()
        self._changed.notify_all()

    def _drop(self) -> None:
        if not self._armed:
            self._wake.close()
