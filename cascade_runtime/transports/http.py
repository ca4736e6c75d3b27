"""`HttpTransport`: the cascade behind an address that speaks OpenAI's chat completions (chat.py has its JSON).

    run(requests)       POST /v1/chat/completions, side by side, whole or as server-sent events
    models, health      GET /v1/models, GET /ready
    trace(request_id)   GET /v1/cascade/requests/{id}/trace

One request: every try carries the same X-Request-Id and Idempotency-Key, so that the server answers it once however
often it is asked; retries.py says when it is asked again, a stream that broke off too: it goes on where it was. The
deadline spans all tries. A caller who stops reading closes the connection, and the server stops working for it. Nothing
is followed to another address, and of what a server sends no more is kept than an answer can be long.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx2 as httpx

from cascade_runtime import __version__
from cascade_runtime.api import Answer, GenerateRequest, Health, ServedModel
from cascade_runtime.errors import CascadeError, DeadlineExceeded, InputError, RemoteError
from cascade_runtime.transports.base import DEFAULT_TIMEOUT_S, MAX_CONCURRENCY, Remote, Update
from cascade_runtime.transports.chat import ChunkReader, chat_body, read_completion
from cascade_runtime.transports.fields import Fields
from cascade_runtime.transports.refusal import error_of
from cascade_runtime.transports.retries import retry_after_s, wait_before_retry
from cascade_runtime.transports.side_by_side import Tell, side_by_side
from cascade_runtime.transports.told import Told

_CONNECT_S = 10.0
_CONTROL_S = 30.0  # for all that is not an answer
_MAX_BYTES = 64 * 2**20  # of one response
_MAX_EVENT_BYTES = 16 * 2**20  # of one server-sent event
_MAX_MODELS = 1024
# The server refused: it has not begun; others of 500 and more where it says when to come back, or is not what answered.
_AGAIN = (429, 502, 503)


class _Again(Exception):
    """A try that failed in a way that another may not: with what, and how soon the server wants to see one."""

    def __init__(self, error: CascadeError, asked_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.asked_s = asked_s


class HttpTransport:
    """The client's side of one server."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self._chance = random.Random()
        headers = {"Accept-Encoding": "identity", "User-Agent": f"cascade-runtime/{__version__}"}
        if remote.api_key is not None:
            headers["Authorization"] = f"Bearer {remote.api_key}"
        self._http = httpx.AsyncClient(
            base_url=remote.url.rstrip("/") + "/",
            headers=headers,
            timeout=httpx.Timeout(None, connect=_CONNECT_S),  # the rest has the request's own deadline
            limits=httpx.Limits(max_connections=MAX_CONCURRENCY, max_keepalive_connections=16),
            follow_redirects=False,
        )

    def run(
        self,
        requests: Sequence[GenerateRequest],
        timeout_s: float | None,
        stream: bool,
        concurrency: int = MAX_CONCURRENCY,
    ) -> AsyncIterator[Update]:
        """Answer requests side by side. Leaving the iterator early closes the connections of those that still run."""
        return side_by_side(requests, concurrency, partial(self._ask, timeout_s=timeout_s, stream=stream))

    async def _ask(self, request: GenerateRequest, tell: Tell, *, timeout_s: float | None, stream: bool) -> Answer:
        """One request, asked again while that can help. Raises the error it ends with."""
        loop = asyncio.get_running_loop()
        limit_s = DEFAULT_TIMEOUT_S if timeout_s is None else timeout_s
        deadline = loop.time() + limit_s
        body = await asyncio.to_thread(chat_body, request, stream=stream, deadline_s=limit_s)
        headers = {
            "Content-Type": "application/json",
            "X-Request-Id": request.request_id,
            "Idempotency-Key": request.request_id,
        }
        send = partial(self._http.build_request, "POST", "v1/chat/completions", content=body, headers=headers)
        told, tries = Told(), 0
        while True:
            tries += 1
            try:
                read = partial(self._read_stream, tell=told.filtered(tell)) if stream else self._read_answer
                async with asyncio.timeout_at(deadline):
                    return told.checked(await self._try(send(), read, request.request_id))
            except TimeoutError:
                raise DeadlineExceeded(f"request {request.request_id}: no answer in {limit_s:g} s") from None
            except _Again as failed:
                left_s = deadline - loop.time()
                wait_s = wait_before_retry(tries, self.remote.max_retries, failed.asked_s, left_s, self._chance)
                if wait_s is None:
                    raise failed.error from None
                await asyncio.sleep(wait_s)

    async def _try(self, sent: httpx.Request, read: Callable[..., Any], request_id: str) -> Answer:
        async with self._responding(sent) as response:
            if response.status_code != 200:
                asked_s = retry_after_s(response.headers.get("retry-after"))
                try:
                    said = await _json(response, lenient=True)
                except httpx.HTTPError as error:
                    raise _Again(self._broken(error), asked_s) from error
                error = error_of(response.status_code, said, request_id, asked_s)
                proxys = not (isinstance(said, dict) and "error" in said)  # whose replica has died, say
                if response.status_code in _AGAIN or (response.status_code >= 500 and (asked_s is not None or proxys)):
                    raise _Again(error, asked_s)
                raise error
            return await read(response, request_id)

    @contextlib.asynccontextmanager
    async def _responding(self, sent: httpx.Request) -> AsyncGenerator[httpx.Response]:
        """The response, its body still to be read. Where the connection fails before there is one: `_Again`."""
        try:
            response = await self._http.send(sent, stream=True)
        except httpx.TimeoutException as error:
            raise _Again(
                RemoteError(f"{self.remote.url}: no connection in {_CONNECT_S:g} s", retryable=True)
            ) from error
        except (httpx.HTTPError, OSError) as error:
            raise _Again(RemoteError(f"{self.remote.url}: {_short(error)}", retryable=True)) from error
        try:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise RemoteError(f"{self.remote.url}: a compressed response, which was not asked for")
            yield response
        finally:
            await response.aclose()

    def _broken(self, error: Exception) -> RemoteError:
        return RemoteError(f"{self.remote.url}: broke off: {_short(error)}", retryable=True)

    async def _read_answer(self, response: httpx.Response, request_id: str) -> Answer:
        try:
            data = await _json(response)
        except httpx.HTTPError as error:  # nothing was passed on yet: the server still has the answer
            raise _Again(self._broken(error)) from error
        try:
            return read_completion(data)
        except InputError as error:
            raise RemoteError(f"{self.remote.url}: not an answer: {error}", response.status_code) from error

    async def _read_stream(self, response: httpx.Response, request_id: str, *, tell: Tell) -> Answer:
        reader = ChunkReader()
        answer: Answer | None = None
        try:
            async for data in _events(response):
                if isinstance(data, dict) and "error" in data:
                    raise error_of(200, data, request_id)
                update = reader.read(data)
                if isinstance(update, Answer):
                    answer = update
                elif update is not None:
                    await tell(update)
        except InputError as error:
            if error.request_id:  # the server's own
                raise
            raise RemoteError(f"{self.remote.url}: not a chunk of an answer: {error}", 200) from error
        except httpx.SSEError as error:
            raise RemoteError(f"{self.remote.url}: not a stream of an answer: {_short(error)}", 200) from error
        except httpx.HTTPError as error:
            broken = RemoteError(f"{self.remote.url}: the stream broke off: {_short(error)}", 200, retryable=True)
            raise _Again(broken) from error
        if answer is None:
            broken = RemoteError(f"{self.remote.url}: the stream ended before the answer did", 200, retryable=True)
            raise _Again(broken)
        return answer

    # -- what it says of itself --------------------------------------------------------------------------------------

    async def models(self) -> tuple[ServedModel, ...]:
        """The models of GET /v1/models."""
        _, data = await self._get("v1/models")
        try:
            return Fields(data, "models").each("data", _MAX_MODELS, _model)
        except InputError as error:
            raise RemoteError(f"{self.remote.url}: not a list of models: {error}", 200) from error

    async def health(self) -> Health:
        """GET /ready: a server that answers, but not with 200, is not ready; one that is not reached raises."""
        status, data = await self._get("ready", expected=(200, 503))
        try:
            said = Fields(data, "health").text("status", 256)
        except InputError:
            said = str(error_of(status, data, "")) if status != 200 else "ok"
        return Health(status == 200, said)

    async def trace(self, request_id: str) -> dict[str, Any]:
        """The Chrome trace of one of the last requests. Raises `NotFound`."""
        _, data = await self._get(f"v1/cascade/requests/{quote(request_id, safe='')}/trace")
        if not isinstance(data, dict) or not isinstance(data.get("traceEvents"), list):
            raise RemoteError(f"{self.remote.url}: not a trace", 200)
        return data

    async def _get(self, path: str, expected: tuple[int, ...] = (200,)) -> tuple[int, object]:
        try:
            async with asyncio.timeout(_CONTROL_S), self._responding(self._http.build_request("GET", path)) as response:
                status = response.status_code
                data = await _json(response, lenient=status != 200)
        except TimeoutError:
            raise DeadlineExceeded(f"{self.remote.url}/{path}: no answer in {_CONTROL_S:g} s") from None
        except _Again as failed:
            raise failed.error from None
        except httpx.HTTPError as error:
            raise RemoteError(f"{self.remote.url}/{path}: {_short(error)}", retryable=True) from error
        if status not in expected:
            raise error_of(status, data, "")
        return status, data

    async def close(self) -> None:
        """Close the connections. The server goes on."""
        await self._http.aclose()


