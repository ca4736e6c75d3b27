"""`RayTransport`: the client's way to a pipeline of Ray actors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from actors.controller import MAX_WAITING
from cascade_runtime.api import Answer, GenerateRequest, Health, ServedModel
from cascade_runtime.config import Recipe
from cascade_runtime.errors import ConfigError, DeadlineExceeded, InputError, RemoteError
from cascade_runtime.transports import MAX_CONCURRENCY, RecentAnswers, Tell, Told, Update, side_by_side
from cluster.launch import Pipeline, Report, launch, plain_error
from cluster.ray_auth import tell_open_ray

log = logging.getLogger(__name__)
_CONNECT_S = 5.0
_CANCEL_S = 5.0  # that a request may take to end, before nobody waits for it any more
_PAUSE_S = 0.1  # between looks for another controller


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
    tell_open_ray(address, log.warning)
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
        self.retried = 0  # requests that a second controller was asked

    def run(
        self,
        requests: Sequence[GenerateRequest],
        timeout_s: float | None,
        stream: bool,
        concurrency: int = MAX_CONCURRENCY,
    ) -> AsyncIterator[Update]:
        """Answer requests side by side. Leaving the iterator early cancels those that still run."""
        ask = partial(self._answer, timeout_s=timeout_s, stream=stream)
        return side_by_side(requests, concurrency, ask, waiting=None)

    async def _answer(self, request: GenerateRequest, tell: Tell, *, timeout_s: float | None, stream: bool) -> Answer:
        deadlines = self.pipeline.recipe.deadlines
        grace_s = (deadlines.request_s if timeout_s is None else timeout_s) + deadlines.control_s
        async with self._room:
            try:
                async with asyncio.timeout(grace_s):
                    answer = await self._ask(request, timeout_s, stream, tell)
            except TimeoutError:
                raise DeadlineExceeded(f"request {request.request_id}: the controller is silent") from None
            except RayError as error:
                raise plain_error(error, "controller") from None
            except (asyncio.CancelledError, RemoteError):  # nobody listens, or to another answer than was begun
                await self._cancel(request.request_id)
                raise
        self._recent.keep(answer)
        return answer

    async def _cancel(self, request_id: str) -> None:
        """End a request inside, and wait for its slots, if they come in time: who asks next finds them free."""
        ended = asyncio.ensure_future(self.pipeline.controller.start("cancel", request_id))
        with contextlib.suppress(RayError, TimeoutError):
            await asyncio.wait_for(ended, _CANCEL_S)

    async def _ask(self, request: GenerateRequest, timeout_s: float | None, stream: bool, tell: Tell) -> Answer:
        """Ask the controller; the next one, should it die meanwhile: the answer is the same. Nothing is told twice."""
        told, again = Told(), False
        while True:
            controller: Any = self.pipeline.controller.actor
            try:
                return told.checked(await self._ask_once(controller, request, timeout_s, stream, told.filtered(tell)))
            except RayActorError as error:
                unreachable = isinstance(error, ActorUnavailableError)
                if isinstance(error, RayTaskError) or not await self._other_controller(controller, unreachable):
                    raise
            except InputError as error:
                if error.field != "request_id" or not again:
                    raise
                await asyncio.sleep(_PAUSE_S)  # the call that was lost is still at it
            self.retried += not again
            again = True

    async def _other_controller(self, controller: Any, unreachable: bool) -> bool:
        """Wait for the one that is started in place of this one; False where none will be."""
        supervisor = self.pipeline.supervisor
        while supervisor is not None and "controller" not in supervisor.given_up and not self.pipeline.closed:
            await asyncio.sleep(_PAUSE_S)
            if unreachable or self.pipeline.controller.actor is not controller:
                return True
        return False

    async def _ask_once(
        self, controller: Any, request: GenerateRequest, timeout_s: float | None, stream: bool, tell: Tell
    ) -> Answer:
        if not stream:
            return await controller.generate.remote(request, timeout_s)
        answer: Answer | None = None
        async for reference in controller.stream.options(num_returns="streaming").remote(request, timeout_s):
            update = await reference
            if isinstance(update, Answer):
                answer = update
            else:
                await tell(update)
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
        ready = "controller" not in dead and not set(self.pipeline.recipe.target.members) <= set(dead)
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
