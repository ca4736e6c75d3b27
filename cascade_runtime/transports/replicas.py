"""`Replicas`: several whole cascades behind one front that shards requests over them, and outlives any of them.

    request -> waits here -> the replica with room that would be done with it first -> answer
                   ^                        | it died
                   +------------------------+   once: to another one, from the beginning

A replica is given little more than it has slots for; the rest waits here and goes to whoever finishes, so that a slow
one takes fewer. What is replicated are whole cascades, each with all its stages: answers do not depend on which of them
gives it, since they are a function of the request and its seed. A request is asked again at most once after a stage
failed on it: one that fails twice is the cause, and fails alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cascade_runtime.api import Answer, GenerateRequest, Health, Piece, ServedModel
from cascade_runtime.errors import (
    CapacityError,
    CascadeError,
    ChannelError,
    DeadlineExceeded,
    NotFound,
    StageError,
)
from cascade_runtime.transports.base import MAX_CONCURRENCY, Transport, Update
from cascade_runtime.transports.side_by_side import Tell, side_by_side
from cascade_runtime.transports.told import Told

_TRIES = 2
_REST_S = 5.0  # of a replica that is not ready, until it is asked again
_FULL_S = 0.1
_HEALTH_S = 5.0
_ELSEWHERE = (StageError, ChannelError, CapacityError)  # what another replica may do better
_PROMPT_WORK = 16  # tokens that a prompt costs, in passes of decoding
_MEMORY_S = 60.0  # over which a replica's speed is remembered


@dataclass(eq=False)
class _Replica:
    """One cascade. work: tokens that it was asked for and has not given yet."""

    transport: Transport
    number: int
    inside: int = 0
    work: int = 0
    tokens: float = 0.0
    busy_s: float = 0.0
    busy_since: float = 0.0
    resting_until: float = 0.0

    @property
    def rate(self) -> float | None:
        """Tokens per second while it was busy; None before it has given any."""
        return self.tokens / self.busy_s if self.tokens and self.busy_s else None

    def enter(self, work: int, now: float) -> None:
        self.busy_since = now if not self.inside else self.busy_since
        self.inside, self.work = self.inside + 1, self.work + work

    def leave(self, work: int, now: float) -> None:
        self.inside, self.work = self.inside - 1, self.work - work
        self.busy_s, self.busy_since = self.busy_s + now - self.busy_since, now
        if self.busy_s > _MEMORY_S:
            self.tokens, self.busy_s = self.tokens / 2, self.busy_s / 2


class Replicas:
    """A `Transport` over others. slots: requests that each answers at a time. patience_s: for a replica to be there,
    where the request has no deadline of its own. on_close: called last by `close`.
    """

    def __init__(
        self,
        transports: Sequence[Transport],
        *,
        slots: int,
        patience_s: float,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._replicas = [_Replica(transport, number) for number, transport in enumerate(transports)]
        self._most = slots + 1 + slots // 4  # a freed slot finds the next request at the replica already
        self._patience_s, self._on_close = patience_s, on_close
        self._changed = asyncio.Condition()

    def run(
        self,
        requests: Sequence[GenerateRequest],
        timeout_s: float | None,
        stream: bool,
        concurrency: int = MAX_CONCURRENCY,
    ) -> AsyncIterator[Update]:
        """Answer requests side by side, each by one replica. Leaving the iterator early cancels what still runs."""
        ask = partial(self._answer, timeout_s=timeout_s, stream=stream)
        return side_by_side(requests, concurrency, ask, waiting=None)

    async def models(self) -> tuple[ServedModel, ...]:
        """The one recipe."""
        return await self._replicas[0].transport.models()

    async def health(self) -> Health:
        """Ready while one replica is; those that are not are named."""
        told = await asyncio.gather(*(self._healthy(replica) for replica in self._replicas))
        ill = [f"replica {replica.number}" for replica, well in zip(self._replicas, told, strict=True) if not well]
        return Health(any(told), f"not ready: {', '.join(ill)}" if ill else "ok")

    async def trace(self, request_id: str) -> dict[str, Any]:
        """Of whichever replica answered. Raises `NotFound`."""
        for replica in self._replicas:
            try:
                return await replica.transport.trace(request_id)
            except NotFound:
                continue
        raise NotFound(f"request {request_id[:64]!r} is not among the last answered here")

    async def close(self) -> None:
        """Stop all of them."""
        await asyncio.gather(*(replica.transport.close() for replica in self._replicas))
        await asyncio.to_thread(self._on_close)

    # -- one request -------------------------------------------------------------------------------------------------

    async def _answer(self, request: GenerateRequest, tell: Tell, *, timeout_s: float | None, stream: bool) -> Answer:
        failed, tried, told = 0, set[int](), Told()
        until: float | None = None
        while True:
            now = time.monotonic()
            replica = await self._take(request, tried, until or now + (timeout_s or self._patience_s))
            until = until or time.monotonic() + (timeout_s or self._patience_s)  # counts from when it was first taken
            left_s = None if timeout_s is None else max(0.05, until - time.monotonic())
            try:
                outcome = await self._ask(replica, request, left_s, stream, told.filtered(tell))
                if isinstance(outcome, _ELSEWHERE):
                    replica.resting_until = time.monotonic() + _REST_S  # before its place is taken by the next
            finally:
                await self._free(replica, request)
            if isinstance(outcome, Answer):
                return outcome
            if not isinstance(outcome, _ELSEWHERE):
                raise outcome
            full = isinstance(outcome, CapacityError)
            if await self._healthy(replica):
                replica.resting_until = time.monotonic() + _FULL_S if full else 0.0
            if not full:
                failed += 1
                tried.add(replica.number)
            if failed == _TRIES or len(self._replicas) == 1 or time.monotonic() >= until:
                raise outcome

    async def _ask(
        self, replica: _Replica, request: GenerateRequest, left_s: float | None, stream: bool, tell: Tell
    ) -> Answer | CascadeError:
        updates: Any = replica.transport.run([request], left_s, stream, 1)
        try:
            async for _, update in updates:
                if not isinstance(update, Piece):
                    if isinstance(update, Answer):
                        replica.tokens += len(update.token_ids)
                    return update
                await tell(update)
        finally:
            await updates.aclose()
        return StageError("replica", request.request_id, "it ended without an answer")

    async def _take(self, request: GenerateRequest, tried: set[int], until: float) -> _Replica:
        """The replica with room that would be done first; waits for one. Raises `DeadlineExceeded`."""
        while True:
            now = time.monotonic()
            ready = [replica for replica in self._replicas if replica.resting_until <= now]
            rested = next((replica for replica in ready if replica.resting_until), None)
            if rested is not None:  # asked by one request, while the others go elsewhere
                rested.resting_until = now + _REST_S
                if await self._healthy(rested):
                    rested.resting_until = 0.0
                continue
            room = [replica for replica in ready if replica.inside < self._most]
            fresh = [replica for replica in room if replica.number not in tried] or room
            if fresh:
                rates = [replica.rate for replica in self._replicas if replica.rate]
                usual = sum(rates) / len(rates) if rates else 1.0
                work = _work(request)
                chosen = min(fresh, key=lambda each: ((each.work + work) / (each.rate or usual), each.number))
                chosen.enter(work, now)
                return chosen
            if now >= until:
                raise DeadlineExceeded(f"request {request.request_id}: no replica was ready in time")
            awake = min((r.resting_until for r in self._replicas if r.resting_until > now), default=until)
            async with self._changed:
                try:
                    await asyncio.wait_for(self._changed.wait(), max(0.01, min(awake, until) - now))
                except TimeoutError:
                    continue

    async def _free(self, replica: _Replica, request: GenerateRequest) -> None:
        replica.leave(_work(request), time.monotonic())
        async with self._changed:
            self._changed.notify_all()

    async def _healthy(self, replica: _Replica) -> bool:
        try:
            return (await asyncio.wait_for(replica.transport.health(), _HEALTH_S)).ready
        except (CascadeError, TimeoutError):
            return False


def _work(request: GenerateRequest) -> int:
    return request.sampling.max_tokens + _PROMPT_WORK
