"""`Door`: what stands in front of every gRPC method, as `Guard` does in front of every path.

with API keys       `authorization: Bearer KEY` for all but health, asked for before a message is read
a message           that is none of its kind is INVALID_ARGUMENT
an error            of the project's own is its status with the trailers of cascade.proto; any other is INTERNAL
a reader            that takes nothing for half a minute is cut off

Servicers behind it raise; streams are async generators, closed before their call ends, so that a slot is free then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from cascade_runtime.errors import CascadeError
from cluster.serving.api_keys import caller_of
from cluster.serving.gateway import Gateway
from cluster.serving.refusals import Refusal, bad_request, refusal_of
from cluster.serving.rpc.messages import in_fields, status_of

log = logging.getLogger(__name__)

OPEN = ("/grpc.health.v1.Health/Check", "/cascade.v1.Cascade/Health")
_WRITE_S = 30.0


def caller(context: Any, gateway: Gateway) -> str:
    """Who asks. Raises `Refusal` for nobody who may."""
    return _caller(context.invocation_metadata(), gateway)


class Door(grpc.aio.ServerInterceptor):
    """Wraps every method of a server."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def intercept_service(self, continuation: Callable[..., Awaitable[Any]], handler_call_details: Any) -> Any:
        """The handler of one call."""
        if handler_call_details.method not in OPEN:
            try:
                _caller(handler_call_details.invocation_metadata, self._gateway)
            except Refusal as refusal:
                return self._refusing(refusal)
        handler = await continuation(handler_call_details)
        return None if handler is None else self._guarded(handler)

    def _refusing(self, refusal: Refusal) -> Any:
        async def refuse(requests: Any, context: Any) -> None:
            async with self._told(context):
                raise refusal

        return grpc.stream_stream_rpc_method_handler(refuse)  # of this kind no message is read first

    def _guarded(self, handler: Any) -> Any:
        async def whole(request: Any, context: Any) -> Any:
            async with self._told(context):
                return await behind(arrived(request), context)

        async def streamed(request: Any, context: Any) -> None:
            async with self._told(context), aclosing(behind(arrived(request), context)) as replies:
                async for reply in replies:
                    await _write(context, reply)

        name = f"{'stream' if handler.request_streaming else 'unary'}_"
        name += "stream" if handler.response_streaming else "unary"
        behind = getattr(handler, name)
        arrived = _readable_stream if handler.request_streaming else _readable
        around = streamed if handler.response_streaming else whole
        return handler._replace(**{name: around, "request_deserializer": _lenient(handler.request_deserializer)})

    @asynccontextmanager
    async def _told(self, context: Any) -> AsyncGenerator[None]:
        """Whatever is raised within becomes the call's status."""
        try:
            yield
        except (Refusal, CascadeError) as error:
            named = error.request_id if isinstance(error, CascadeError) else ""
            refusal = in_fields(error if isinstance(error, Refusal) else refusal_of(error))
        except Exception:  # what no rule foresaw: its caller hears no more than that
            log.exception("a call failed")
            refusal = Refusal(status=500, type="server_error", code="internal_error", message="internal error")
            named = ""
        else:
            self._gateway.counters.called("OK")
            return
        status = status_of(refusal)
        self._gateway.counters.called(status.name)
        told = {"cascade-error-code": refusal.code, "cascade-error-field": refusal.param, "cascade-request-id": named}
        if refusal.retry_after_s is not None:
            told["retry-after"] = str(max(1, round(refusal.retry_after_s)))
        trailers = tuple((name, _ascii(value)) for name, value in told.items() if value)
        await context.abort(status, refusal.message, trailers)


def _caller(metadata: Any, gateway: Gateway) -> str:
    offered = next((value for key, value in metadata or () if key == "authorization"), "")
    found = caller_of(offered if isinstance(offered, str) else "", gateway.settings.key_digests)
    if found is None:
        message = "a valid API key is needed: metadata authorization: Bearer KEY"
        raise Refusal(status=401, type="authentication_error", code="invalid_api_key", message=message)
    return found


def _lenient(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """gRPC answers what cannot be parsed with an error of the server's; here it is found out behind the door."""

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return error

    return parse


def _readable(request: Any) -> Any:
    if isinstance(request, DecodeError):
        raise bad_request("the message is not of this method's kind", "invalid_message")
    return request


async def _readable_stream(requests: Any) -> AsyncIterator[Any]:
    async for request in requests:
        yield _readable(request)


async def _write(context: Any, reply: Any) -> None:
    try:
        async with asyncio.timeout(_WRITE_S):
            await context.write(reply)
    except TimeoutError:
        message = f"nothing was read for {_WRITE_S:g} s"
        raise Refusal(status=408, type="invalid_request_error", code="read_too_slow", message=message) from None


def _ascii(text: str) -> str:
    """What a metadata value may hold."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text[:200])
