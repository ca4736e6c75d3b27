"""Channels inside one process: two bounded queues. For stages of one process, and to wake a loop (`actors/bell.py`);
also the model of the rest.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from dataclasses import dataclass, field, replace

from cascade_runtime.channels import hello
from cascade_runtime.channels.base import ChannelSpec, Listener
from cascade_runtime.channels.inbox import Inbox
from cascade_runtime.channels.inbox_channel import InboxChannel
from cascade_runtime.errors import ChannelError, DeadlineExceeded

_BACKLOG = 16
_listeners: dict[str, LocalListener] = {}
_listeners_lock = threading.Lock()


class LocalChannel(InboxChannel):
    """One end of a pair of queues."""

    def __init__(self, spec: ChannelSpec, mine: Inbox, theirs: Inbox) -> None:
        super().__init__(spec, mine)
        self._theirs = theirs

    def send(self, frame: bytes, timeout_s: float) -> None:
        self.refuse_oversize(frame)
        self.refuse_closed()
        if not self._theirs.put(bytes(frame), timeout_s):
            raise self.refuse_full()
        self._stats.sent(frame)

    def close(self) -> None:
        self._inbox.abandon()
        self._theirs.finish("the peer closed it")


def pair(spec: ChannelSpec) -> tuple[LocalChannel, LocalChannel]:
    """The two ends of one link."""
    a, b = Inbox(spec.link, spec.capacity), Inbox(spec.link, spec.capacity)
    return LocalChannel(spec, a, b), LocalChannel(spec, b, a)


@dataclass
class _Knock:
    """One peer at the door: its hello, and where it waits for its end of the pair (None: refused)."""

    challenged: bytes
    said: bytes
    answer: queue.SimpleQueue[LocalChannel | None] = field(default_factory=queue.SimpleQueue)
    lock: threading.Lock = field(default_factory=threading.Lock)
    left: bool = False


class LocalListener(Listener):
    """Waits for a `connect` of another thread."""

    def __init__(self, spec: ChannelSpec) -> None:
        super().__init__(replace(spec, address=f"local:{uuid.uuid4().hex}"))
        self._door: queue.Queue[_Knock] = queue.Queue(_BACKLOG)
        with _listeners_lock:
            _listeners[self.spec.address] = self

    def accept(self, timeout_s: float) -> LocalChannel:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                knock = self._door.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                raise DeadlineExceeded(f"link {self.spec.link!r}: nobody connected in time") from None
            reason = hello.refusal(self.spec, knock.challenged, knock.said)
            with knock.lock:
                if reason is None and not knock.left:
                    mine, theirs = pair(self.spec)
                    knock.answer.put(theirs)
                    return mine
            self.refused[reason or "timeout"] += 1
            knock.answer.put(None)

    def close(self) -> None:
        with _listeners_lock:
            _listeners.pop(self.spec.address, None)

    def knock(self, knock: _Knock) -> None:
        """Called by the connecting thread. Raises `queue.Full`."""
        self._door.put_nowait(knock)


def connect(spec: ChannelSpec, timeout_s: float) -> LocalChannel:
    """Join the listener of `spec` in this process. Raises `ChannelError` when refused, `DeadlineExceeded`."""
    with _listeners_lock:
        listener = _listeners.get(spec.address)
    if listener is None:
        raise ChannelError(f"link {spec.link!r}: nobody listens at {spec.address!r} in this process")
    challenged = hello.challenge()
    knock = _Knock(challenged, hello.hello(spec, challenged) or b"")
    try:
        listener.knock(knock)
        channel = knock.answer.get(timeout=timeout_s)
    except (queue.Full, queue.Empty):
        with knock.lock:
            knock.left = knock.answer.empty()
        if knock.left:
            raise DeadlineExceeded(f"link {spec.link!r}: not accepted in time") from None
        channel = knock.answer.get()
    if channel is None:
        raise ChannelError(f"link {spec.link!r}: refused: not the listener's secret, link, epoch or limits")
    return channel
