"""Servers for tests of the HTTP client, each in a thread of its own on a free port of this machine.

cascade_server(recipe)       the real gateway and routes in front of the engine in this process
scripted_server(handler)     sends whatever bytes a test wants it to send
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from cascade_runtime.config import Recipe
from cascade_runtime.in_process import InProcess
from cluster.serving.batches.routes import batch_routes
from cluster.serving.batches.runs import BatchRuns
from cluster.serving.files.routes import file_routes
from cluster.serving.files.store import FileStore
from cluster.serving.gateway import Gateway
from cluster.serving.page import page_routes
from cluster.serving.routes import build_app
from cluster.serving.settings import ServerSettings

Stats = Callable[[], dict[str, dict[str, Any]]]


class Alone:
    """A replica without others beside it; its stages say what a test wants to be said."""

    def __init__(self, stats: Stats | None = None) -> None:
        self._stats = stats or dict

    async def gone(self) -> tuple[str, ...]:
        return ()

    async def stats(self) -> dict[str, dict[str, Any]]:
        return self._stats()

    async def canary(self) -> dict[str, Any]:
        return {"status": "ok"}

    async def recall(self, caller: str, request_id: str, what: str) -> dict[str, Any] | None:
        return None

    async def cancel(self, caller: str, request_id: str) -> bool:
        return False

    async def metrics(self) -> dict[str, str]:
        return {}


@contextlib.contextmanager
def cascade_server(
    recipe: Recipe, stats: Callable[[InProcess], Stats] | None = None, **settings: Any
) -> Iterator[tuple[str, InProcess]]:
    """The address, and the engine's transport behind it. stats: makes what the stages say of themselves."""
    transport = InProcess(recipe)
    alone = Alone(stats(transport) if stats is not None else None)
    made: list[Any] = []
    stores: list[FileStore] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if not made:  # a gateway belongs to the loop that it runs on
            made.append(_app(ServerSettings(**settings), recipe, transport, stores, alone))
        await _until_the_caller_goes(made[0], scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=2))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", transport
    finally:
        server.should_exit = True
        thread.join(10)
        for store in stores:
            store.close()


def _app(settings: ServerSettings, recipe: Recipe, transport: InProcess, stores: list[FileStore], alone: Alone) -> Any:
    files = settings.file_store()
    gateway = Gateway(settings, recipe, transport, files)
    more = [*page_routes(gateway)]
    if files is not None:
        stores.append(files)
        batches = BatchRuns(files, gateway)
        batches.resume()
        more += [*file_routes(files), *batch_routes(batches)]
    return build_app(gateway, alone, alone, more)


async def _until_the_caller_goes(app: Any, scope: Any, receive: Any, send: Any) -> None:
    """Serve's part: once the body was read, a call is cancelled when its connection closes."""
    watching: list[asyncio.Task[None]] = []
    call = asyncio.current_task()
    assert call is not None

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        call.cancel()

    async def received() -> Any:
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            watching.append(asyncio.create_task(watch()))
        return message

    try:
        await app(scope, received, send)
    except asyncio.CancelledError:
        if not call.uncancel():  # by `watch`
            return
        raise
    finally:
        for task in watching:
            task.cancel()


@contextlib.contextmanager
def scripted_server(handler: Callable[[socket.socket, bytes, int], None]) -> Iterator[str]:
    """handler(connection, request, number): the whole request was read; `number` counts them from 0. The connection
    is closed when it returns.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    stopping = threading.Event()

    def serve() -> None:
        number = 0
        while not stopping.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                handler(connection, _whole_request(connection), number)
            number += 1

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stopping.set()
        thread.join(10)
        listener.close()


def response(status: str, body: bytes, kind: str = "application/json", *headers: str) -> bytes:
    """A whole HTTP/1.1 response."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def events_head() -> bytes:
    """The head of a stream of events that ends with the connection."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def _whole_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += connection.recv(1 << 20)
    return head + b"\r\n\r\n" + body
