"""`RayTransport`: the client's way to a pipeline of Ray actors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from ray.exceptions import RayError

from actors.controller import MAX_WAITING
from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe
from cascade_runtime.errors import CascadeError, DeadlineExceeded, StageError
from cascade_runtime.transports import Update
from cluster.launch import Pipeline, Report, launch, plain_error

Tell = Callable[[str | Answer | CascadeError], None]  # what is news of one request


class RayTransport:
    """A pipeline of its own, started with the client and stopped with it."""

    def __init__(self, recipe: Recipe, *, report: Report = lambda line: None) -> None:
        self.pipeline: Pipeline = launch(recipe, report=report)
        # What waits here has no deadline yet and takes no thread; the controller refuses more than it has threads for,
        # whoever asks, so that control calls still find one.
        self._room = asyncio.Semaphore(MAX_WAITING)

    async def run(
        self, requests: Sequence[GenerateRequest], timeout_s: float | None, stream: bool
    ) -> AsyncIterator[Update]:
        """Answer requests side by side. Leaving the iterator early cancels those that still run."""
        updates: asyncio.Queue[Update] = asyncio.Queue()

        def tell(index: int, update: str | Answer | CascadeError) -> None:
            updates.put_nowait((index, update))

        tasks = [
            asyncio.create_task(self._one(request, timeout_s, stream, partial(tell, index)))
            for index, request in enumerate(requests)
        ]
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

    async def _one(self, request: GenerateRequest, timeout_s: float | None, stream: bool, tell: Tell) -> None:
        outcome: Answer | CascadeError
        deadlines = self.pipeline.recipe.deadlines
        grace_s = (deadlines.request_s if timeout_s is None else timeout_s) + deadlines.control_s
        async with self._room:
            try:
                async with asyncio.timeout(grace_s):
                    outcome = await self._ask(request, timeout_s, stream, tell)
            except TimeoutError:
                outcome = DeadlineExceeded(f"request {request.request_id}: the controller is silent")
            except RayError as error:
                outcome = plain_error(error, "controller")
            except asyncio.CancelledError:
                self.pipeline.controller.start("cancel", request.request_id)
                raise
            except Exception as error:  # noqa: BLE001  whatever it is, it belongs to this request, and somebody waits for it
                outcome = StageError("client", request.request_id, f"{type(error).__name__}: {error}")
        tell(outcome)

    async def _ask(self, request: GenerateRequest, timeout_s: float | None, stream: bool, tell: Tell) -> Answer:
        controller: Any = self.pipeline.controller.actor
        if not stream:
            return await controller.generate.remote(request, timeout_s)
        answer: Answer | None = None
        async for reference in controller.stream.options(num_returns="streaming").remote(request, timeout_s):
            update = await reference
            if isinstance(update, Answer):
                answer = update
            else:
                tell(update)
        assert answer is not None  # the controller's stream ends in an answer or raises
        return answer

    async def close(self) -> None:
        """Drain and stop the pipeline."""
        await asyncio.to_thread(self.pipeline.close)
