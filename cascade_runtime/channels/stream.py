"""Channels over a stream socket: a unix socket within a node, TCP (`tcp:HOST:PORT`) across nodes.

    send -> out buffer -> socket ......... socket -> FrameParser -> inbox -> recv
      ^---- credits <---------------------------------- one per frame read ----'

No thread of its own: whoever waits on an end does that end's reading and writing, without blocking and under one lock.
A sender spends a credit per frame and starts with `capacity` of them; the reader gives them back in quarters of the
capacity, or on the back of a frame that goes the other way. So a sender that is refused has at least 3/4 of `capacity`
frames unread at the peer, and never more than `capacity`. A frame that was taken but does not fit the kernel's buffer
before the deadline stays in the out buffer, and leaves when this end is next used.

EOF is the peer's death, seen at once on a node. A TCP peer whose host vanished sends none: keepalive ends it in about
ten seconds, the pipeline's progress watchdog earlier.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping

from cascade_runtime.channels import framing
from cascade_runtime.channels.base import Channel, ChannelSpec, milliseconds
from cascade_runtime.channels.wake import Wake
from cascade_runtime.errors import ChannelClosed, ChannelError

_READ_BYTES = 1 << 16
_LAST_FLUSH_S = 1.0  # how long `close` may go on writing what was already taken


class StreamChannel(Channel):
    """One end, over a connected socket that it takes over.

    Subclasses that carry the payload another way override `pack` and `unpack`, and pass the size of what they put on
    the wire as `max_wire_bytes`.
    """

    def __init__(self, spec: ChannelSpec, sock: socket.socket, max_wire_bytes: int | None = None) -> None:
        super().__init__(spec)
        sock.setblocking(False)
        self._sock = sock
        self._lock = threading.RLock()
        self._parser = framing.FrameParser(max_wire_bytes or spec.max_frame_bytes)
        self._chunk = memoryview(bytearray(_READ_BYTES))
        self._inbox: deque[bytes] = deque()
        self._out = bytearray()
        self._credits = spec.capacity
        self._owed = 0
        self._grant_at = max(1, spec.capacity // 4)
        self._reason: str | None = None
        self._left = False  # closed by this end
        self._reader_wake, self._writer_wake = Wake(), Wake()
        self._readers = self._writers = 0  # waiting now; descriptors stay open for them

    def pack(self, frame: bytes) -> bytes:
        """What goes on the wire for a frame. Called in order, one at a time."""
        return frame

    def unpack(self, payload: bytes) -> bytes:
        """The frame of what came off the wire. Called in order, before the slot is credited to the sender."""
        return payload

    # -- the channel -------------------------------------------------------------------------------------------------

    def send(self, frame: bytes, timeout_s: float) -> None:
        self.refuse_oversize(frame)
        deadline = time.monotonic() + timeout_s
        taken = False
        while True:
            with self._lock:
                if not taken and (self._out or not self._credits):
                    self._pump()
                if self._reason is not None:
                    raise ChannelClosed(f"link {self.spec.link!r}: {self._reason}")
                if not taken and self._credits and not self._out:
                    taken = True
                    self._take(frame)
                if taken and not self._out:
                    return
                events = self._arm_writer()
            try:
                waited = _poll(events, deadline)
            finally:
                self._disarm_writer()
            if not waited and taken:
                return
            if not waited:
                raise self.refuse_full()
            with self._lock:
                self._pump()

    def recv(self, timeout_s: float) -> bytes | None:
        deadline = time.monotonic() + timeout_s
        while True:
            with self._lock:
                if not self._inbox or self._out:
                    self._pump()
                if self._left:
                    raise ChannelClosed(f"link {self.spec.link!r}: {self._reason}")
                if self._inbox:
                    return self._read()
                if self._reason is not None:
                    raise ChannelClosed(f"link {self.spec.link!r}: {self._reason}")
                events = self.arm()
            try:
                if not _poll(events, deadline):
                    return None
            finally:
                self.disarm()

    def close(self) -> None:
        deadline = time.monotonic() + _LAST_FLUSH_S
        while self._reason is None and self._out:  # taken frames still have to leave
            with self._lock:
                events = self._arm_writer()
            try:
                waited = _poll(events, deadline)
            finally:
                self._disarm_writer()
            if not waited:
                break
            with self._lock:
                self._pump()
        with self._lock:
            if self._left:
                return
            self._pump()  # a TCP socket closed with unread bytes would tear down what the peer has not read yet
            self._left = True
            self._inbox.clear()
            self._end("this end was closed")
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)  # the peer need not wait for a thread that still polls here
            self._drop()

    @property
    def closed(self) -> bool:
        return self._reason is not None

    def ready(self) -> bool:
        with self._lock:
            if not self._inbox or self._out:
                self._pump()
            return bool(self._inbox) or self._reason is not None

    def arm(self) -> Mapping[int, int]:
        with self._lock:
            self._readers += 1
            return self._events(self._reader_wake)

    def disarm(self) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers:
                self._reader_wake.clear()
            self._drop()

    def fileno(self) -> int:
        """The socket's descriptor (-1 once closed)."""
        return self._sock.fileno()

    # -- under the lock ----------------------------------------------------------------------------------------------

    def _take(self, frame: bytes) -> None:
        self._credits -= 1
        if self._owed:
            self._out += framing.credit(self._owed)
            self._owed = 0
        self._out += framing.frame(self.pack(frame))
        self._stats.sent(frame)
        self._flush()

    def _read(self) -> bytes:
        frame = self.unpack(self._inbox.popleft())
        self._stats.received(frame)
        self._owed += 1
        if self._owed >= self._grant_at:
            self.grant()
        return frame

    def grant(self) -> None:
        """Give back what is owed now, unless a frame is stuck half-way (then with the next chance)."""
        with self._lock:
            if self._owed and not self._out and self._reason is None:
                self._out += framing.credit(self._owed)
                self._owed = 0
                self._flush()

    def _pump(self) -> None:
        """Write and read whatever goes without blocking."""
        if self._reason is None:
            self._flush()
        self._drain()

    def _drain(self) -> None:
        while self._reason is None:
            try:
                count = self._sock.recv_into(self._chunk)
            except BlockingIOError:
                return
            except OSError as error:
                self._end(f"the peer is gone ({error.strerror})")
                return
            if count == 0:
                self._end("the peer closed it or died")
                return
            self._parse(self._chunk[:count])
            if count < _READ_BYTES:
                return

    def _parse(self, data: memoryview) -> None:
        try:
            frames, credits = self._parser.feed(data)
            if credits + self._credits > self.spec.capacity:
                raise ChannelError("the peer granted more than it took")
            if len(frames) + len(self._inbox) > self.spec.capacity:
                raise ChannelError("the peer sent more than it was granted")
        except ChannelError as error:
            self._end(f"broken off: {error}")
            return
        self._credits += credits
        self._inbox += frames
        if frames and self._readers:
            self._reader_wake.set()
        if credits and self._writers:
            self._writer_wake.set()

    def _flush(self) -> None:
        while self._out and self._reason is None:
            try:
                sent = self._sock.send(self._out)
            except BlockingIOError:
                return
            except OSError as error:
                self._out.clear()
                self._drain()  # what arrived before is still read
                self._end(f"the peer is gone ({error.strerror})")
                return
            del self._out[:sent]

    def _end(self, reason: str) -> None:
        if self._reason is None:
            self._reason = reason
            self._out.clear()
            if self._readers:
                self._reader_wake.set()
            if self._writers:
                self._writer_wake.set()

    def _arm_writer(self) -> Mapping[int, int]:
        with self._lock:
            self._writers += 1
            return self._events(self._writer_wake)

    def _disarm_writer(self) -> None:
        with self._lock:
            self._writers -= 1
            if not self._writers:
                self._writer_wake.clear()
            self._drop()

    def _events(self, wake: Wake) -> dict[int, int]:
        if self._sock.fileno() < 0:
            return {}
        return {self._sock.fileno(): select.POLLIN | (select.POLLOUT if self._out else 0), wake.fileno(): select.POLLIN}

    def _drop(self) -> None:
        """Give the descriptors back, once this end was closed and no thread sleeps on them."""
        if self._left and not self._readers and not self._writers:
            self._sock.close()
            self._reader_wake.close()
            self._writer_wake.close()


def _poll(events: Mapping[int, int], deadline: float) -> bool:
    """Sleep until one fires; whether one did."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        return False
    poller = select.poll()
    for fd, mask in events.items():
        poller.register(fd, mask)
    return bool(poller.poll(milliseconds(remaining)))
