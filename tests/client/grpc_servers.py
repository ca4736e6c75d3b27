"""The real gRPC server for tests, in front of the real gateway and a transport in this process, in its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from client.http_servers import Alone

from cascade_runtime.config import Recipe
from cascade_runtime.transports import Transport
from cluster.serving.gateway import Gateway
from cluster.serving.rpc import GrpcServer
from cluster.serving.settings import ServerSettings


@dataclass(frozen=True)
class Served:
    """address: host:port; inside: requests that hold a place now."""

    address: str
    gateway: Gateway

    @property
    def inside(self) -> int:
        return self.gateway._admission.inside


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def grpc_server(recipe: Recipe, transport: Transport, **settings: Any) -> Iterator[Served]:
    """A server over a transport."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> tuple[Gateway, GrpcServer]:  # both belong to the loop that they run on
        given = ServerSettings(grpc_port=free_port(), **settings)
        gateway = Gateway(given, recipe, transport)
        server = GrpcServer(gateway, Alone(), Alone())
        await server.start()
        return gateway, server

    try:
        gateway, server = asyncio.run_coroutine_threadsafe(start(), loop).result(20)
        try:
            yield Served(server.address, gateway)
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
