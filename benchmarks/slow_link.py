"""`SlowLink`: two network namespaces with a link between them that delays, loses, narrows and breaks, packet by packet.

`NetemLink` is a pair of virtual cards with `tc netem` at both ends. `TunLink` does in user space, between two TUN
devices, what netem does, because many small kernels have none. Per direction either way: a packet is lost by chance,
waits for its turn at `mbit_s` behind at most `QUEUE` others, then `delay_ms`; a cut loses everything. Linux, root.
"""

from __future__ import annotations

import abc
import contextlib
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

QUEUE = 400
"""Packets that may wait for their turn; more are lost, as at a full router."""
CORE, EDGE = "10.77.9.1", "10.77.9.2"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_MTU = 1500


@dataclass(frozen=True)
class LinkState:
    """What a link does, the same in both directions. delay_ms: one way. loss: of packets, a probability."""

    delay_ms: float = 0.0
    loss: float = 0.0
    mbit_s: float | None = None
    cut: bool = False


OPEN = LinkState()


class SlowLink(abc.ABC):
    """The link; its namespaces are `names`: core, edge."""

    def __init__(self) -> None:
        self.names = (f"core{os.getpid()}", f"edge{os.getpid()}")

    @abc.abstractmethod
    def set(self, state: LinkState) -> None:
        """From now on."""

    @abc.abstractmethod
    def _joined(self) -> contextlib.AbstractContextManager[None]:
        """Make a device named as its namespace and put it there, at both ends."""

    def inside(self, end: int, *command: str) -> list[str]:
        """A command within a namespace: 0 the core's, 1 the edge's."""
        return ["ip", "netns", "exec", self.names[end], *command]

    @contextlib.contextmanager
    def up(self) -> Iterator[None]:
        """Both namespaces and the link, removed again. Raises `OSError`, `SubprocessError` where it is not allowed."""
        try:
            for name in self.names:
                _run("ip", "netns", "add", name)
            with self._joined():
                for end, address in enumerate((CORE, EDGE)):
                    _run(*self.inside(end, "ip", "addr", "add", f"{address}/24", "dev", self.names[end]))
                    _run(*self.inside(end, "ip", "link", "set", self.names[end], "mtu", str(_MTU), "up"))
                    _run(*self.inside(end, "ip", "link", "set", "lo", "up"))
                self.set(OPEN)
                yield
        finally:
            for name in self.names:
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


class NetemLink(SlowLink):
    """By the kernel: `tc qdisc .. netem` on a veth pair, whose packets are those of the wire (no offload)."""

    @contextlib.contextmanager
    def _joined(self) -> Iterator[None]:
        core, edge = self.names
        _run("ip", "link", "add", core, "netns", core, "type", "veth", "peer", "name", edge, "netns", edge)
        for end, name in enumerate(self.names):
            _run(*self.inside(end, "ip", "link", "set", name, "gso_max_size", str(_MTU), "gso_max_segs", "1"))
        yield

    def set(self, state: LinkState) -> None:
        """From now on."""
        rate = [] if state.mbit_s is None else ["rate", f"{state.mbit_s:g}mbit"]
        loss = 100.0 if state.cut else 100 * state.loss
        queue = 100_000 if state.mbit_s is None else QUEUE  # of all packets under way, not only those that wait
        rule = ["limit", str(queue), "delay", f"{state.delay_ms:g}ms", "loss", f"{loss:g}%", *rate]
        for end, name in enumerate(self.names):
            _run(*self.inside(end, "tc", "qdisc", "replace", "dev", name, "root", "netem", *rule))


class TunLink(SlowLink):
    """By a thread of this process."""

    def __init__(self) -> None:
        super().__init__()
        self._state = OPEN
        self._stop = threading.Event()

    def set(self, state: LinkState) -> None:
        """From now on."""
        self._state = state

    @contextlib.contextmanager
    def _joined(self) -> Iterator[None]:
        descriptors: list[int] = []
        relay = threading.Thread(target=self._relay, args=(descriptors,), daemon=True)
        try:
            for name in self.names:
                descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
                descriptors.append(descriptor)
                request = struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI)
                fcntl.ioctl(descriptor, _TUNSETIFF, request)
                _run("ip", "link", "set", name, "netns", name)
            relay.start()
            yield
        finally:
            self._stop.set()
            if relay.is_alive():
                relay.join(5)
            for descriptor in descriptors:
                os.close(descriptor)

    def _relay(self, descriptors: list[int]) -> None:
        chance, counter = random.Random(7), 0
        under_way: list[tuple[float, int, int, bytes]] = []  # (when it arrives, order, where, packet)
        free_at = [0.0, 0.0]
        while not self._stop.is_set():
            wait_s = 0.05 if not under_way else min(0.05, max(0.0, under_way[0][0] - time.monotonic()))
            ready, _, _ = select.select(descriptors, [], [], wait_s)
            now, state = time.monotonic(), self._state
            for descriptor in ready:
                end = descriptors.index(descriptor)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        packet = os.read(descriptor, 65_536)
                        if state.cut or chance.random() < state.loss:
                            continue
                        turn_s = 8 * len(packet) / (1e6 * state.mbit_s) if state.mbit_s else 0.0
                        begins = max(now, free_at[end])
                        if turn_s and begins - now > QUEUE * 8 * _MTU / (1e6 * (state.mbit_s or 1.0)):
                            continue
                        free_at[end] = begins + turn_s
                        arrives, counter = free_at[end] + state.delay_ms / 1000, counter + 1
                        heapq.heappush(under_way, (arrives, counter, 1 - end, packet))
            now = time.monotonic()
            while under_way and under_way[0][0] <= now:
                _, _, end, packet = heapq.heappop(under_way)
                with contextlib.suppress(OSError):
                    os.write(descriptors[end], packet)


LINKS = {"netem": NetemLink, "tun": TunLink}


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=20)
