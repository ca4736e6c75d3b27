"""`RayTransport`: the client's way to a pipeline of Ray actors."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError

from actors.controller import MAX_WAITING
from cascade_runtime.api import Answer, GenerateRequest, Health, Piece, ServedModel
from cascade_runtime.config import Recipe
from cascade_runtime.errors import CascadeError, ConfigError, DeadlineExceeded, StageError
from cascade_runtime.transports import MAX_CONCURRENCY, RecentAnswers, Update
from cluster.launch import Pipeline, Report, launch, plain_error

_CONNECT_S = 5.0
Tell = Callable[[Piece | Answer | CascadeError], None]  # what is news of one request


def join(address: str) -> bool:
    """Connect this process to the Ray cluster at an address ("auto": the one here), of which this machine must be a
    node: the stages are spoken to over its object store. Whether it was not connected before. Raises `ConfigError`.
    """
    if ray.is_initialized():
        if address == "auto":
            return False
        raise ConfigError("address", address, '"auto": this process is connected to a Ray already')
    allowed = (
        '"auto" or HOST:PORT of a running cluster\'s head (6379), on one of its nodes; elsewhere an http:// server'
    )
    try:
        if not _reachable(address):
            raise ConnectionError("nobody answers there")
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError("address", address, f"{allowed} ({' '.join(str(error).split())[:200]})") from error
    return True


def _reachable(address: str) -> bool:
    """Whether something listens at HOST:PORT; Ray itself would go on trying for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon:
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except OSError:
        return False
    return True


class RayTransport:
    """A pipeline of its own, started with the client and stopped with it. address: of a Ray cluster that runs already,
    for who is not connected to one; without it a Ray is started, too.
    """

    def __init__(self, recipe: Recipe, *, address: str | None = None, report: Report = lambda line: None) -> None:
        self._joined = address is not None and join(address)
        self.pipeline: Pipeline = launch(recipe, report=report)
        # What waits here has no deadline yet and takes no thread; the controller refuses more than it has threads for,
        # whoever asks, so that control calls still find one.
        self._room = asyncio.Semaphore(MAX_WAITING)
        self._recent = RecentAnswers()

    async def run(
        self,
        requests: Sequence[GenerateRequest],
        timeout_s: float | None,
        stream: bool,
        concurrency: int = MAX_CONCURRENCY,
    ) -> AsyncIterator[Update]:
        """Answer requests side by side. Leaving the iterator early cancels those that still run."""
        updates: asyncio.Queue[Update] = asyncio.Queue()

        def tell(index: int, update: Piece | Answer | CascadeError) -> None:
            updates.put_nowait((index, update))

        places = asyncio.Semaphore(concurrency)

        async def one(index: int, request: GenerateRequest) -> None:
            async with places:
                await self._one(request, timeout_s, stream, partial(tell, index))

        tasks = [asyncio.create_task(one(index, request)) for index, request in enumerate(requests)]
        left = len(requests)
        try:
            while left:
                update = await updates.get()
                left -= not isinstance(update[1], str)
                if isinstance(update[1], Answer):
                    self._recent.keep(update[1])
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

    async def models(self) -> tuple[ServedModel, ...]:
        """The one recipe."""
        cascade = self.pipeline.recipe.cascade
        return (ServedModel(cascade.name, cascade.levels),)

    async def health(self) -> Health:
        """Ready while controller and target answer; a drafter that has died only makes it slower, and is named."""
        told = await asyncio.to_thread(self.pipeline.stats)
        dead = [name for name, stats in told.items() if "problem" in stats]
        ready = not {"controller", self.pipeline.recipe.cascade.levels[-1]} & set(dead)
        return Health(ready, f"no answer from {', '.join(dead)}" if dead else "ok")

    async def trace(self, request_id: str) -> dict[str, Any]:
        """What every stage did for one of the last answers."""
        return self._recent.trace(request_id)

    async def close(self) -> None:
        """Drain and stop the pipeline."""
        await asyncio.to_thread(self.pipeline.close)
        if self._joined:
            self._joined = False
            await asyncio.to_thread(ray.shutdown)