def _model(data: object, where: str) -> ServedModel:
    fields = Fields(data, where)
    cascade = fields.inner("cascade") if fields.has("cascade") else None
    levels = cascade.texts("levels", 8, 64) if cascade is not None and cascade.has("levels") else ()
    return ServedModel(fields.text("id", 256), levels)


async def _json(response: httpx.Response, *, lenient: bool = False) -> object:
    """The body as JSON, of bounded size; with `lenient` None for a body that is none. Raises `RemoteError`."""
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > _MAX_BYTES:
            raise RemoteError(f"{response.url.host}: a response of over {_MAX_BYTES} bytes", response.status_code)
    return None if lenient and not body else _parse(bytes(body), response, lenient)


def _parse(text: bytes | str, response: httpx.Response, lenient: bool = False) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if lenient:
            return None
        shown = f"{response.url.host}: {response.headers.get('content-type', 'no type')}, not JSON"
        raise RemoteError(f"{shown} ({type(error).__name__})", response.status_code) from error


async def _events(response: httpx.Response) -> AsyncIterator[object]:
    """The JSON of each event up to [DONE]; of bounded size, one by one and together."""
    total = 0
    async for event in httpx.EventSource(response, max_event_size=_MAX_EVENT_BYTES):
        if event.data == "[DONE]":
            return
        total += len(event.data)
        if total > _MAX_BYTES:
            raise RemoteError(f"{response.url.host}: a stream of over {_MAX_BYTES} characters", response.status_code)
        yield _parse(event.data, response)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
