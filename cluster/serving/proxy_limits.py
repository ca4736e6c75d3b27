"""What Serve's HTTP proxies take from strangers: `limit_proxies` before Ray is started, `proxy_limits` in each proxy.

A proxy has no bounds of its own. It reads a body as fast as it comes, whether or not the replica takes it, and the
faster of uvicorn's parsers keeps a header of any length, copied again with every piece: 200 MB of one end the proxy. So
it gets the other parser, h11, which refuses headers beyond 64 KiB, and stops reading a body larger than any may be.

Serve calls what RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names in every proxy that it starts. `cascade serve` sets it
for the Ray that it starts itself; on a cluster of your own it must be in the environment of the nodes, where this
project is installed, before Ray is started.
"""

from __future__ import annotations

import asyncio
import os

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
_LARGEST, _LARGEST_FILE = "CASCADE_PROXY_BODY_BYTES", "CASCADE_PROXY_FILE_BYTES"
_UPLOADS = "/v1/files"
_DEFAULT_BYTES = 2**30  # what a server may be set up to take at most
_SLACK_BYTES = 4 * 2**20  # so that the replica sees that it is too much, and says so
_PATIENCE_S = 30.0


class BodyLimit:
    """ASGI middleware that reads no more of a body than `largest` bytes, and of an upload than `file`. Its replica,
    whose own limit is lower, answers meanwhile; where it does not, the request ends as if the client had gone.
    """

    def __init__(self, app: ASGIApp, largest: int, file: int) -> None:
        self._app, self._largest, self._file = app, largest, file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        taken, most = 0, self._file if scope["path"].endswith(_UPLOADS) else self._largest

        async def counted() -> Message:
            nonlocal taken
            if taken > most:
                await asyncio.sleep(_PATIENCE_S)
                return {"type": "http.disconnect"}
            message = await receive()
            taken += len(message.get("body", b""))
            return message

        await self._app(scope, counted, send)


def limit_proxies(largest_body: int, largest_file: int) -> None:
    """Let the proxies of a Ray that is started after this have limits: what a replica takes, in bytes."""
    os.environ.setdefault(CALLBACK, f"{__name__}.{proxy_limits.__name__}")
    os.environ[_LARGEST] = str(largest_body + _SLACK_BYTES)
    os.environ[_LARGEST_FILE] = str(largest_file + _SLACK_BYTES)


def proxy_limits() -> list[Middleware]:
    """Called by Serve in a proxy, before it listens."""
    import uvicorn.protocols.http.auto as auto
    from uvicorn.protocols.http.h11_impl import H11Protocol

    auto.AutoHTTPProtocol = H11Protocol  # Serve lets nobody choose, and uvicorn takes what it finds under this name
    limits = {"largest": _LARGEST, "file": _LARGEST_FILE}
    return [Middleware(BodyLimit, **{name: int(os.environ.get(of, _DEFAULT_BYTES)) for name, of in limits.items()})]
