"""Channels over Ray actor calls, public API only: slow (about 1 ms a frame), and the oracle the others are checked by.

    send: credit -> peer.__ray_call__(_push, number, frame) ..... Inbox, put in order by number -> recv -> _credit call

Both ends must be actors with `max_concurrency` >= 3, since a frame is delivered by a method of the receiving actor that
runs beside its loop. Calls of one caller may overtake each other there, so frames carry numbers. Ray does not report a
peer's death to a receiver: a thread per channel asks the peer whether it is there every `_PING_S`; a killed process is
reported by Ray within one to two seconds. Frames are bytes inside Ray's own protocol, which its token protects.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from cascade_runtime.channels import hello
from cascade_runtime.channels.base import ChannelSpec, Listener
from cascade_runtime.channels.inbox import Inbox
from cascade_runtime.channels.inbox_channel import InboxChannel
from cascade_runtime.errors import ChannelError, ConfigError, DeadlineExceeded

_PING_S = 0.25
_BACKLOG = 16
_doors: dict[str, CallListener] = {}
_ends: dict[str, CallChannel] = {}


class CallChannel(InboxChannel):
    """One end, reached under `key` in its process."""

    def __init__(self, spec: ChannelSpec, key: str, peer: Any, peer_key: str) -> None:
        super().__init__(spec, Inbox(spec.link, spec.capacity))
        self._key, self._peer, self._peer_key = key, peer, peer_key
        self._changed = threading.Condition()
        self._credits = spec.capacity
        self._sent = self._due = self._owed = 0
        self._last: int | None = None  # the peer closed after this many frames
        self._early: dict[int, bytes] = {}
        self._welcomes: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._gone = threading.Event()
        _ends[key] = self

    def watch(self) -> None:
        """Start asking whether the peer is there."""
        threading.Thread(target=self._watch, name=f"watch-{self.spec.link}", daemon=True).start()

    def send(self, frame: bytes, timeout_s: float) -> None:
        self.refuse_oversize(frame)
        with self._changed:
            self._changed.wait_for(lambda: self._credits or self._inbox.reason is not None, timeout_s)
            self.refuse_closed()
            if not self._credits:
                raise self.refuse_full()
            self._credits -= 1
            self._tell(_push, self._sent, bytes(frame))
            self._sent += 1
            self._stats.sent(frame)

    def recv(self, timeout_s: float) -> bytes | None:
        frame = super().recv(timeout_s)
        if frame is not None:
            self._owed += 1
            if self._owed >= max(1, self.spec.capacity // 4):
                self._tell(_credit, self._owed)
                self._owed = 0
        return frame

    def close(self) -> None:
        if _ends.pop(self._key, None) is None:
            return
        self._gone.set()
        self._inbox.abandon()
        self._notify()
        self._tell(_finish, self._sent)

    # -- called for the peer, in threads of this actor -----------------------------------------------------------------

    def push(self, number: int, frame: bytes) -> None:
        """A frame of the peer arrived, perhaps before an earlier one."""
        with self._changed:
            if len(frame) > self.spec.max_frame_bytes or not self._due <= number < self._due + self.spec.capacity:
                self.finish_now("broken off: the peer sent more than it was granted")
                return
            self._early[number] = frame
            while self._due in self._early and not self.closed:
                if not self._inbox.put(self._early.pop(self._due), 0):
                    self.finish_now("broken off: the peer sent more than it was granted")
                    return
                self._due += 1
            self._finish_if_complete()

    def credit(self, count: int) -> None:
        """The peer read `count` frames."""
        with self._changed:
            self._credits = min(self._credits + count, self.spec.capacity)
            self._changed.notify_all()

    def finish(self, last: int) -> None:
        """The peer closed after `last` frames, of which some may still be on their way."""
        with self._changed:
            self._last = last
            self._finish_if_complete()

    def welcome(self, proof: bytes) -> None:
        """The listener's answer to the hello; empty when it refused."""
        self._welcomes.put(proof)

    def await_welcome(self, timeout_s: float) -> bytes:
        """Raises `queue.Empty`."""
        return self._welcomes.get(timeout=timeout_s)

    def finish_now(self, reason: str) -> None:
        """No more will come, whatever is missing."""
        self._inbox.finish(reason)
        self._notify()

    def _finish_if_complete(self) -> None:
        if self._last is not None and self._due >= self._last:
            self.finish_now("the peer closed it")

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _tell(self, what: Callable[..., None], *args: object) -> None:
        self._peer.__ray_call__.remote(what, self._peer_key, *args)

    def _watch(self) -> None:
        missed = 0
        while not self._gone.wait(_PING_S) and not self.closed:
            try:
                there = ray.get(self._peer.__ray_call__.remote(_is_there, self._peer_key), timeout=10 * _PING_S)
            except GetTimeoutError:
                continue  # stopped or busy: the pipeline's progress watchdog judges that
            except RayActorError:
                self.finish_now("the peer died")
            except RayError as error:
                self.finish_now(f"the peer cannot be asked ({type(error).__name__})")
            else:
                missed = 0 if there else missed + 1
                if missed > 1:  # its farewell had time to arrive
                    self.finish_now("the peer closed it")


