"""`HandleDoor`: the same questions from other deployments of the same Serve, by handle instead of HTTP.

    cascade = serve.get_app_handle("cascade")                    another deployment, or a driver
    answer = await cascade.chat.remote(body)                     the JSON of POST /v1/chat/completions
    async for chunk in cascade.options(stream=True).chat_stream.remote(body): ...          the chunks of a stream

Bodies, validator, queue and answers are those of HTTP; `stream` in a body is not looked at. Whoever has a handle is
part of the cluster and needs no key: to limits all of them are one caller, `handle`. Errors are raised as the project's
own. A call that is cancelled frees its slot.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from cascade_runtime.api import Answer, Piece
from cascade_runtime.errors import InputError
from cluster.serving.chat_answer import ChatHead, ChunkWriter, completion
from cluster.serving.gateway import Call, Gateway
from cluster.serving.names import given_request_id
from cluster.serving.shared_runs import Update

CALLER = "handle"


class HandleDoor:
    """In front of one replica's gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A `chat.completion`. Raises `InputError` for a body that HTTP would refuse, `CapacityError` where all is
        full, and what the pipeline raises.
        """
        async with aclosing(self._updates(body, stream=False)) as updates:  # type: ignore[type-var]
            head = await anext(updates)
            async for update in updates:
                if isinstance(update, Answer):
                    assert isinstance(head, ChatHead)  # it is what every run begins with
                    return completion(head, update)
        raise AssertionError("a run ended without an answer")

    async def chat_stream(self, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Its `chat.completion.chunk`s, the first as soon as the request is valid. Raises as `chat` does."""
        async with aclosing(self._updates(body, stream=True)) as updates:  # type: ignore[type-var]
            head = await anext(updates)
            assert isinstance(head, ChatHead)
            chunks = ChunkWriter(head)
            yield chunks.opening()
            async for update in updates:
                if isinstance(update, Piece):
                    yield chunks.of(update)
                elif isinstance(update, Answer):
                    for chunk in chunks.closing(update):
                        yield chunk

    async def _updates(self, body: Mapping[str, Any], *, stream: bool) -> AsyncIterator[Update]:
        if not isinstance(body, Mapping):
            raise InputError("body", type(body).__name__, "a mapping, as the JSON of a chat completion")
        place = self._gateway.enter(CALLER)
        try:
            call = Call(body={**body, "stream": stream}, request_id=given_request_id(None), stream=stream)
            run = self._gateway.start(place, call)
            del call
        except BaseException:
            place.leave()
            raise
        async with aclosing(run.follow()) as updates:  # type: ignore[type-var]
            async for update in updates:
                yield update
