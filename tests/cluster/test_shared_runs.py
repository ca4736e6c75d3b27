"""One request, its run and who follows it: what one key and one id mean, and what is remembered of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from chat_bodies import chat_body

from cascade_runtime.api import Answer, Piece, Timings
from cascade_runtime.config import load_recipe
from cascade_runtime.errors import CapacityError, InputError, StageError
from cluster.serving.chat_answer import ChatHead
from cluster.serving.gateway import Call, Gateway
from cluster.serving.ledger import Entry, Ledger
from cluster.serving.settings import ServerSettings
from cluster.serving.shared_runs import Run, SharedRuns

HEAD = ChatHead(
    request_id="r",
    created=0,
    model="m",
    fingerprint="f",
    recipe="r",
    levels=("light", "heavy"),
    seed=0,
    recording={},
    include_usage=False,
)
ANSWER = Answer("r", "ab", (1, 2), ("a", "b"), "stop", ("light", "heavy"), (2, 2), Timings(1.0, 2.0))


def test_a_run_is_followed_from_its_beginning_and_ends_with_its_last_follower() -> None:
    async def check() -> None:
        go = asyncio.Event()
        ended: list[Any] = []

        async def source() -> AsyncIterator[Any]:
            yield HEAD
            yield Piece("a")
            await go.wait()
            yield Piece("b")
            yield ANSWER

        run = Run(source(), ended.append)
        first, second = run.follow(), run.follow()
        assert [await anext(first), await anext(first)] == [HEAD, "a"] and await anext(second) is HEAD
        await first.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        assert not ended  # the second still follows
        go.set()
        assert [update async for update in second] == ["a", "b", ANSWER]
        assert [update async for update in run.follow()] == [HEAD, "a", "b", ANSWER]
        await asyncio.sleep(0)
        assert ended == [ANSWER] and not run.failed

        left = Run(source(), ended.append)
        go.clear()
        follower = left.follow()
        await anext(follower)
        await follower.aclose()  # type: ignore[attr-defined]
        with pytest.raises(StageError, match="cancelled"):
            _ = [update async for update in left.follow()]
        assert left.failed and isinstance(ended[-1], StageError)

    asyncio.run(check())


def test_who_asks_again_while_a_cancelled_run_still_ends_gets_an_answer_of_its_own() -> None:
    """A connection broke; its client asks again with the same key, and the same id, before the slots are free."""

    async def check() -> None:
        freed, inside = asyncio.Event(), list[str]()

        class Slow:
            async def run(self, requests: Any, *rest: Any) -> AsyncIterator[Any]:
                inside.append(requests[0].request_id)
                if len(inside) > 1:
                    yield 0, ANSWER
                    return
                try:
                    await asyncio.sleep(60)
                finally:
                    await freed.wait()

        gateway = Gateway(ServerSettings(), load_recipe("light_heavy"), Slow())  # type: ignore[arg-type]
        call = Call(body=chat_body(), request_id="one", stream=False, idempotency_key="k", body_digest="d")
        broken = gateway.start(gateway.enter("a"), call)
        follower = broken.follow()
        await anext(follower)
        while not inside:
            await asyncio.sleep(0.001)
        await follower.aclose()  # type: ignore[attr-defined]
        broken.cancel()  # it does not end its waiting
        assert broken.failed and gateway.inside == 1
        again = gateway.start(gateway.enter("a"), call)
        assert [update async for update in again.follow()][-1] is ANSWER
        entry = gateway.find("a", "one")
        assert entry is not None and entry.status == "done" and gateway.inside == 1
        with pytest.raises(InputError, match="Idempotency-Key"):
            gateway.start(gateway.enter("a"), replace(call, body_digest="other"))
        freed.set()
        with pytest.raises(StageError, match="cancelled"):
            await _last(broken)
        assert entry.status == "done" and entry.ended_at is not None

    asyncio.run(check())


async def _last(run: Run) -> Any:
    return [update async for update in run.follow()][-1]


def test_a_key_is_kept_for_its_body_until_its_time_is_over_or_its_run_has_failed() -> None:
    async def check() -> None:
        now = [0.0]
        shared = SharedRuns(clock=lambda: now[0])

        async def source(last: Any) -> AsyncIterator[Any]:
            yield HEAD
            if isinstance(last, Exception):
                raise last
            yield last

        run = Run(source(ANSWER), lambda _: None)
        shared.keep("a", "k", "digest", run)
        assert shared.find("a", "k", "digest") is run
        assert shared.find("b", "k", "other") is None  # another caller's key is another key
        with pytest.raises(InputError, match="Idempotency-Key"):
            shared.find("a", "k", "other")
        now[0] = 600.0
        assert shared.find("a", "k", "digest") is None
        failing = Run(source(CapacityError("full")), lambda _: None)
        shared.keep("a", "k", "digest", failing)
        with pytest.raises(CapacityError):
            _ = [update async for update in failing.follow()]
        assert shared.find("a", "k", "digest") is None

    asyncio.run(check())


def test_the_ledger_forgets_the_oldest_that_have_ended() -> None:
    ledger = Ledger()
    running = Entry("first", 0, False)
    ledger.open("a", running)
    for number in range(1100):
        ledger.open("a", Entry(str(number), 0, False, outcome=ANSWER, head=HEAD))
    assert ledger.find("a", "first") is running and ledger.find("a", "50") is None
    assert ledger.find("a", "1099") is not None and ledger.find("b", "1099") is None
