"""What Serve's proxies do not do by themselves: a parser with a bound, and a body that is not read to its end."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.h11_impl import H11Protocol

from cluster.serving import proxy_limits
from cluster.serving.proxy_limits import CALLBACK, BodyLimit


def test_a_body_is_read_as_far_as_its_limit_and_then_the_request_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_limits, "_PATIENCE_S", 0.01)
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 100
        return {"type": "http.request", "body": bytes(100), "more_body": True}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        await send("ended")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    limit = BodyLimit(app, largest=1000, file=5000)
    asyncio.run(limit({"type": "http", "path": "/v1/chat/completions"}, receive, send))
    assert sent == ["ended"] and read == 1100
    asyncio.run(limit({"type": "http", "path": "/v1/files"}, receive, send))
    assert sent == ["ended"] * 2 and read == 1100 + 5100


def test_a_proxy_with_these_limits_refuses_a_header_of_a_megabyte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "AutoHTTPProtocol", auto.AutoHTTPProtocol)
    monkeypatch.setattr("os.environ", {})
    proxy_limits.limit_proxies(64 * 2**20, 256 * 2**20)
    (limit,) = proxy_limits.proxy_limits()
    assert limit.kwargs == {"largest": 68 * 2**20, "file": 260 * 2**20} and auto.AutoHTTPProtocol is H11Protocol

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    async def ask(header: bytes) -> bytes:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="critical"))
            serving = asyncio.create_task(server.serve([listening]))
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + header + b"\r\n\r\n")
            status = await reader.readline()
            writer.close()
            server.should_exit = True
            await serving
        return status.split(b" ")[1]

    assert asyncio.run(ask(b"a" * 1000)) == b"200"
    assert asyncio.run(ask(b"a" * 2**20)) == b"400"


def test_serve_finds_the_function_by_the_name_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._common.utils import import_attr

    known: dict[str, str] = {}
    monkeypatch.setattr("os.environ", known)
    proxy_limits.limit_proxies(1, 1)
    assert import_attr(known[CALLBACK]) is proxy_limits.proxy_limits
