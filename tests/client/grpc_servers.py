"""The real gRPC server for tests, in front of the real gateway and a transport in this process, in its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from client.http_servers import Alone

from cascade_runtime.config import Recipe
from cascade_runtime.transports import Transport
from cluster.serving.gateway import Gateway
from cluster.serving.rpc import GrpcServer
from cluster.serving.settings import ServerSettings


class Served(Alone):
    """The server and the replica around it. address: host:port; inside: requests that hold a place now; silent: stages
    that are to be.
    """

    address: str
    gateway: Gateway
    silent: tuple[str, ...] = ()

    async def gone(self) -> tuple[str, ...]:
        return self.silent

    async def recall(self, caller: str, request_id: str, what: str) -> dict[str, Any] | None:
        return {"traceEvents": [], "of": request_id} if request_id == "elsewhere" else None

    async def cancel(self, caller: str, request_id: str) -> bool:
        return request_id == "elsewhere"

    @property
    def inside(self) -> int:
        return self.gateway._admission.inside


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def until(true: Callable[[], bool]) -> None:
    """Wait for it; no longer than 20 s."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


@contextlib.contextmanager
def grpc_server(recipe: Recipe, transport: Transport, **settings: Any) -> Iterator[Served]:
    """A server over a transport."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    served = Served()

    async def start() -> GrpcServer:  # belongs to the loop that it runs on
        served.gateway = Gateway(ServerSettings(grpc_port=free_port(), **settings), recipe, transport)
        server = GrpcServer(served.gateway, served, served)
        await server.start()
        served.address = server.address
        return server

    try:
        server = asyncio.run_coroutine_threadsafe(start(), loop).result(20)
        try:
            yield served
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
