"""Who may call at all: `Guard`, in front of every route. It also names requests, and counts responses. (Serve's proxy
names them too: it sends X-Request-Id on, or one of its own, and back to the caller.)

with API keys       a bearer token on every path but /health, /ready and the page's own files
without             only from this machine, and under its own name: a page in a browser that has a name of its own
                    point to 127.0.0.1 (DNS rebinding) is refused by its Host
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cascade_runtime.errors import CascadeError
from cluster.serving.api_keys import ANYBODY, caller_of
from cluster.serving.gateway import Gateway
from cluster.serving.names import given_request_id
from cluster.serving.refusals import Refusal, refusal_of
from cluster.serving.settings import is_loopback

_STATE = "cascade"
_OPEN = ("/", "/health", "/ready")
_PAGE = "/page/"  # its files hold nothing of anybody's; what it asks for is guarded


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app, self._gateway = app, gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._gateway.counters.responded(message["status"])
            await send(message)

        state: dict[str, Any] = {}
        scope[_STATE] = state
        try:
            state["request_id"] = _request_id(request)
            state["caller"] = self._caller(request)
        except Refusal as error:
            response = await refuse(request, error)
            await response(scope, receive, counted)
            return
        await self._app(scope, receive, counted)

    def _caller(self, request: Request) -> str:
        digests = self._gateway.settings.key_digests
        if not digests:
            peer = request.client.host if request.client else ""
            if not is_loopback(peer) or not is_loopback(_host(request)):
                message = "this server has no API keys and answers its own machine only, as 127.0.0.1 or localhost"
                raise Refusal(status=403, type="permission_error", code="not_local", message=message)
        if request.url.path in _OPEN or request.url.path.startswith(_PAGE):
            return ANYBODY
        found = caller_of(request.headers.get("authorization", ""), digests)
        if found is None:
            raise Refusal(
                status=401,
                type="authentication_error",
                code="invalid_api_key",
                message="a valid API key is needed: Authorization: Bearer KEY",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found


def caller(request: Request) -> str:
    """Who asks, as `Guard` found out."""
    return request.scope[_STATE]["caller"]


def request_id(request: Request) -> str:
    """The request's id: its caller's, or a new one."""
    return request.scope[_STATE]["request_id"]


async def refuse(request: Request, error: Exception) -> Response:
    """An error as OpenAI's JSON."""
    assert isinstance(error, Refusal | CascadeError)
    refusal = error if isinstance(error, Refusal) else refusal_of(error)
    name = request.scope.get(_STATE, {}).get("request_id")
    return JSONResponse(refusal.body(name), refusal.status, refusal.all_headers())


def _request_id(request: Request) -> str:
    return given_request_id(request.headers.get("x-request-id"))


def _host(request: Request) -> str:
    """The name in the Host header, without the port."""
    name = request.headers.get("host", "")
    return name[: name.find("]") + 1] if name.startswith("[") else name.partition(":")[0]
