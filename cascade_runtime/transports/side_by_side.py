"""`side_by_side`: many requests to one server, at most so many at a time, as one stream of what happens to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from cascade_runtime.api import Answer, GenerateRequest, Piece
from cascade_runtime.errors import CascadeError
from cascade_runtime.transports.base import Update

_WAITING = 256  # updates that nobody has taken yet; then the sockets are not read either

Tell = Callable[[Piece], Awaitable[Any]]
Ask = Callable[[GenerateRequest, Tell], Awaitable[Answer]]


async def side_by_side(requests: Sequence[GenerateRequest], concurrency: int, ask: Ask) -> AsyncIterator[Update]:
    """Yields (index, `Piece`) as `ask` tells them, and (index, answer or error) once each. Leaving the iterator early
    cancels what still runs.
    """
    updates: asyncio.Queue[Update] = asyncio.Queue(_WAITING)
    room = asyncio.Semaphore(concurrency)

    async def one(index: int, request: GenerateRequest) -> None:
        async with room:
            outcome: Answer | CascadeError
            try:
                outcome = await ask(request, lambda piece: updates.put((index, piece)))
            except CascadeError as error:
                error.request_id = error.request_id or request.request_id
                outcome = error
        await updates.put((index, outcome))

    tasks = [asyncio.create_task(one(index, request)) for index, request in enumerate(requests)]
    left = len(requests)
    try:
        while left:
            update = await updates.get()
            left -= not isinstance(update[1], str)
            yield update
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
