"""`InboxChannel`: the reading half of a channel whose frames arrive in an `Inbox`, by whatever way."""

from __future__ import annotations

from collections.abc import Mapping

from cascade_runtime.channels.base import Channel, ChannelSpec
from cascade_runtime.channels.inbox import Inbox
from cascade_runtime.errors import ChannelClosed


class InboxChannel(Channel):
    """Reads from an inbox; how frames leave, and how an end does, is the subclass's business."""

    def __init__(self, spec: ChannelSpec, inbox: Inbox) -> None:
        super().__init__(spec)
        self._inbox = inbox

    def recv(self, timeout_s: float) -> bytes | None:
        frame = self._inbox.get(timeout_s)
        if frame is not None:
            self._stats.received(frame)
        return frame

    @property
    def closed(self) -> bool:
        return self._inbox.reason is not None

    def ready(self) -> bool:
        return self._inbox.ready()

    def arm(self) -> Mapping[int, int]:
        return self._inbox.arm()

    def disarm(self) -> None:
        self._inbox.disarm()

    def refuse_closed(self) -> None:
        """Raise `ChannelClosed` when an end is known to be gone."""
        if self._inbox.reason is not None:
            raise ChannelClosed(f"link {self.spec.link!r}: {self._inbox.reason}")
