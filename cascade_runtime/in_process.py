"""`InProcess`: the transport that runs the one-process engine in a worker thread, one batch after the other."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

from cascade_runtime.api import Answer, GenerateRequest, Health, Piece, ServedModel
from cascade_runtime.config import Recipe
from cascade_runtime.engine import Engine
from cascade_runtime.errors import CascadeError, DeadlineExceeded, StageError
from cascade_runtime.in_turns import InTurns
from cascade_runtime.transports import MAX_CONCURRENCY, RecentAnswers, Update


class InProcess:
    """The engine behind the client's protocol."""

    def __init__(self, recipe: Recipe) -> None:
        in_turns = recipe.cascade.loading == "in_turns"
        self.engine: Engine | InTurns = InTurns(recipe) if in_turns else Engine.load(recipe)
        self._deadline_s = recipe.deadlines.request_s
        self._turn = threading.Lock()
        self._recent = RecentAnswers()

    async def run(
        self,
        requests: Sequence[GenerateRequest],
        timeout_s: float | None,
        stream: bool,
        concurrency: int = MAX_CONCURRENCY,
    ) -> AsyncIterator[Update]:
        """Answer requests as one batch of the engine, whose slots bound it as well. Abandoning the iterator ends the
        batch after its current round.
        """
        loop, updates = asyncio.get_running_loop(), asyncio.Queue[Update | None]()
        abandoned = threading.Event()

        def work() -> None:
            try:
                detokenizers = [self.engine.stopper(each.sampling).detokenizer() for each in requests]
                with self._turn:
                    for index, update in self.engine.run(requests, concurrency):
                        if abandoned.is_set():
                            return
                        if isinstance(update, Piece):
                            if not stream:
                                continue
                            words = detokenizers[index].add(update.tokens)
                            update = Piece(update, update.tokens, update.masks, words)
                        loop.call_soon_threadsafe(updates.put_nowait, (index, update))
            finally:
                with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                    loop.call_soon_threadsafe(updates.put_nowait, None)

        worker = asyncio.ensure_future(loop.run_in_executor(None, work))
        ended: set[int] = set()
        limit = loop.time() + (self._deadline_s if timeout_s is None else timeout_s) * max(len(requests), 1)
        try:
            while True:
                try:
                    update = await asyncio.wait_for(updates.get(), limit - loop.time())
                except TimeoutError:
                    break
                if update is None:
                    await asyncio.wait([worker])
                    break
                if not isinstance(update[1], str):
                    ended.add(update[0])
                if isinstance(update[1], Answer):
                    self._recent.keep(update[1])
                yield update
            failure = worker.exception() if worker.done() else None
            for index, request in enumerate(requests):
                if index not in ended:
                    yield index, _why(request.request_id, failure)
        finally:
            abandoned.set()

    async def models(self) -> tuple[ServedModel, ...]:
        """The one recipe."""
        return (ServedModel(self.engine.recipe.cascade.name, self.engine.recipe.cascade.levels),)

    async def health(self) -> Health:
        """An engine that is loaded is ready."""
        return Health(True, "ok")

    async def trace(self, request_id: str) -> dict[str, Any]:
        """What encoder and adapter did for one of the last answers; the engine's own passes are not recorded."""
        return self._recent.trace(request_id)

    async def close(self) -> None:
        """Nothing outlives the engine."""


def _why(request_id: str, failure: BaseException | None) -> CascadeError:
    if failure is None:
        return DeadlineExceeded(f"request {request_id}: no answer in time")
    if isinstance(failure, CascadeError):
        return failure
    return StageError("engine", request_id, f"{type(failure).__name__}: {failure}")
