"""Channels through Ray's object store: a frame lies in a mutable object, a doorbell on a unix socket says so.

    send: credit -> write slot k -> doorbell (4 bytes) ....... doorbell -> read slot k, copy, release -> credit -> recv

A ring of `capacity` mutable objects per direction, each written by one process and read by one. The credits of the
stream channel underneath say which are free and its doorbells which are full, so neither end ever waits inside Ray's
channel (whose blocked reader burns a core), peer death is the socket's EOF, and `wait_any` polls as ever. One node.

The one file that uses Ray's mutable objects: alpha, private below the `Channel` class (Ray 2.60). That class is avoided
because it wants actor handles of both ends, pickles itself to travel, and grows by silently making new objects. Found
by experiment, and what is done about each:

- A mutable object is never freed before its writer's process ends. Slots are pooled per peer process and used again.
- Only the process that has read it from the first write on may read it ("Reader missed a value"), so the slots shared
  with a process that died stay unused: capacity x max_frame_bytes per death of a peer (4 MB by default), until this
  process ends. Where the store has no room for an end's slots, both ends learn it before the first frame, and the
  link carries its frames through the socket, as `stream` does (`in_store` is False): slower, and nothing else.
  Unless it is told otherwise, Ray goes on in files where its store is full: an 80 MB store took 10 GB without an error.
- A slot left unread cannot be written, so the reader empties the suspect ones when they are agreed on again. An older
  link that had not drained them ends there.
- To register as the reader of an object that is not there kills the process, and no call tells beforehand (an unsealed
  object of somebody else's does not "exist" to Ray). Ids come only from a peer that proved the secret, and the peer is
  seen to be alive before each registration: it would have to die, and Ray to notice, within those microseconds.
- A slot whose writer died is still read safely: the reader's registration pins it.
- Ray leaves two 32-byte semaphores a slot in /dev/shm when a writer is killed.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from dataclasses import dataclass
from secrets import token_bytes
from typing import Any

import ray
from ray._private.worker import global_worker
from ray.exceptions import (
    ObjectStoreFullError,
    OutOfDiskError,
    RayChannelError,
    RayChannelTimeoutError,
    RaySystemError,
)
from ray.experimental.channel.shared_memory_channel import _create_channel_ref

from cascade_runtime.channels import stream_listener
from cascade_runtime.channels.base import ChannelSpec
from cascade_runtime.channels.stream import StreamChannel
from cascade_runtime.errors import CapacityError, ChannelClosed, ChannelError, ConfigError, DeadlineExceeded

log = logging.getLogger(__name__)

MAX_CAPACITY = 1024
_TOKEN_BYTES = 16
_ID_BYTES = 28
_ENTRY_BYTES = _ID_BYTES + 1  # an object id, and whether it may hold a frame nobody will ask for
_NO_SLOT = bytes(_ENTRY_BYTES)  # Ray's id of nothing
_SLOT_TIMEOUT_MS = 1000  # a slot is free or full when it is touched: this much only if the peer breaks the protocol
_PROCESS = token_bytes(_TOKEN_BYTES)


@dataclass
class _Slot:
    """One mutable object that this process writes. suspect: its last frame may be unread."""

    ref: ray.ObjectRef[Any]
    suspect: bool = False


class _SlotPool:
    """The slots of this process that no channel uses, by peer process and size."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[tuple[bytes, int], list[_Slot]] = {}

    def take(self, peer: bytes, size_bytes: int, count: int) -> tuple[list[_Slot], bytes]:
        """`count` slots, and the entries that tell the peer about them. Raises `CapacityError`: the store is full."""
        with self._lock:
            free = self._free.setdefault((peer, size_bytes), [])
            slots, free[:] = free[:count], free[count:]
        try:
            slots += [_Slot(_new_object(size_bytes)) for _ in range(count - len(slots))]
        except CapacityError:
            self.give_back(peer, size_bytes, slots)
            raise
        return slots, b"".join(slot.ref.binary() + bytes([slot.suspect]) for slot in slots)

    def give_back(self, peer: bytes, size_bytes: int, slots: list[_Slot]) -> None:
        """Slots that no channel of this process will write again."""
        with self._lock:
            self._free.setdefault((peer, size_bytes), []).extend(slots)


