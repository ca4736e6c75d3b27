"""`Bell`: wakes a loop that sleeps on its links, from any thread."""

from __future__ import annotations

import contextlib

from cascade_runtime.channels import ChannelSpec
from cascade_runtime.channels.local import pair
from cascade_runtime.errors import CapacityError, ChannelError, DeadlineExceeded


class Bell:
    """`ear` is what the loop waits on beside its links."""

    def __init__(self) -> None:
        self._button, self.ear = pair(ChannelSpec(backend="local", link="wake", capacity=1))

    def ring(self) -> None:
        """Wake the loop, or let it not fall asleep. It may be ringing already, or the loop may be gone."""
        with contextlib.suppress(DeadlineExceeded, CapacityError, ChannelError):
            self._button.send(b"!", 0.0)

    def hush(self) -> None:
        """Called by the loop: it is awake."""
        while self.ear.recv(0.0) is not None:
            pass

    def close(self) -> None:
        """Nobody is woken any more."""
        self._button.close()
        self.ear.close()