@dataclass(frozen=True)
class _Knock:
    """A peer at the door."""

    challenged: bytes
    said: bytes
    key: str
    actor: Any


class CallListener(Listener):
    """Waits in an actor for calls of other actors."""

    def __init__(self, spec: ChannelSpec) -> None:
        super().__init__(replace(spec, address=f"call:{uuid.uuid4().hex}", actor=_own_handle()))
        self._challenges: dict[bytes, None] = {}
        self._door: queue.Queue[_Knock] = queue.Queue(_BACKLOG)
        _doors[self.spec.address] = self

    def accept(self, timeout_s: float) -> CallChannel:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                knock = self._door.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                raise DeadlineExceeded(f"link {self.spec.link!r}: nobody connected in time") from None
            fresh = self._challenges.pop(knock.challenged, False) is None
            reason = hello.refusal(self.spec, knock.challenged, knock.said) if fresh else "magic"
            if reason is None:
                channel = CallChannel(self.spec, uuid.uuid4().hex, knock.actor, knock.key)
                proof = hello.welcome(self.spec, knock.challenged, knock.said)
                knock.actor.__ray_call__.remote(_welcome, knock.key, channel._key, proof)
                channel.watch()
                return channel
            self.refused[reason] += 1
            knock.actor.__ray_call__.remote(_welcome, knock.key, "", b"")

    def close(self) -> None:
        _doors.pop(self.spec.address, None)

    def challenge(self) -> bytes:
        """A challenge that one hello may answer; only the newest few are remembered."""
        while len(self._challenges) >= _BACKLOG:
            self._challenges.pop(next(iter(self._challenges)), None)
        challenged = hello.challenge()
        self._challenges[challenged] = None
        return challenged

    def knock(self, knock: _Knock) -> bool:
        """Whether there was room at the door."""
        try:
            self._door.put_nowait(knock)
        except queue.Full:
            return False
        return True


def connect(spec: ChannelSpec, timeout_s: float) -> CallChannel:
    """Join the listener of `spec` from another actor. Raises `ChannelError` when refused, `DeadlineExceeded`."""
    deadline = time.monotonic() + timeout_s
    own = _own_handle()
    channel = CallChannel(spec, uuid.uuid4().hex, spec.actor, "")
    try:
        challenged = _ask(spec, deadline, _challenge, spec.address)
        said = hello.hello(spec, challenged) if challenged else None
        if said is None or not _ask(spec, deadline, _knock, spec.address, challenged, said, channel._key, own):
            raise ChannelError(f"link {spec.link!r}: nobody listens at {spec.address}, or its door is full")
        try:
            proof = channel.await_welcome(max(deadline - time.monotonic(), 0))
        except queue.Empty:
            raise DeadlineExceeded(f"link {spec.link!r}: not accepted in time") from None
        if not hello.welcomed(spec, challenged, said, proof):
            raise ChannelError(f"link {spec.link!r}: refused: not the listener's secret, link, epoch or limits")
    except (ChannelError, DeadlineExceeded):
        channel.close()
        raise
    channel.watch()
    return channel


def _own_handle() -> Any:
    try:
        return ray.get_runtime_context().current_actor
    except RuntimeError:
        raise ConfigError("channel.backend", "call", "ends that are Ray actors; this process is not one") from None


def _ask(spec: ChannelSpec, deadline: float, what: Callable[..., Any], *args: object) -> Any:
    try:
        call = spec.actor.__ray_call__.remote(what, *args)
        return ray.get(call, timeout=max(deadline - time.monotonic(), 0))
    except GetTimeoutError:
        raise DeadlineExceeded(f"link {spec.link!r}: the listening actor did not answer in time") from None
    except RayActorError as error:
        raise ChannelError(f"link {spec.link!r}: the listening actor is dead") from error


# What one actor runs in another: the first argument is the actor's instance, which is none of our business.


def _challenge(_: object, address: str) -> bytes | None:
    door = _doors.get(address)
    return door.challenge() if door else None


def _knock(_: object, address: str, challenged: bytes, said: bytes, key: str, actor: Any) -> bool:
    door = _doors.get(address)
    return door is not None and door.knock(_Knock(challenged, said, key, actor))


def _welcome(_: object, key: str, peer_key: str, proof: bytes) -> None:
    if key in _ends:
        _ends[key]._peer_key = peer_key
        _ends[key].welcome(proof)


def _push(_: object, key: str, number: int, frame: bytes) -> None:
    if key in _ends:
        _ends[key].push(number, frame)


def _credit(_: object, key: str, count: int) -> None:
    if key in _ends:
        _ends[key].credit(count)


def _finish(_: object, key: str, last: int) -> None:
    if key in _ends:
        _ends[key].finish(last)


def _is_there(_: object, key: str) -> bool:
    return key in _ends
