"""`ClockOffset`: the core's clock as the edge knows it, from pulses that go there and back (as NTP does, RFC 5905)."""

from __future__ import annotations

from collections import deque

_SAMPLES = 64


class ClockOffset:
    """The offset of the quickest of the last 64 round trips: right to half of it, whatever the link's two ways take."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, int]] = deque(maxlen=_SAMPLES)

    def heard(self, *, echo_ns: int, held_ns: int, core_ns: int, now_ns: int) -> None:
        """A pulse of ours, said at echo_ns, was held for held_ns and answered at core_ns of the core's clock."""
        round_ns = now_ns - echo_ns - held_ns
        if echo_ns and round_ns >= 0:
            self._samples.append((round_ns, core_ns + round_ns // 2 - now_ns))

    @property
    def offset_ns(self) -> int:
        """The core's clock minus this one; 0 before the first round trip."""
        return min(self._samples)[1] if self._samples else 0

    @property
    def error_ns(self) -> int:
        """How wrong the offset may be."""
        return min(self._samples)[0] // 2 if self._samples else 0
