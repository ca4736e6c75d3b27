"""What a pipeline can do is measured with all streams at once, and every answer counts."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from toy_family import toy_events

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import SamplingParams
from cascade_runtime.errors import StageError
from cluster.chaos.load import Heard, Load, Sent
from cluster.chaos.outcome import count_answers, quantile, recoveries_of
from cluster.chaos.plan import Fault
from cluster.supervision.supervisor import Recovery

STREAMS = 16


class Answering:
    """A transport that answers each request after the same while; how many at once, and in all."""

    def __init__(self) -> None:
        self.answered = self.inside = self.most_inside = 0

    async def run(
        self, requests: Sequence[GenerateRequest], deadline_s: float | None, stream: bool
    ) -> AsyncIterator[tuple[int, Any]]:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        await asyncio.sleep(0.02)
        self.inside -= 1
        self.answered += 1
        answer = object.__new__(Answer)
        for name, value in {"token_ids": (1, 2), "timings": SimpleNamespace(ttft_ms=1.0, total_ms=2.0)}.items():
            object.__setattr__(answer, name, value)
        yield 0, answer


def test_as_many_are_asked_as_is_said() -> None:
    transport = Answering()
    kind = GenerateRequest(events=toy_events(0), question="?", sampling=SamplingParams(max_tokens=2))
    assert asyncio.run(Load(transport, [kind], seed=1).many(37, 8)) == 37  # type: ignore[arg-type]
    assert (transport.answered, transport.most_inside) == (37, 8)


def test_every_answer_of_every_stream_counts() -> None:
    transport = Answering()
    kind = GenerateRequest(events=toy_events(0), question="?", sampling=SamplingParams(max_tokens=2))
    load = Load(transport, [kind], seed=1)  # type: ignore[arg-type]

    async def measure() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        rate = await load.capacity(STREAMS, 0.3)
        return rate, loop.time() - began

    rate, seconds = asyncio.run(measure())
    assert transport.most_inside == STREAMS and transport.answered >= 2 * STREAMS
    assert rate * seconds >= transport.answered  # over the time that `capacity` saw, which is the shorter one
    assert rate * seconds < 1.5 * transport.answered


def test_a_steady_load_tells_of_each_request_as_it_ends_and_keeps_none() -> None:
    transport = Answering()
    kind = GenerateRequest(events=toy_events(0), question="?", sampling=SamplingParams(max_tokens=2))
    load = Load(transport, [kind], seed=1)  # type: ignore[arg-type]
    ended, alive = list[weakref.ref[Any]](), list[int]()

    class Gone(Exception):
        pass

    def over(sent: Any) -> None:
        alive.append(sum(each() is not None for each in ended))
        ended.append(weakref.ref(asyncio.current_task()))
        assert sent.answer is not None and sent.answer.token_ids == (1, 2)
        if len(ended) == 150:
            raise Gone

    with pytest.raises(Gone):  # what goes wrong is not lost with its task
        asyncio.run(load.steady(200.0, 2.0, over))
    assert 300 < transport.answered == len(ended) < 500
    assert max(alive) < 150  # tasks that have just ended, of more than three hundred


def test_a_tally_knows_every_fate() -> None:
    clean = [Heard((1, 2), 1.0, 2.0), Heard((3,), 1.0, 2.0)]
    fates: list[tuple[int, list[Any]]] = [
        (0, [Heard((1, 2), 5.0, 9.0)]),
        (1, [Heard((1, 2), 5.0, 9.0)]),
        (1, []),
        (0, [Heard((1, 2), 5.0, 9.0), Heard((1, 2), 5.0, 9.0)]),
        (0, [StageError("light", "r", "gone")]),
    ]
    told = count_answers([Sent(kind, 0.0, outcomes) for kind, outcomes in fates], clean)
    counts = {"sent": 5, "ok": 3, "identical": 2, "changed": 1, "lost": 1, "duplicated": 1, "client_visible_errors": 1}
    assert told == counts | {"errors": {"StageError": 1}}


def restart(stage: str, noticed_at: float, begun_at: float, loaded_at: float, up_at: float) -> Recovery:
    return Recovery(stage, "died", False, noticed_at, begun_at, loaded_at, up_at)


def test_a_recovery_without_loads_leaves_out_the_seconds_in_which_any_of_its_stages_loaded() -> None:
    done = [(Fault(0.0, "node"), 100.0), (Fault(0.0, "kill", "mid"), 200.0), (Fault(0.0, "kill", "mid"), 300.0)]
    restarts = [
        restart("heavy", 102.0, 102.5, 105.0, 109.0),
        restart("controller", 102.0, 103.0, 108.0, 108.5),
        restart("light", 102.0, 103.5, 104.0, 104.5),
        restart("mid", 200.5, 201.0, 203.0, 203.25),
        restart("mid", 301.0, 301.0, 302.0, 302.5),
    ]
    assert recoveries_of(done, restarts, "node") == [(9.0, 3.5)]  # 102.5 to 108 is loading
    assert recoveries_of(done, restarts, "kill") == [(3.25, 1.25), (2.5, 1.5)]
    apart = [restart("heavy", 101.0, 101.0, 102.0, 102.5), restart("mid", 101.0, 103.0, 105.0, 105.5)]
    assert recoveries_of(done[:1], apart) == [(5.5, 2.5)]
    assert recoveries_of(done[:1], []) == [] and recoveries_of([(Fault(0.0, "pause", "mid"), 0.0)], restarts) == []


def test_a_quantile_is_the_smallest_value_that_enough_do_not_exceed() -> None:
    twenty = list(range(20, 0, -1))
    assert quantile(twenty, 0.95) == 19 and quantile(twenty, 0.96) == 20 and quantile(twenty, 0.5) == 10
    assert quantile(twenty, 1.0) == 20 and quantile(twenty, 0.0) == 1 and quantile([], 0.5) == 0.0
    assert quantile([3.0], 0.99) == 3.0 and quantile([1.0, 2.0, 3.0], 0.5) == 2.0
