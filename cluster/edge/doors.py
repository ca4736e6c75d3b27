"""Who may speak: TLS and tokens of both ends of an edge link.

The core listens on this machine alone unless it has tokens and TLS; the edge never says its token in the clear to
another machine. Both can be told to (`plaintext`), for networks that encrypt already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc

from cascade_runtime.edge.cut import MAX_BATCH_BYTES
from cascade_runtime.errors import ConfigError
from cluster.edge import PORT
from cluster.serving.api_keys import caller_of
from cluster.serving.settings import is_loopback

END_OF_STREAM: Any = cast(Any, grpc.aio).EOF
"""What `read` gives when the other end has said all."""
_MAX_PEM_BYTES = 1 << 20
OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_BATCH_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.lookahead_bytes", 4 << 20),  # HTTP/2's 64 KB in flight are 160 KB/s at 400 ms there and back
    ("grpc.so_reuseport", 0),
]


@dataclass(frozen=True, kw_only=True)
class CoreDoor:
    """Of the core. key_digests: of the tokens, see `read_key_file`. certificate, key: PEM files, both or none."""

    host: str
    port: int
    key_digests: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    plaintext: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ConfigError("port", self.port, "0 to 65535; 0 lets the system choose")
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("tls", "one of certificate and key", "both, or none")
        if is_loopback(self.host):
            return
        if not self.key_digests:
            raise ConfigError("host", self.host, "127.0.0.1, or any address together with a token file")
        if self.certificate is None and not self.plaintext:
            raise ConfigError("host", self.host, "127.0.0.1, or any address with TLS, or with --plaintext")

    def open(self, server: Any) -> int:
        """Let a gRPC server listen; the port. Raises `ConfigError`."""
        address = f"{self.host}:{self.port}"
        try:
            if self.certificate is None or self.key is None:
                return server.add_insecure_port(address)
            pair = (read_pem("key", self.key), read_pem("certificate", self.certificate))
            return server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        except RuntimeError as error:
            raise ConfigError("host, port", address, f"an address to listen on ({error})") from error

    def caller(self, metadata: Sequence[tuple[str, str | bytes]]) -> str | None:
        """Who asks, by the metadata of a call; None for a wrong token."""
        said = dict(metadata).get("authorization", "")
        return caller_of(said if isinstance(said, str) else "", self.key_digests)


@dataclass(frozen=True, kw_only=True)
class EdgeDoor:
    """Of the edge. server: HOST or HOST:PORT of the core. authority: PEM file of who signed its certificate; without,
    and with `tls`, the system's.
    """

    server: str
    token: str = field(default="", repr=False)
    tls: bool = False
    authority: Path | None = None
    plaintext: bool = False

    def __post_init__(self) -> None:
        host, colon, port = self.server.rpartition(":")
        if self.server and not colon:
            host, port = self.server, str(PORT)
            object.__setattr__(self, "server", f"{host}:{port}")
        if not host or not port.isdecimal() or not 1 <= int(port[:6]) <= 65_535:
            raise ConfigError("server", self.server, f"HOST, or HOST:PORT where it is not {PORT}")
        if self.token and not self.encrypted and not self.plaintext and not is_loopback(host):
            raise ConfigError("server", self.server, "with a token: TLS, this machine, or --plaintext")

    @property
    def encrypted(self) -> bool:
        """Whether the link is TLS."""
        return self.tls or self.authority is not None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call says."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def channel(self) -> grpc.aio.Channel:
        """A new connection of its own to the core. Raises `ConfigError`."""
        options = [*OPTIONS, ("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 200)]
        if not self.encrypted:
            return grpc.aio.insecure_channel(self.server, options)
        authority = read_pem("ca", self.authority) if self.authority is not None else None
        return grpc.aio.secure_channel(self.server, grpc.ssl_channel_credentials(authority), options)


def read_pem(name: str, path: Path) -> bytes:
    """A PEM file's bytes. Raises `ConfigError`."""
    try:
        with path.expanduser().open("rb") as file:
            text = file.read(_MAX_PEM_BYTES + 1)
    except (OSError, RuntimeError) as error:
        raise ConfigError(name, str(path), f"a readable PEM file ({error})") from error
    if not text.lstrip().startswith(b"-----BEGIN") or len(text) > _MAX_PEM_BYTES:
        raise ConfigError(name, str(path), "a PEM file")
    return text


def read_token(path: Path) -> str:
    """The token in a file: its first line that is not a comment. Raises `ConfigError`."""
    try:
        with path.expanduser().open("rb") as file:
            lines = file.read(4097).decode().splitlines()
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError("token_file", str(path), f"a readable text file ({error})") from error
    token = next((line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")), "")
    if not 16 <= len(token) <= 512 or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError("token_file", str(path), "a line of 16 to 512 printable characters without blanks")
    return token
