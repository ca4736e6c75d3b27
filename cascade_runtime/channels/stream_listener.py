"""Where stream channels begin: a unix socket in a directory only its owner may enter, or one TCP address of the node.

    connector                         listener
      connect   ------------------->    accept, at most `_MAX_PENDING` unproven peers at a time
                <-- challenge ------
      hello     ------------------->    refused ones are closed and counted, `accept` goes on
                <-- welcome --------    StreamChannel on both sides

A stranger who says nothing, or too much, or something else costs one pending place for `_HANDSHAKE_S` and nothing more.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass, field, replace

from cascade_runtime.channels import hello
from cascade_runtime.channels.base import ChannelSpec, Listener, milliseconds
from cascade_runtime.channels.stream import StreamChannel
from cascade_runtime.errors import ChannelError, ConfigError, DeadlineExceeded

_HANDSHAKE_S = 2.0
_MAX_PENDING = 16
_LONGEST_UNIX_PATH = 100  # the system's own limit is 104 to 108
_KEEPALIVE = (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 10_000))


@dataclass
class _Pending:
    """A peer that has not proved itself yet."""

    sock: socket.socket
    deadline: float
    challenged: bytes
    said: bytearray = field(default_factory=bytearray)


class StreamListener(Listener):
    """Listens on `spec.address`: empty for a unix socket of its own, or `tcp:HOST:PORT` (port 0: any)."""

    def __init__(self, spec: ChannelSpec) -> None:
        self._folder: str | None = None
        if spec.address:
            family, where = _parse_address(spec.address)
            if family != socket.AF_INET or isinstance(where, str):
                raise ConfigError("channel.address", spec.address, "empty, or tcp:HOST:PORT")
            self._sock = socket.create_server(where, backlog=_MAX_PENDING)
            host, port = self._sock.getsockname()[:2]
            address = f"tcp:{host}:{port}"
        else:
            self._folder = _private_folder()
            path = os.path.join(self._folder, "link")
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._sock.bind(path)
            self._sock.listen(_MAX_PENDING)
            address = f"unix:{path}"
        self._sock.setblocking(False)
        self._pending: dict[int, _Pending] = {}
        super().__init__(replace(spec, address=address))

    def accept(self, timeout_s: float) -> StreamChannel:
        sock = self.accept_socket(timeout_s)
        return StreamChannel(self.spec, sock)

    def accept_socket(self, timeout_s: float) -> socket.socket:
        """The socket of the next peer that proves itself. Raises `DeadlineExceeded`."""
        deadline = time.monotonic() + timeout_s
        while True:
            now = time.monotonic()
            for fd in [fd for fd, peer in self._pending.items() if peer.deadline <= now]:
                self._refuse(fd, "timeout")
            soonest = min([deadline, *(peer.deadline for peer in self._pending.values())])
            poller = select.poll()
            if len(self._pending) < _MAX_PENDING:
                poller.register(self._sock, select.POLLIN)
            for fd in self._pending:
                poller.register(fd, select.POLLIN)
            for fd, _ in poller.poll(milliseconds(soonest - now)):
                if fd == self._sock.fileno():
                    self._challenge()
                elif self._hear(fd):
                    return self._pending.pop(fd).sock
            if now >= deadline:
                raise DeadlineExceeded(f"link {self.spec.link!r}: nobody connected in time")

    def close(self) -> None:
        for fd in list(self._pending):
            self._refuse(fd, "closed")
        self._sock.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _challenge(self) -> None:
        with contextlib.suppress(OSError):  # a peer that left between poll and here
            sock, _ = self._sock.accept()
            sock.setblocking(False)
            peer = _Pending(sock, time.monotonic() + _HANDSHAKE_S, hello.challenge())
            self._pending[sock.fileno()] = peer
            sock.send(peer.challenged)

    def _hear(self, fd: int) -> bool:
        """Read on; whether this peer has now proved itself and was welcomed."""
        peer = self._pending[fd]
        try:
            data = peer.sock.recv(hello.HELLO_BYTES - len(peer.said))
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        peer.said += data
        if data and len(peer.said) < hello.HELLO_BYTES:
            return False
        said = bytes(peer.said)
        reason = hello.refusal(self.spec, peer.challenged, said) if data else "left"
        if reason is None:
            try:
                if peer.sock.send(hello.welcome(self.spec, peer.challenged, said)) == hello.WELCOME_BYTES:
                    _tune(peer.sock)
                    return True
            except OSError:
                pass
            reason = "left"
        self._refuse(fd, reason)
        return False

    def _refuse(self, fd: int, reason: str) -> None:
        self._pending.pop(fd).sock.close()
        self.refused[reason] += 1


def connect(spec: ChannelSpec, timeout_s: float) -> StreamChannel:
    """Join the listener of `spec`. Raises `ChannelError` when nobody listens or it refuses, `DeadlineExceeded`."""
    return StreamChannel(spec, connect_socket(spec, timeout_s))


def connect_socket(spec: ChannelSpec, timeout_s: float) -> socket.socket:
    """A socket on which both ends have proved themselves."""
    deadline = time.monotonic() + timeout_s
    family, where = _parse_address(spec.address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(max(timeout_s, 1e-3))
        sock.connect(where)
        challenged = _exactly(sock, hello.CHALLENGE_BYTES, deadline)
        said = hello.hello(spec, challenged)
        if said is None:
            raise ChannelError(f"link {spec.link!r}: {spec.address} speaks another protocol or version")
        sock.sendall(said)
        answer = _exactly(sock, hello.WELCOME_BYTES, deadline)
        if not hello.welcomed(spec, challenged, said, answer):
            raise ChannelError(f"link {spec.link!r}: {spec.address} does not know the secret")
        _tune(sock)
        return sock
    except TimeoutError:
        sock.close()
        raise DeadlineExceeded(f"link {spec.link!r}: {spec.address} did not accept in time") from None
    except OSError as error:
        sock.close()
        raise ChannelError(f"link {spec.link!r}: nobody listens at {spec.address} ({error.strerror})") from None
    except ChannelError:
        sock.close()
        raise


def _exactly(sock: socket.socket, count: int, deadline: float) -> bytes:
    data = b""
    while len(data) < count:
        sock.settimeout(max(deadline - time.monotonic(), 1e-3))
        try:
            piece = sock.recv(count - len(data))
        except ConnectionError:
            piece = b""
        if not piece:
            raise ChannelError("refused: not the listener's secret, link, epoch or limits")
        data += piece
    return data


def _parse_address(address: str) -> tuple[int, str | tuple[str, int]]:
    kind, _, rest = address.partition(":")
    if kind == "unix" and rest:
        return socket.AF_UNIX, rest
    host, _, port = rest.rpartition(":")
    if kind == "tcp" and host and port.isdecimal() and int(port) < 65536:
        return socket.AF_INET, (host, int(port))
    raise ConfigError("channel.address", address, "unix:PATH or tcp:HOST:PORT")


def _private_folder() -> str:
    """A new directory that only this user may enter, with a path short enough for a unix socket."""
    folder = tempfile.mkdtemp(prefix="cascade-link-")  # mode 0700
    if len(folder) > _LONGEST_UNIX_PATH - len("/link"):
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="cascade-link-", dir="/tmp")
    return folder


def _tune(sock: socket.socket) -> None:
    """Small frames leave at once, and a host that vanished is noticed."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
