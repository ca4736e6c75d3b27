"""`GrpcTransport`: the cascade behind an address that speaks cascade.proto (grpc_wire.py has its messages).

    grpc://host:port     in the clear, for this machine or a network that is trusted
    grpcs://host:port    over TLS; SSL_CERT_FILE names the authorities to trust where they are not the usual ones
    run(requests)        Generate or GenerateStream, side by side
    session(windows)     one call of Session for all windows of a live source
    models, health, trace

One request: every try carries the same request id as its idempotency key, so that the server answers it once however
often it is asked; retries.py says when it is asked again. The deadline spans all tries, and the server is told. A
caller who stops reading cancels the call, and the server stops working for it. A session that breaks off is an error,
and the caller's to open again: what its windows showed is over.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc

from cascade_runtime import __version__
from cascade_runtime.api import Answer, GenerateRequest, Health, ServedModel, WindowAnswer
from cascade_runtime.errors import CascadeError, ConfigError, DeadlineExceeded, InputError, RemoteError
from cascade_runtime.proto import cascade_pb2 as wire
from cascade_runtime.proto.cascade_pb2_grpc import CascadeStub
from cascade_runtime.transports import grpc_wire
from cascade_runtime.transports.base import DEFAULT_TIMEOUT_S, MAX_CONCURRENCY, Remote, Update
from cascade_runtime.transports.retries import wait_before_retry
from cascade_runtime.transports.session import SessionTerms, Window
from cascade_runtime.transports.side_by_side import Tell, side_by_side
from cascade_runtime.transports.told import Told
from cascade_runtime.transports.windows import NewestWindows

DEFAULT_PORT = 9000
_CONTROL_S = 30.0  # for all that is not an answer
_MAX_BYTES = 64 * 2**20  # of one message
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", _MAX_BYTES),
    ("grpc.max_send_message_length", -1),  # the server says what it takes
    ("grpc.enable_retries", 0),  # retries.py decides
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5000),
    ("grpc.keepalive_time_ms", 60_000),  # a session whose server has vanished ends
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.primary_user_agent", f"cascade-runtime/{__version__}"),
)


class _Ended(Exception):
    """A stream that ended well, but too early."""

    def __init__(self, error: RemoteError) -> None:
        super().__init__(str(error))
        self.error = error


class GrpcTransport:
    """The client's side of one server. Raises `ConfigError` for an address with a path or certificates unread."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self._chance = random.Random()
        parts = urlsplit(remote.url)
        if parts.path.strip("/"):
            raise ConfigError("target", remote.url, "grpc://host:port, without a path")
        host = parts.hostname or ""
        self._address = f"{f'[{host}]' if ':' in host else host}:{parts.port or DEFAULT_PORT}"
        self._options = (*_OPTIONS, *([("grpc.enable_http_proxy", 0)] if host in _LOOPBACK else []))
        self._credentials = grpc.ssl_channel_credentials(_authorities()) if parts.scheme == "grpcs" else None
        key = remote.api_key
        self._metadata = () if key is None else (("authorization", f"Bearer {key}"),)
        self._channel: grpc.aio.Channel | None = None
        self._calls: Any = None

    def _stub(self) -> Any:
        """The server's methods. The channel belongs to the event loop of the first call."""
        if self._calls is None:
            if self._credentials is None:
                self._channel = grpc.aio.insecure_channel(self._address, self._options)
            else:
                self._channel = grpc.aio.secure_channel(self._address, self._credentials, self._options)
            self._calls = CascadeStub(self._channel)
        return self._calls

    def run(
        self,
        requests: Sequence[GenerateRequest],
        timeout_s: float | None,
        stream: bool,
        concurrency: int = MAX_CONCURRENCY,
    ) -> AsyncIterator[Update]:
        """Answer requests side by side. Leaving the iterator early cancels those that still run."""
        return side_by_side(requests, concurrency, partial(self._ask, timeout_s=timeout_s, stream=stream))

    async def _ask(self, request: GenerateRequest, tell: Tell, *, timeout_s: float | None, stream: bool) -> Answer:
        """One request, asked again while that can help. Raises the error it ends with."""
        loop = asyncio.get_running_loop()
        limit_s = DEFAULT_TIMEOUT_S if timeout_s is None else timeout_s
        deadline = loop.time() + limit_s
        message = await asyncio.to_thread(grpc_wire.question, request)
        told, tries = Told(), 0
        while True:
            tries += 1
            left_s = deadline - loop.time()
            try:
                if left_s <= 0:
                    raise DeadlineExceeded(f"request {request.request_id}: no answer in {limit_s:g} s")
                if stream:
                    return told.checked(await self._stream(message, left_s, told.filtered(tell)))
                reply = await self._stub().Generate(message, timeout=left_s, metadata=self._metadata)
                return grpc_wire.read_answer(reply)
            except (grpc.aio.AioRpcError, _Ended) as failed:
                if isinstance(failed, _Ended):
                    error, asked_s, again = failed.error, None, True
                else:
                    error, asked_s = grpc_wire.error_of_call(failed, request.request_id)
                    again = asked_s is not None or failed.code() is grpc.StatusCode.UNAVAILABLE
                left_s, most = deadline - loop.time(), self.remote.max_retries if again else 0
                wait_s = wait_before_retry(tries, most, asked_s, left_s, self._chance)
                if wait_s is None:
                    raise error from failed
                await asyncio.sleep(wait_s)
            except InputError as error:
                raise RemoteError(f"{self.remote.url}: not an answer: {error}") from error

    async def _stream(self, message: wire.GenerateRequest, left_s: float, tell: Tell) -> Answer:
        call = self._stub().GenerateStream(message, timeout=left_s, metadata=self._metadata)
        pieces = grpc_wire.PieceReader()
        try:
            async for update in call:
                kind = update.WhichOneof("update")
                if kind == "opening":
                    pieces.open(update.opening)
                elif kind == "piece":
                    await tell(pieces.read(update.piece))
                elif kind == "answer":
                    return grpc_wire.read_answer(update.answer)
        finally:
            call.cancel()
        raise _Ended(RemoteError(f"{self.remote.url}: the stream ended before the answer did", retryable=True))

    async def session(
        self, windows: NewestWindows[Window], terms: SessionTerms, timeout_s: float | None, waiting: int
    ) -> AsyncIterator[WindowAnswer]:
        """Answer windows over one call until their queue is closed. timeout_s: for each of them."""
        call = self._stub().Session(metadata=self._metadata)
        sending: asyncio.Task[None] | None = None
        try:
            most = (await call.initial_metadata()).get("cascade-max-bytes", "")
            if most.isdecimal():  # it was let in
                await call.write(grpc_wire.opening(terms, timeout_s, waiting))
            async for reply in call:
                if reply.WhichOneof("reply") == "opened":
                    sending = sending or asyncio.create_task(_send(call, windows, int(most[:12] or 0)))
                else:
                    told = reply.window
                    yield WindowAnswer(told.number, self._outcome(told), windows.dropped + told.dropped)
        except grpc.aio.AioRpcError as failed:
            raise grpc_wire.error_of_call(failed, "")[0] from failed
        except asyncio.CancelledError:
            if sending is not None and sending.done():
                sending.result()  # where that has given up, it is why
            raise
        finally:
            call.cancel()
            if sending is not None:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    def _outcome(self, reply: wire.WindowReply) -> Answer | CascadeError:
        try:
            if reply.WhichOneof("outcome") == "failure":
                return grpc_wire.error_of_window(reply.failure)
            return grpc_wire.read_answer(reply.answer)
        except InputError as error:
            return RemoteError(f"{self.remote.url}: not an answer: {error}")

    # -- what it says of itself --------------------------------------------------------------------------------------

    async def models(self) -> tuple[ServedModel, ...]:
        """The models that may be asked."""
        reply = await self._control("Models", wire.ModelsRequest())
        return tuple(ServedModel(model.id, tuple(model.levels)) for model in reply.models)

    async def health(self) -> Health:
        """Whether the server would answer now; one that is not reached raises."""
        reply = await self._control("Health", wire.HealthRequest())
        return Health(reply.ready, reply.status)

    async def trace(self, request_id: str) -> dict[str, Any]:
        """The Chrome trace of one of the last requests. Raises `NotFound`."""
        reply = await self._control("Trace", wire.RequestName(request_id=request_id))
        try:
            data = json.loads(reply.json)
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict) or not isinstance(data.get("traceEvents"), list):
            raise RemoteError(f"{self.remote.url}: not a trace")
        return data

    async def _control(self, method: str, message: Any) -> Any:
        try:
            return await getattr(self._stub(), method)(message, timeout=_CONTROL_S, metadata=self._metadata)
        except grpc.aio.AioRpcError as failed:
            raise grpc_wire.error_of_call(failed, "")[0] from failed

    async def close(self) -> None:
        """Close the connection. The server goes on."""
        if self._channel is not None:
            await self._channel.close()


async def _send(call: Any, windows: NewestWindows[Window], most: int) -> None:
    """The windows of a session. What goes wrong with the call, its reader learns; one that is too large ends it."""
    try:
        while (window := await windows.get()) is not None:
            message = await asyncio.to_thread(grpc_wire.window, window)
            if message.ByteSize() > most:
                call.cancel()
                raise InputError("events", f"a window of {message.ByteSize()} bytes", f"at most {most} bytes")
            await call.write(message)
        await call.done_writing()
    except (grpc.RpcError, asyncio.InvalidStateError):
        pass


def _authorities() -> bytes | None:
    """The certificates in SSL_CERT_FILE, as for https; None: gRPC's own list."""
    path = os.environ.get("SSL_CERT_FILE")
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError("SSL_CERT_FILE", path, f"a readable file ({error.strerror})") from error
