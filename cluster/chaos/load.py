"""`Load`: requests at a steady rate, each of a kind whose clean answer is known."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import SamplingParams
from cascade_runtime.errors import CascadeError
from cluster.ray_transport import RayTransport
from cluster.traced_run import QUESTIONS

SCENES = 6


class Heard(NamedTuple):
    """Of an answer, what is compared; the rest would be all that a long run's memory grows by."""

    token_ids: tuple[int, ...]
    ttft_ms: float
    total_ms: float


@dataclass(eq=False, slots=True)
class Sent:
    """One request: which kind, when it was sent, and every last word that came of it."""

    kind: int
    at: float
    outcomes: list[Heard | CascadeError] = field(default_factory=list)
    ended: float = 0.0

    @property
    def answer(self) -> Heard | None:
        return next((each for each in self.outcomes if isinstance(each, Heard)), None)


def kinds_of_request(seed: int, max_tokens: int) -> list[GenerateRequest]:
    """Questions about simulated scenes, half of them greedy, half sampled."""
    from cascade_runtime.training.scenes import simulate_scene

    requests: list[GenerateRequest] = []
    for number in range(SCENES):
        events = simulate_scene(seed + number).events
        for temperature in (0.0, 0.8):
            sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed + number)
            question = QUESTIONS[number % len(QUESTIONS)]
            requests.append(GenerateRequest(events=events, question=question, sampling=sampling))
    return requests


class Load:
    """Requests of these kinds over one transport."""

    def __init__(self, transport: RayTransport, kinds: Sequence[GenerateRequest], seed: int) -> None:
        self._transport, self.kinds = transport, kinds
        self._rng = random.Random(seed)
        self._same: dict[tuple[int, ...], tuple[int, ...]] = {}  # one tuple for equal answers

    async def once_each(self) -> list[Heard]:
        """One answer of each kind, one after the other. Raises whatever one of them raises."""
        answers: list[Heard] = []
        for kind in range(len(self.kinds)):
            sent = await self._send(kind)
            if sent.answer is None:
                assert isinstance(sent.outcomes[0], CascadeError)
                raise sent.outcomes[0]
            answers.append(sent.answer)
        return answers

    async def capacity(self, streams: int, seconds: float) -> float:
        """Answers a second while so many ask all the time."""
        end, answered = time.monotonic() + seconds, 0

        async def ask() -> None:
            nonlocal answered
            while time.monotonic() < end:
                sent = await self._send(self._kind())  # before the sum is read, which others change meanwhile
                answered += sent.answer is not None

        began = time.monotonic()
        await asyncio.gather(*(ask() for _ in range(streams)))
        return answered / (time.monotonic() - began)

    async def many(self, count: int, streams: int) -> int:
        """So many requests, one after the other on each stream; how many were answered."""
        left, answered = count, 0

        async def ask() -> None:
            nonlocal left, answered
            while left > 0:
                left -= 1
                sent = await self._send(self._kind())
                answered += sent.answer is not None

        await asyncio.gather(*(ask() for _ in range(streams)))
        return answered

    async def steady(self, rate: float, seconds: float, ended: Callable[[Sent], None]) -> None:
        """So many requests a second at random times, whatever becomes of those before. ended: is given each one as it
        ends, and nothing is kept of it here.
        """
        began, running = time.monotonic(), set[asyncio.Task[None]]()
        at = began

        async def ask(kind: int) -> None:
            ended(await self._send(kind))

        while (at := at + self._rng.expovariate(rate)) < began + seconds:
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            running = {task for task in running if not task.done() or task.exception() is not None}
            running.add(asyncio.create_task(ask(self._kind())))
        await asyncio.gather(*running)

    async def until(self, over: asyncio.Event, streams: int) -> list[Sent]:
        """So many ask one request after the other until it is over; then the ends of those that still run."""
        sent: list[Sent] = []

        async def ask() -> None:
            while not over.is_set():
                sent.append(await self._send(self._kind()))

        await asyncio.gather(*(ask() for _ in range(streams)))
        return sent

    def _kind(self) -> int:
        return self._rng.randrange(len(self.kinds))

    async def _send(self, kind: int) -> Sent:
        sent = Sent(kind, time.monotonic())
        request = replace(self.kinds[kind], request_id=f"chaos-{self._rng.getrandbits(64):x}")
        async for _, update in self._transport.run([request], None, False):
            if isinstance(update, Answer):
                ids = self._same.setdefault(update.token_ids, update.token_ids)
                sent.outcomes.append(Heard(ids, update.timings.ttft_ms, update.timings.total_ms))
            elif not isinstance(update, str):
                sent.outcomes.append(update)
        sent.ended = time.monotonic()
        return sent
