"""`Neighbour`: the stage next door, at the other end of a link. Messages in and out, each recorded for the trace."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Generic, TypeVar

from cascade_runtime.channels import Channel
from cascade_runtime.errors import CapacityError, ChannelError, DeadlineExceeded
from cascade_runtime.messages import DraftBlock, Verdict, decode, encode
from cascade_runtime.tracing import NO_REQUEST, Tracer

Heard = TypeVar("Heard", DraftBlock, Verdict)


class Neighbour(Generic[Heard]):
    """One end of the link to the stage `name`, which says messages of one `kind`. Used by one thread.

    `refused` counts messages that came to nothing: not decodable, of the other kind, or with no room in the link.
    """

    def __init__(self, name: str, channel: Channel, kind: type[Heard], tracer: Tracer) -> None:
        self.name, self.channel = name, channel
        self.refused = 0
        self._kind, self._tracer = kind, tracer

    def take(self, most: int) -> Iterator[Heard]:
        """What has come by now, of at most `most` messages. Raises `ChannelClosed` when the neighbour has gone."""
        for _ in range(most):
            frame = self.channel.recv(0.0)
            if frame is None:
                return
            at = time.monotonic_ns()
            message = self._read(frame)
            request, tokens = (message.request, len(message.tokens)) if message else (NO_REQUEST, 0)
            self._tracer.took(self.name, request, tokens, at)
            if message is not None:
                yield message

    def tell(self, message: DraftBlock | Verdict) -> None:
        """Send at once, or not at all: blocks and verdicts are cumulative, the next one says it again. Raises
        `ChannelClosed`.
        """
        at = time.monotonic_ns()
        try:
            self.channel.send(encode(message), 0.0)
        except (DeadlineExceeded, CapacityError):
            self.refused += 1
            return
        self._tracer.sent(self.name, message.request, len(message.tokens), at)

    def _read(self, frame: bytes) -> Heard | None:
        try:
            message = decode(frame)
        except ChannelError:
            message = None
        if isinstance(message, self._kind):
            return message
        self.refused += 1
        return None