_pool = _SlotPool()
_readers: dict[bytes, ObjectStoreChannel] = {}  # by object id: the link that may read it
_readers_lock = threading.Lock()


class ObjectStoreChannel(StreamChannel):
    """One end, over a socket whose ends have proved themselves; agrees with the peer on slots before it is usable.

    in_store: whether frames lie in the store; if not, it had no room, and they go through the socket.
    """

    def __init__(self, spec: ChannelSpec, sock: socket.socket, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        self._peer = _exchange(sock, _PROCESS, deadline)
        self.slot_bytes, self._given_back = spec.max_frame_bytes, False
        nothing = _NO_SLOT * spec.capacity
        try:
            self._slots, entries = _pool.take(self._peer, spec.max_frame_bytes, spec.capacity)
        except CapacityError as error:
            log.warning("link %r goes through its socket: %s", spec.link, error)
            self._slots, entries = [], nothing
        try:
            theirs = _exchange(sock, entries, deadline)
            self.in_store = bool(self._slots) and theirs != nothing
            self._theirs = _register(self, sock, theirs) if self.in_store else []
        except (ChannelError, DeadlineExceeded):
            self._give_back(suspects=spec.capacity, sent=0)
            raise
        if self.in_store:
            for slot in self._slots:
                slot.suspect = False
        else:
            self._give_back(suspects=0, sent=0)
        self._packed = self._unpacked = 0
        super().__init__(spec, sock, max_wire_bytes=1 if self.in_store else None)

    def pack(self, frame: bytes) -> bytes:
        if not self.in_store:
            return frame
        slot = self._slots[self._packed % len(self._slots)]
        try:
            _write(slot.ref, frame, _SLOT_TIMEOUT_MS)
        except (RayChannelError, RayChannelTimeoutError, RaySystemError) as error:
            self._end(f"its slot could not be written ({type(error).__name__})")
            raise ChannelClosed(f"link {self.spec.link!r}: {self._reason}") from error
        self._packed += 1
        return b""

    def unpack(self, payload: bytes) -> bytes:
        if not self.in_store:
            return payload
        ref = self._theirs[self._unpacked % len(self._theirs)]
        try:
            with _readers_lock:
                if _readers.get(ref.binary()) is not self:
                    raise ChannelError("a newer link between these processes has taken the slot over")
                frame = _read(ref, self.spec.max_frame_bytes, _SLOT_TIMEOUT_MS)
        except (RayChannelError, RayChannelTimeoutError, RaySystemError, ChannelError) as error:
            self._inbox.clear()
            self._end(f"its slot could not be read ({type(error).__name__})")
            raise ChannelClosed(f"link {self.spec.link!r}: {self._reason}") from error
        self._unpacked += 1
        return frame

    def close(self) -> None:
        super().close()
        with _readers_lock:
            for ref in self._theirs:
                if _readers.get(ref.binary()) is self:
                    del _readers[ref.binary()]
        with self._lock:
            self._give_back(suspects=self.spec.capacity - self._credits, sent=self._packed)

    def _give_back(self, suspects: int, sent: int) -> None:
        if self._given_back:
            return
        self._given_back = True
        for k in range(sent - suspects, sent) if self._slots else ():  # sent, and not credited: perhaps unread
            self._slots[k % len(self._slots)].suspect = True
        _pool.give_back(self._peer, self.slot_bytes, self._slots)


class ObjectStoreListener(stream_listener.StreamListener):
    """Listens on a unix socket of this node; both ends must be processes of one Ray node."""

    def __init__(self, spec: ChannelSpec) -> None:
        if spec.address:
            raise ConfigError("channel.address", spec.address, "empty: an object-store channel stays on its node")
        if spec.capacity > MAX_CAPACITY:
            raise ConfigError("channel.capacity", spec.capacity, f"1 to {MAX_CAPACITY} for object-store channels")
        super().__init__(spec)

    def accept(self, timeout_s: float) -> ObjectStoreChannel:
        deadline = time.monotonic() + timeout_s
        while True:
            sock = self.accept_socket(deadline - time.monotonic())
            try:
                return ObjectStoreChannel(self.spec, sock, deadline - time.monotonic())
            except (ChannelError, DeadlineExceeded):
                sock.close()
                self.refused["slots"] += 1


def connect(spec: ChannelSpec, timeout_s: float) -> ObjectStoreChannel:
    """Join the listener of `spec`. Raises `ChannelError`, `DeadlineExceeded`."""
    deadline = time.monotonic() + timeout_s
    sock = stream_listener.connect_socket(spec, timeout_s)
    try:
        return ObjectStoreChannel(spec, sock, deadline - time.monotonic())
    except (ChannelError, DeadlineExceeded):
        sock.close()
        raise


def _exchange(sock: socket.socket, mine: bytes, deadline: float) -> bytes:
    """Send a message and receive one of the same size."""
    sock.settimeout(max(deadline - time.monotonic(), 1e-3))
    try:
        sock.sendall(mine)
        theirs = bytearray()
        while len(theirs) < len(mine):
            sock.settimeout(max(deadline - time.monotonic(), 1e-3))
            piece = sock.recv(len(mine) - len(theirs))
            if not piece:
                raise ChannelError("the peer left before the slots were agreed on")
            theirs += piece
        return bytes(theirs)
    except TimeoutError:
        raise DeadlineExceeded("the peer did not agree on slots in time") from None
    except OSError as error:
        raise ChannelError(f"the peer left before the slots were agreed on ({error.strerror})") from None


def _register(reader: ObjectStoreChannel, sock: socket.socket, entries: bytes) -> list[ray.ObjectRef[Any]]:
    """Become the reader of the peer's slots, and empty those that an earlier link left full."""
    refs: list[ray.ObjectRef[Any]] = []
    with _readers_lock:
        for at in range(0, len(entries), _ENTRY_BYTES):
            ref: ray.ObjectRef[Any] = ray.ObjectRef(entries[at : at + _ID_BYTES])
            _check_alive(sock)
            _core().experimental_channel_register_reader(ref)
            _readers[ref.binary()] = reader
            if entries[at + _ID_BYTES]:
                try:
                    _read(ref, reader.slot_bytes, 0)
                except RayChannelTimeoutError:
                    pass  # it was empty
                except (RayChannelError, RaySystemError) as error:
                    raise ChannelError(f"the peer's slot could not be emptied ({type(error).__name__})") from error
            refs.append(ref)
    return refs


def _check_alive(sock: socket.socket) -> None:
    sock.setblocking(False)
    try:
        if sock.recv(1, socket.MSG_PEEK):
            return
    except BlockingIOError:
        return
    except OSError:
        pass
    raise ChannelError("the peer died before its slots were registered")


def _core() -> Any:
    worker: Any = global_worker
    worker.check_connected()
    return worker.core_worker


def _new_object(size_bytes: int) -> ray.ObjectRef[Any]:
    try:
        ref = _create_channel_ref(None, size_bytes)
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise CapacityError(f"the object store has no room for a slot of {size_bytes} bytes") from error
    _core().experimental_channel_register_writer(ref, {})
    return ref


def _write(ref: ray.ObjectRef[Any], data: bytes, timeout_ms: int) -> None:
    serialized = global_worker.get_serialization_context().serialize(bytes(data))
    _core().experimental_channel_put_serialized(serialized, ref, 1, timeout_ms)


def _read(ref: ray.ObjectRef[Any], max_bytes: int, timeout_ms: int) -> bytes:
    """Copy what the slot holds and release it (when the buffer is dropped, on return)."""
    buffer, metadata, *_ = _core().get_objects([ref], timeout_ms)[0]
    if metadata != b"RAW" or (buffer is not None and len(buffer) > max_bytes):
        raise ChannelError("the peer wrote something that is not a frame")
    return b"" if buffer is None else buffer.to_pybytes()
