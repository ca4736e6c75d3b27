"""`answered_windows`: one session. Its reader takes windows as fast as they come; its writer answers one at a time.

    messages -> _read -> NewestWindows(waiting) -> _answer: gateway, as any request of its caller's -> replies, in order
                         the oldest are dropped

A window that is refused or fails is a reply with a `Failure`, and the session goes on; what is wrong with the session
itself ends it. A source that is silent for ten minutes is taken for gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from cascade_runtime.api import Answer
from cascade_runtime.errors import CascadeError
from cascade_runtime.proto import cascade_pb2 as wire
from cascade_runtime.transports import NewestWindows
from cascade_runtime.transports.session import ONE_EVENT
from cluster.serving.chat_answer import ChatHead
from cluster.serving.chat_request import parse_chat
from cluster.serving.gateway import Call, Gateway
from cluster.serving.names import given_request_id
from cluster.serving.refusals import Refusal, bad_request, refusal_of
from cluster.serving.rpc.messages import answer_of, body_of, failure_of

_IDLE_S = 600.0

Requests = AsyncIterator[wire.SessionRequest]


async def answered_windows(gateway: Gateway, caller: str, requests: Requests) -> AsyncIterator[wire.SessionReply]:
    """The replies of one session. Raises `InputError` and `Refusal` for what is wrong with it as a whole."""
    terms = await _terms(gateway, requests)
    windows: NewestWindows[wire.Window] = NewestWindows(terms.waiting or 1)
    yield wire.SessionReply(opened=wire.SessionOpened(levels=gateway.recipe.cascade.levels))
    reading = asyncio.create_task(_read(requests, windows))
    try:
        while (window := await windows.get()) is not None:
            reply = await _answer(gateway, caller, terms, window)
            reply.dropped = windows.dropped
            yield wire.SessionReply(window=reply)
        await reading  # what ended it, where that was not its caller
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _terms(gateway: Gateway, requests: Requests) -> wire.SessionTerms:
    """The first message, tried by the one validator on a recording of one event."""
    first = await _next(requests)
    if first is None or first.WhichOneof("request") != "terms":
        raise bad_request("request: the first message of a session must be its terms", "invalid_value", param="terms")
    smallest = wire.Recording(data=ONE_EVENT.to_ipc_bytes())
    parse_chat(body_of(first.terms, smallest), gateway.limits)
    return first.terms


async def _read(requests: Requests, windows: NewestWindows[wire.Window]) -> None:
    try:
        while (request := await _next(requests)) is not None:
            if request.WhichOneof("request") != "window":
                raise bad_request("request: only windows may follow a session's terms", "invalid_value", param="window")
            windows.put(request.window)
    finally:
        windows.close()


async def _next(requests: Requests) -> wire.SessionRequest | None:
    try:
        async with asyncio.timeout(_IDLE_S):
            return await anext(requests, None)
    except TimeoutError:
        message = f"no window for {_IDLE_S:g} s"
        raise Refusal(status=408, type="invalid_request_error", code="session_idle", message=message) from None


async def _answer(gateway: Gateway, caller: str, terms: wire.SessionTerms, window: wire.Window) -> wire.WindowReply:
    try:
        place = gateway.enter(caller)
        try:
            call = Call(body=body_of(terms, window.recording), request_id=given_request_id(None), stream=False)
            run = gateway.start(place, call)
            window.ClearField("recording")  # it may be large
            del call
        except BaseException:
            place.leave()
            raise
        async with aclosing(run.follow()) as updates:  # type: ignore[type-var]
            head = await anext(updates)
            async for update in updates:
                if isinstance(update, Answer):
                    assert isinstance(head, ChatHead)  # it is what every run begins with
                    return wire.WindowReply(number=window.number, answer=answer_of(head, update))
    except CascadeError as error:
        return wire.WindowReply(number=window.number, failure=failure_of(refusal_of(error)))
    raise AssertionError("a run ended without an answer")
