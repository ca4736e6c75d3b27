"""`side_by_side`: many requests, at most so many at a time, as one stream of what happens to them: a transport's `run`.

    request -> waits for a place -> ask(request, tell) -> (index, Piece) ... (index, Answer or error) -> who iterates
                                                          at most `waiting` lie here

Whatever `ask` raises ends its own request only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from cascade_runtime.api import Answer, GenerateRequest, Piece
from cascade_runtime.errors import CascadeError, StageError
from cascade_runtime.transports.base import Update

_WAITING = 256

Tell = Callable[[Piece], Awaitable[Any]]
Ask = Callable[[GenerateRequest, Tell], Awaitable[Answer]]


async def side_by_side(
    requests: Sequence[GenerateRequest], concurrency: int, ask: Ask, *, waiting: int | None = _WAITING
) -> AsyncIterator[Update]:
    """Yields (index, `Piece`) as `ask` tells them, and (index, answer or error) once each. Leaving the iterator early
    cancels what still runs.

    waiting: updates that nobody has taken yet; then `tell` waits, and what it tells of is not read either. None: where
    those who answer must not be slowed down by one who reads; then answers bound it, which are of bounded length.
    """
    updates: asyncio.Queue[Update] = asyncio.Queue(waiting or 0)
    room = asyncio.Semaphore(concurrency)

    async def one(index: int, request: GenerateRequest) -> None:
        async with room:
            outcome: Answer | CascadeError
            try:
                outcome = await ask(request, lambda piece: updates.put((index, piece)))
            except CascadeError as error:
                error.request_id = error.request_id or request.request_id
                outcome = error
            except Exception as error:  # noqa: BLE001  whatever it is, it belongs to this request, and somebody waits for it
                outcome = StageError("client", request.request_id, f"{type(error).__name__}: {error}")
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
