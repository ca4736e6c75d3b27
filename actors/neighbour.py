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
        self._unsent: list[tuple[DraftBlock | Verdict, bytes]] = []

    def take(self, most: int) -> Iterator[Heard]:
        """What has come by now, of at most `most` frames. Raises `ChannelClosed` when the neighbour has gone."""
        for _ in range(most):
            frame = self.channel.recv(0.0)
            if frame is None:
                return
            at = time.monotonic_ns()
            try:
                messages = decode(frame)
            except ChannelError:
                self._tracer.took(self.name, NO_REQUEST, 0, at)
                self.refused += 1
                continue
            for message in messages:
                self._tracer.took(self.name, message.request, len(message.tokens), at)
                if isinstance(message, self._kind):
                    yield message
                else:
                    self.refused += 1

    def tell(self, message: DraftBlock | Verdict) -> None:
        """Say it with the next `flush`."""
        self._unsent.append((message, encode(message)))

    def flush(self) -> None:
        """Send all that was told, in as few frames as the link allows, at once or not at all: blocks and verdicts are
        cumulative, the next one says it again. Raises `ChannelClosed`.
        """
        unsent, self._unsent = self._unsent, []
        most, frame, inside = self.channel.spec.max_frame_bytes, bytearray(), 0
        for number, (_, encoded) in enumerate(unsent):
            if frame and len(frame) + len(encoded) > most:
                self._send(bytes(frame), unsent[number - inside : number])
                frame, inside = bytearray(), 0
            frame += encoded
            inside += 1
        if frame:
            self._send(bytes(frame), unsent[len(unsent) - inside :])

    def _send(self, frame: bytes, told: list[tuple[DraftBlock | Verdict, bytes]]) -> None:
        at = time.monotonic_ns()
        try:
            self.channel.send(frame, 0.0)
        except (DeadlineExceeded, CapacityError):
            self.refused += len(told)
            return
        for message, _ in told:
            self._tracer.sent(self.name, message.request, len(message.tokens), at)
