"""What every link between two stages can do, whichever way its bytes travel.

    listen(spec) -> Listener -- .spec --> (any control plane) --> connect(spec, timeout_s) -> Channel
                    Listener.accept(timeout_s) -> Channel

A `Channel` carries opaque frames both ways, in order, each once, until an end closes or dies. It is bounded: at most
`capacity` frames wait unread in a direction, then `send` waits, and refuses at its deadline. Nothing is ever unpickled.
One thread may send while another receives; `close` may be called from any thread.

Which backends there are, and which is picked: `backend.py`. How a peer proves that it may speak: `hello.py`.
"""

from __future__ import annotations

import select
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from secrets import token_bytes
from typing import Any, Self

from cascade_runtime.errors import ChannelError, ConfigError, DeadlineExceeded

BACKENDS = ("local", "stream", "object_store", "call")
MAX_CAPACITY = 4096
MAX_FRAME_BYTES = 1 << 28
MIN_SECRET_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class ChannelSpec:
    """Everything the two ends of one link must agree on. Plain: travels through any control plane that is trusted.

    link names the edge ("light-mid"); epoch rises whenever the pipeline is rewired, and a peer of another epoch is
    refused. secret is the proof both ends show (never sent itself; every pair of ends makes its own with `new`).
    address: empty, or for "stream" `tcp:HOST:0` to listen on one address of the node; `listen` fills it in.
    actor: for "call" the handle of the listening actor; `listen` fills it in. capacity is in frames, per direction.
    """

    backend: str
    link: str
    epoch: int = 0
    secret: bytes = field(default_factory=lambda: token_bytes(32), repr=False)
    address: str = ""
    actor: Any = field(default=None, repr=False, compare=False)
    capacity: int = 64
    max_frame_bytes: int = 1 << 16

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ConfigError("channel.backend", self.backend, f"one of {', '.join(BACKENDS)}")
        for name, low, high in (
            ("epoch", 0, 2**32 - 1),
            ("capacity", 1, MAX_CAPACITY),
            ("max_frame_bytes", 1, MAX_FRAME_BYTES),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"channel.{name}", value, f"an integer from {low} to {high}")
        if not isinstance(self.secret, bytes) or len(self.secret) < MIN_SECRET_BYTES:
            raise ConfigError("channel.secret", "(not shown)", f"at least {MIN_SECRET_BYTES} bytes")


@dataclass(kw_only=True)
class ChannelStats:
    """What one end has seen. refused: sends that were too large or found the peer's queue full at their deadline."""

    frames_sent: int = 0
    bytes_sent: int = 0
    frames_received: int = 0
    bytes_received: int = 0
    refused: int = 0

    def sent(self, frame: bytes) -> None:
        """Count a frame that left."""
        self.frames_sent += 1
        self.bytes_sent += len(frame)

    def received(self, frame: bytes) -> None:
        """Count a frame that was handed to the caller."""
        self.frames_received += 1
        self.bytes_received += len(frame)


class Channel(ABC):
    """One end of a duplex link. Usable as a context manager that closes it."""

    def __init__(self, spec: ChannelSpec) -> None:
        self.spec = spec
        self._stats = ChannelStats()

    @abstractmethod
    def send(self, frame: bytes, timeout_s: float) -> None:
        """Hand over one frame; it arrives unless an end dies. timeout_s 0 tries once.

        Raises `DeadlineExceeded` when the peer's queue is full until then (the frame was not taken), `ChannelClosed`
        when an end is gone, `ChannelError` when the frame is larger than the spec allows.
        """

    @abstractmethod
    def recv(self, timeout_s: float) -> bytes | None:
        """The next frame, or None when none arrived in time.

        Raises `ChannelClosed` when this end was closed, or when the other is gone and all that arrived was received.
        """

    @abstractmethod
    def close(self) -> None:
        """Leave. The peer drains what arrived, then sees `ChannelClosed`; a waiting thread of this end wakes. Twice is
        fine."""

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether an end is known to be gone (frames may still be waiting)."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether `recv(0)` would return a frame or raise. Never waits."""

    @abstractmethod
    def arm(self) -> Mapping[int, int]:
        """Descriptors and poll events that fire when `ready()` may have become true. Pair with `disarm`."""

    @abstractmethod
    def disarm(self) -> None:
        """Stop waiting: the descriptors of the last `arm` may be closed from now on."""

    @property
    def stats(self) -> ChannelStats:
        """A copy of this end's counts."""
        return replace(self._stats)

    def refuse_oversize(self, frame: bytes) -> None:
        """Raise `ChannelError` when `frame` is larger than the spec allows."""
        if len(frame) > self.spec.max_frame_bytes:
            self._stats.refused += 1
            raise ChannelError(
                f"link {self.spec.link!r}: frame of {len(frame)} bytes; allowed: {self.spec.max_frame_bytes}"
            )

    def refuse_full(self) -> DeadlineExceeded:
        """Count a refusal; the error to raise."""
        self._stats.refused += 1
        return DeadlineExceeded(f"link {self.spec.link!r}: the peer has not read {self.spec.capacity} frames in time")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Listener(ABC):
    """Where one end waits for the other. `spec` is complete: hand it to `connect`. `refused` counts reasons."""

    def __init__(self, spec: ChannelSpec) -> None:
        self.spec = spec
        self.refused: Counter[str] = Counter()

    @abstractmethod
    def accept(self, timeout_s: float) -> Channel:
        """The next peer that proves itself; others are counted in `refused`. Raises `DeadlineExceeded`."""

    @abstractmethod
    def close(self) -> None:
        """Stop listening. Channels already accepted go on."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wait_any(channels: Sequence[Channel], timeout_s: float) -> list[Channel]:
    """The channels on which `recv(0)` has something to say (a frame or the end); [] when none until `timeout_s`.

    Sleeps in one `poll` over all of them, whatever their backends.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = [channel for channel in channels if channel.ready()]
        remaining = deadline - time.monotonic()
        if found or remaining <= 0:
            return found
        poller = select.poll()
        armed: list[Channel] = []
        try:
            for channel in channels:
                armed.append(channel)
                for fd, events in channel.arm().items():
                    poller.register(fd, events)
            poller.poll(milliseconds(remaining))
        finally:
            for channel in armed:
                channel.disarm()


def milliseconds(seconds: float) -> float:
    """Seconds for `poll`, which rounds up by itself, cut to what a C int holds."""
    return min(max(seconds, 0.0) * 1000, 2**31 - 1)
