"""Several cascades behind one front: who gets what, and what happens to the requests of one that dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest

from cascade_runtime.api import Answer, GenerateRequest, Health, Piece, ServedModel, Timings
from cascade_runtime.config import SamplingParams
from cascade_runtime.errors import CapacityError, CascadeError, NotFound, StageError
from cascade_runtime.events import Events
from cascade_runtime.transports import Replicas, Update

NOTHING = Events(np.arange(4), np.zeros(4, int), np.zeros(4, int), np.zeros(4, int), width=8, height=8)


def request(seed: int, tokens: int = 6) -> GenerateRequest:
    return GenerateRequest(events=NOTHING, question="?", sampling=SamplingParams(seed=seed, max_tokens=tokens))


def said(one: GenerateRequest) -> list[int]:
    """The answer is a function of the request, whoever gives it."""
    return [(one.sampling.seed * 7 + k) % 100 for k in range(one.sampling.max_tokens)]


def answer(one: GenerateRequest) -> Answer:
    tokens = said(one)
    return Answer(
        request_id=one.request_id,
        text="".join(f"<{token}>" for token in tokens),
        token_ids=tuple(tokens),
        pieces=tuple(f"<{token}>" for token in tokens),
        finish_reason="length",
        levels=("target",),
        masks=(1,) * len(tokens),
        timings=Timings(1.0, 2.0),
        edges=(),
        gate=None,
        mode="strict",
        target_passes=len(tokens),
        prompt_tokens=1,
        notes=(),
    )


class Scripted:
    """A cascade of `slots` slots that takes so long for each token, and dies with its n-th request if told so."""

    def __init__(self, token_s: float = 0.0, *, step: int = 2, dies_at: int = 0, poison: int = -1) -> None:
        self.token_s, self.step, self.dies_at, self.poison = token_s, step, dies_at, poison
        self.asked: list[int] = []
        self.answered = self.left = self.most = self.now = 0
        self.alive, self.closed = True, False

    async def run(
        self, requests: Sequence[GenerateRequest], timeout_s: float | None, stream: bool, concurrency: int = 1
    ) -> AsyncIterator[Update]:
        (one,) = requests
        self.asked.append(one.sampling.seed)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            if len(self.asked) == self.dies_at:
                self.alive = False
            for start in range(0, one.sampling.max_tokens, self.step):
                await asyncio.sleep(self.step * self.token_s)
                if start and (not self.alive or one.sampling.seed == self.poison):
                    yield 0, StageError("target", one.request_id, "its process has died")
                    return
                tokens = said(one)[start : start + self.step]
                if stream:
                    words = [f"<{token}>" for token in tokens]
                    yield 0, Piece("".join(words), tokens, [1] * len(tokens), words)
            self.answered += 1
            yield 0, answer(one)
        finally:
            self.now -= 1
            self.left += 1

    async def models(self) -> tuple[ServedModel, ...]:
        return (ServedModel("scripted", ("target",)),)

    async def health(self) -> Health:
        return Health(self.alive, "ok" if self.alive else "dead")

    async def trace(self, request_id: str) -> dict[str, Any]:
        if self.asked and request_id == "known":
            return {"by": self.asked[0]}
        raise NotFound("no")

    async def close(self) -> None:
        self.closed = True


def front(*replicas: Any, slots: int = 2) -> Replicas:
    return Replicas(replicas, slots=slots, patience_s=5.0)


async def outcomes(replicas: Replicas, requests: list[GenerateRequest], stream: bool = False) -> list[Any]:
    done: dict[int, Any] = {}
    async for index, update in replicas.run(requests, None, stream):
        if not isinstance(update, str):
            done[index] = update
    return [done[index] for index in range(len(requests))]


def test_rows_are_shared_and_keep_their_order() -> None:
    a, b = Scripted(0.0005), Scripted(0.0005)
    requests = [request(seed) for seed in range(40)]
    told = asyncio.run(outcomes(front(a, b), requests))
    assert [list(each.token_ids) for each in told] == [said(one) for one in requests]
    assert sorted(a.asked + b.asked) == list(range(40)) and min(len(a.asked), len(b.asked)) >= 8
    assert max(a.most, b.most) <= 3  # of two slots, and one that waits for them


def test_a_slow_replica_takes_fewer() -> None:
    slow, fast = Scripted(0.008), Scripted(0.0004)
    asyncio.run(outcomes(front(slow, fast), [request(seed) for seed in range(60)]))
    assert slow.answered + fast.answered == 60 and slow.answered < 15


def test_expected_work_counts_and_not_the_number_of_requests() -> None:
    a, b = Scripted(0.001), Scripted(0.001)
    asyncio.run(outcomes(front(a, b, slots=8), [request(0, 200), *(request(seed, 4) for seed in range(1, 9))]))
    assert sorted(map(len, (a.asked, b.asked))) == [1, 8]  # the long one alone, the short ones beside each other


@pytest.mark.parametrize("stream", [False, True])
def test_requests_of_a_dead_replica_go_to_another_and_say_the_same(stream: bool) -> None:
    dying, well = Scripted(0.0005, dies_at=5, step=2), Scripted(0.0005, step=3)

    async def ask() -> tuple[dict[int, Any], dict[int, list[Piece]]]:
        done: dict[int, Any] = {}
        pieces: dict[int, list[Piece]] = {}
        async for index, update in front(dying, well).run([request(seed, 9) for seed in range(20)], None, stream):
            if isinstance(update, Piece):
                pieces.setdefault(index, []).append(update)
            else:
                done[index] = update
        return done, pieces

    done, pieces = asyncio.run(ask())
    assert [list(done[index].token_ids) for index in range(20)] == [said(request(seed, 9)) for seed in range(20)]
    assert not dying.alive and len(set(dying.asked) & set(well.asked)) >= 1  # asked twice
    assert len(dying.asked) <= 6  # nothing more once it was found dead
    for index in range(20) if stream else ():
        assert "".join(pieces[index]) == done[index].text
        assert [token for piece in pieces[index] for token in piece.tokens] == list(done[index].token_ids)
        assert "".join(word for piece in pieces[index] for word in piece.words) == done[index].text


def test_a_request_that_fails_twice_fails_alone() -> None:
    replicas = [Scripted(poison=3), Scripted(poison=3), Scripted(poison=3)]
    told = asyncio.run(outcomes(front(*replicas), [request(seed) for seed in range(8)]))
    assert [isinstance(each, StageError) for each in told] == [seed == 3 for seed in range(8)]
    assert sum(each.asked.count(3) for each in replicas) == 2


def test_a_replica_that_is_full_is_left_alone_for_a_moment() -> None:
    class Full(Scripted):
        refusals = 0

        async def run(self, *args: Any, **more: Any) -> AsyncIterator[Update]:
            self.refusals += 1
            yield 0, CapacityError("full")

    full, well = Full(), Scripted()
    told = asyncio.run(outcomes(front(full, well), [request(seed) for seed in range(6)]))
    assert all(isinstance(each, Answer) for each in told) and full.refusals >= 1


def test_when_all_are_dead_every_request_ends() -> None:
    gone = [Scripted(dies_at=1), Scripted(dies_at=1)]
    replicas = Replicas(gone, slots=2, patience_s=0.2)
    told = asyncio.run(outcomes(replicas, [request(seed) for seed in range(4)]))
    assert all(isinstance(each, CascadeError) for each in told)
    assert asyncio.run(replicas.health()) == Health(False, "not ready: replica 0, replica 1")


def test_leaving_early_ends_what_runs() -> None:
    a, b = Scripted(0.05), Scripted(0.05)

    async def ask() -> None:
        updates: Any = front(a, b).run([request(seed) for seed in range(6)], None, True)
        await anext(updates)
        await updates.aclose()

    asyncio.run(ask())
    assert (a.now, b.now) == (0, 0) and a.answered + b.answered < 6


def test_the_front_speaks_for_all_of_them() -> None:
    async def ask() -> None:
        a, b = Scripted(), Scripted()
        replicas = front(a, b)
        await outcomes(replicas, [request(5)])
        assert (await replicas.trace("known")) == {"by": 5}
        with pytest.raises(NotFound):
            await replicas.trace("other")
        b.alive = False
        assert await replicas.health() == Health(True, "not ready: replica 1")
        assert await replicas.models() == await a.models()
        await replicas.close()
        assert a.closed and b.closed

    asyncio.run(ask())
