"""Paths and headers around the gateway: `build_app(gateway, ...)` is the ASGI application of a replica.

Every answer that is no 2xx is OpenAI's error JSON; whatever a caller sends, it never gets a traceback. The API itself
is written down in `cluster/serving/__init__.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, NoReturn, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route

import cascade_runtime
from cascade_runtime.api import Answer, Piece
from cascade_runtime.errors import CascadeError, InputError
from cluster.serving.chat_answer import ChatHead, ChunkWriter, completion
from cluster.serving.counters import CONTENT_TYPE
from cluster.serving.event_stream import DONE, EventStream, event
from cluster.serving.gateway import Call, Gateway
from cluster.serving.guard import Guard, caller, refuse, request_id
from cluster.serving.merged_metrics import merged
from cluster.serving.names import given_key
from cluster.serving.openapi import document
from cluster.serving.pipeline_view import PipelineView
from cluster.serving.readiness import Vitals, readiness
from cluster.serving.refusals import Refusal, bad_request, not_found, refusal_of
from cluster.serving.shared_runs import Update

_BODY_S = 30.0
_MAX_VALUES = 20_000  # of a body; sixty megabytes of "[]," would take a gigabyte and seconds of the interpreter


class Elsewhere(Protocol):
    """Requests that another replica of the same server has answered, or is answering."""

    async def recall(self, caller: str, request_id: str, what: str) -> dict[str, Any] | None:
        """What `recall` says of it where it is known."""
        ...

    async def cancel(self, caller: str, request_id: str) -> bool:
        """Whether it was running, and has been told to end."""
        ...

    async def metrics(self) -> dict[str, str]:
        """What every replica counts, this one included, by its number; nothing where there is only this one."""
        ...


def build_app(gateway: Gateway, vitals: Vitals, elsewhere: Elsewhere, more: Sequence[Route] = ()) -> Starlette:
    """The application of one replica; `more` are routes that stand beside the API's."""
    routes = _Routes(gateway, vitals, elsewhere)
    one = "/v1/cascade/requests/{id}"
    table: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
        ("POST", "/v1/chat/completions", routes.chat),
        ("GET", "/v1/models", routes.models),
        ("GET", "/v1/models/{id:path}", routes.model),
        ("GET", one, routes.request),
        ("DELETE", one, routes.cancel),
        ("POST", f"{one}/cancel", routes.cancel),
        ("GET", f"{one}/trace", routes.trace),
        ("GET", "/v1/cascade/pipeline", PipelineView(vitals).watch),
        ("GET", "/health", routes.health),
        ("GET", "/ready", routes.ready),
        ("GET", "/health/deep", routes.deep_health),
        ("GET", "/metrics", routes.metrics),
        ("GET", "/version", routes.version),
        ("GET", "/openapi.json", routes.openapi),
    ]
    return Starlette(
        routes=[*(Route(path, endpoint, methods=[method]) for method, path, endpoint in table), *more],
        middleware=[Middleware(Guard, gateway=gateway)],
        exception_handlers={
            HTTPException: _no_route,
            Refusal: refuse,
            CascadeError: refuse,
            Exception: _broken,
        },
    )


def recall(gateway: Gateway, caller: str, request_id: str, what: str) -> dict[str, Any] | None:
    """What this replica knows of a request of this caller; what: "request" or "trace"."""
    entry = gateway.find(caller, request_id)
    if entry is None:
        return None
    if what == "request":
        return entry.to_dict()
    return entry.outcome.timings.chrome_trace() if isinstance(entry.outcome, Answer) else {}


