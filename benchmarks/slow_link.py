"""`SlowLink`: two network namespaces with a link between them that delays, loses, narrows and breaks, packet by packet.

What `tc netem` does in the kernel, done here in user space between two TUN devices, because many small kernels have no
netem. Per direction: a packet is lost by chance, waits for its turn at `mbit_s` behind at most `QUEUE` others, then
`delay_ms`; a cut loses everything. Linux, root.
"""

from __future__ import annotations

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

QUEUE = 400
"""Packets that may wait for their turn; more are lost, as at a full router."""
CORE, EDGE = "10.77.9.1", "10.77.9.2"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_MTU = 1500


class SlowLink:
    """The link; its namespaces are `names`: core, edge. Change the fields at any time."""

    def __init__(self) -> None:
        self.delay_ms = self.loss = 0.0
        self.mbit_s: float | None = None
        self.cut = False
        self.names = (f"core{os.getpid()}", f"edge{os.getpid()}")
        self._stop = threading.Event()

    def set(self, *, delay_ms: float = 0.0, loss: float = 0.0, mbit_s: float | None = None) -> None:
        """From now on."""
        self.delay_ms, self.loss, self.mbit_s, self.cut = delay_ms, loss, mbit_s, False

    def inside(self, end: int, *command: str) -> list[str]:
        """A command within a namespace: 0 the core's, 1 the edge's."""
        return ["ip", "netns", "exec", self.names[end], *command]

    @contextlib.contextmanager
    def up(self) -> Iterator[SlowLink]:
        """Both namespaces and the link, removed again. Raises `OSError`, `SubprocessError` where it is not allowed."""
        descriptors: list[int] = []
        try:
            for end, address in enumerate((CORE, EDGE)):
                _run("ip", "netns", "add", self.names[end])
                descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
                descriptors.append(descriptor)
                request = struct.pack("16sH", self.names[end].encode(), _IFF_TUN | _IFF_NO_PI)
                fcntl.ioctl(descriptor, _TUNSETIFF, request)
                _run("ip", "link", "set", self.names[end], "netns", self.names[end])
                _run(*self.inside(end, "ip", "addr", "add", f"{address}/24", "dev", self.names[end]))
                _run(*self.inside(end, "ip", "link", "set", self.names[end], "mtu", str(_MTU), "up"))
                _run(*self.inside(end, "ip", "link", "set", "lo", "up"))
            relay = threading.Thread(target=self._relay, args=(descriptors,), daemon=True)
            relay.start()
            yield self
            self._stop.set()
            relay.join(5)
        finally:
            self._stop.set()
            for descriptor in descriptors:
                os.close(descriptor)
            for name in self.names:
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def _relay(self, descriptors: list[int]) -> None:
        chance, counter = random.Random(7), 0
        under_way: list[tuple[float, int, int, bytes]] = []  # (when it arrives, order, where, packet)
        free_at = [0.0, 0.0]
        while not self._stop.is_set():
            wait_s = 0.05 if not under_way else min(0.05, max(0.0, under_way[0][0] - time.monotonic()))
            ready, _, _ = select.select(descriptors, [], [], wait_s)
            now = time.monotonic()
            for descriptor in ready:
                end = descriptors.index(descriptor)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        packet = os.read(descriptor, 65_536)
                        if self.cut or chance.random() < self.loss:
                            continue
                        turn_s = 8 * len(packet) / (1e6 * self.mbit_s) if self.mbit_s else 0.0
                        begins = max(now, free_at[end])
                        if turn_s and begins - now > QUEUE * 8 * _MTU / (1e6 * (self.mbit_s or 1.0)):
                            continue
                        free_at[end] = begins + turn_s
                        arrives, counter = free_at[end] + self.delay_ms / 1000, counter + 1
                        heapq.heappush(under_way, (arrives, counter, 1 - end, packet))
            now = time.monotonic()
            while under_way and under_way[0][0] <= now:
                _, _, end, packet = heapq.heappop(under_way)
                with contextlib.suppress(OSError):
                    os.write(descriptors[end], packet)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=20)