class _Routes:
    def __init__(self, gateway: Gateway, vitals: Vitals, elsewhere: Elsewhere) -> None:
        self.gateway, self.vitals, self.elsewhere = gateway, vitals, elsewhere
        self.started = int(time.time())

    async def chat(self, request: Request) -> Response:
        place = self.gateway.enter(caller(request))  # before the body: where all is full, nobody waits to hear it
        try:
            raw = await read_body(request, self.gateway.settings.max_body_bytes)
            body = await asyncio.to_thread(json_object, raw)
            key = given_key(request.headers.get("idempotency-key"))
            call = Call(
                body=body,
                request_id=request_id(request),
                stream=body.get("stream") is True,
                idempotency_key=key,
                body_digest=hashlib.sha256(raw).hexdigest() if key else "",
            )
            stream, run = call.stream, self.gateway.start(place, call)
            del raw, body, call  # they may be large, and an answer may take long
        except BaseException:
            place.leave()
            raise
        updates = run.follow()
        try:
            head, first = await anext(updates), await anext(updates)
            assert isinstance(head, ChatHead)  # it is what every run begins with
            if stream:
                return EventStream(_events(head, first, updates))
            while not isinstance(first, Answer):
                first = await anext(updates)
            return JSONResponse(completion(head, first))
        except BaseException:
            await updates.aclose()  # type: ignore[attr-defined]
            raise

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["id"]
        if name not in self.gateway.limits.models:
            raise refusal_of(InputError("model", name[:60], ", ".join(self.gateway.limits.models)))
        return JSONResponse(self._model() | {"id": name})

    def _model(self) -> dict[str, Any]:
        recipe = self.gateway.recipe
        return {
            "id": self.gateway.limits.models[0],
            "object": "model",
            "created": self.started,
            "owned_by": "cascade-runtime",
            "max_model_len": recipe.cascade.max_len,
            "cascade": {
                "recipe": recipe.name,
                "levels": list(recipe.cascade.levels),
                "mode": recipe.cascade.mode,
                "slots": recipe.cascade.slots,
                "notes": list(recipe.marks),
            },
        }

    async def request(self, request: Request) -> Response:
        return JSONResponse(await self._recalled(request, "request"))

    async def trace(self, request: Request) -> Response:
        found = await self._recalled(request, "trace")
        if not found:
            raise not_found("the request has no trace: it has not ended in an answer")
        return JSONResponse(found)

    async def cancel(self, request: Request) -> Response:
        who, asked = caller(request), request.path_params["id"]
        if not self.gateway.cancel(who, asked) and not await self.elsewhere.cancel(who, asked):
            raise not_found("no such request is running")
        return JSONResponse({"id": asked, "object": "cascade.request", "cancelled": True})

    async def _recalled(self, request: Request, what: str) -> dict[str, Any]:
        who, asked = caller(request), request.path_params["id"]
        found = recall(self.gateway, who, asked, what)
        if found is None:
            found = await self.elsewhere.recall(who, asked, what)
        if found is None:
            raise not_found("no such request among the last thousand")
        return found

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        gone = await readiness(self.gateway, self.vitals)
        return JSONResponse({"status": "ok", "without": list(gone)})

    async def deep_health(self, request: Request) -> Response:
        told = await self.vitals.canary()
        return JSONResponse(told, HTTPStatus.OK if told["status"] == "ok" else HTTPStatus.SERVICE_UNAVAILABLE)

    async def metrics(self, request: Request) -> Response:
        told = await self.elsewhere.metrics()
        text = merged(told) if told else self.gateway.counters.text(await self.vitals.stats())
        return Response(text, media_type=CONTENT_TYPE)

    async def version(self, request: Request) -> Response:
        return JSONResponse({"version": cascade_runtime.__version__})

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(document(self.gateway, request.app.routes))


async def _events(head: ChatHead, first: Update, updates: AsyncIterator[Update]) -> AsyncIterator[bytes]:
    """The server-sent events of one answer; what goes wrong on the way is an event, too."""
    chunks = ChunkWriter(head)
    async with aclosing(updates):  # type: ignore[type-var]
        yield event(chunks.opening())
        update = first
        try:
            while not isinstance(update, Answer):
                assert isinstance(update, Piece)  # only a run's first update is a head
                yield event(chunks.of(update))
                update = await anext(updates)
        except CascadeError as error:
            yield event(refusal_of(error).body(head.request_id))
        else:
            for chunk in chunks.closing(update):
                yield event(chunk)
        yield DONE


async def read_body(request: Request, limit: int) -> bytes:
    """The body, as JSON is announced and never more than the limit."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise bad_request("the body must be application/json", "unsupported_media_type", status=415)
    too_large = bad_request(f"the body may have {limit} bytes at most", "body_too_large", status=413)
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or len(announced) > 18 or int(announced) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for part in request.stream():
                body += part
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise bad_request(f"the body did not arrive within {_BODY_S:g} s", "body_too_slow", status=408) from None
    return bytes(body)


def json_object(raw: bytes) -> Mapping[str, Any]:
    """A body as a JSON object. Raises `Refusal`, before anything is parsed where it has more values than a question."""
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > _MAX_VALUES:
        raise bad_request(f"the body may have {_MAX_VALUES} values and commas at most", "invalid_json")
    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is not JSON: {str(error)[:100]}", "invalid_json") from error
    if not isinstance(body, dict):
        raise bad_request("the body must be a JSON object", "invalid_json")
    return body


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


async def _no_route(request: Request, error: Any) -> Response:
    """For Starlette's own `HTTPException`: no such path, or not with this method."""
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        refusal = bad_request(f"{request.method} is not for this path", "method_not_allowed", status=405)
        refusal.headers["Allow"] = ", ".join(_methods(request))
    elif request.url.path.startswith("/v1/"):
        there = "/v1/chat/completions, /v1/models, /v1/cascade/requests"
        refusal = not_found(f"not supported; there are {there}, and where files are kept /v1/files and /v1/batches")
    else:
        refusal = not_found("no such path")
    return await refuse(request, refusal)


def _methods(request: Request) -> list[str]:
    """What may be done with this path, by all of its routes (Starlette's own error names the first one's)."""
    found = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in found for method in route.methods})


async def _broken(request: Request, error: Exception) -> Response:
    """What no rule foresaw: it is logged where it is raised again, and the caller hears no more than that."""
    refusal = Refusal(status=500, type="server_error", code="internal_error", message="internal error")
    return await refuse(request, refusal)
