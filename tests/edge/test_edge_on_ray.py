"""A core whose stages are Ray actors: every cut gives the target's own tokens, also when the target dies meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from edge.edge_ends import box, core
from toy_family import toy_events, toy_recipe, write_toy_family

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.edge.ingest import windows_of
from cascade_runtime.engine import Engine
from cascade_runtime.proto import edge_pb2
from cluster.edge.box import Reply
from cluster.edge.seeing import seeing_of
from cluster.ray_transport import RayTransport

SAMPLING = SamplingParams(temperature=0.8, seed=11, max_tokens=24)
EVENTS = toy_events(2, count=12_000, span_us=500_000)
QUESTION = "What moves?"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def recipe(family: Path) -> Recipe:
    return toy_recipe(family, ["noisy"], supervision={"silent_s": 5.0, "restarts": 10})


@pytest.fixture(scope="module")
def transport(ray_cluster: None, recipe: Recipe) -> Iterator[RayTransport]:
    made = RayTransport(recipe)
    yield made
    asyncio.run(made.close())


@pytest.fixture(scope="module")
def wanted(family: Path) -> list[tuple[int, tuple[int, ...]]]:
    """Of every window, its number and what the target alone says in this process."""
    requests = [
        GenerateRequest(events=window.events, question=QUESTION, sampling=SAMPLING)
        for window in windows_of(EVENTS, 50_000)
    ]
    answers = Engine.load(toy_recipe(family, [])).generate(requests)
    assert len(answers) == 10 and all(isinstance(answer, Answer) for answer in answers)
    return [(number, answer.token_ids) for number, answer in enumerate(answers) if isinstance(answer, Answer)]


def asked(
    transport: RayTransport, recipe: Recipe, cut: str, report: Callable[[Reply], None] = lambda reply: None
) -> list[tuple[int, tuple[int, ...]]]:
    """What an edge is told of each window, in the order in which it is told."""
    replies: list[Reply] = []

    def told(reply: Reply) -> None:
        replies.append(reply)
        report(reply)

    async def run() -> None:
        async with core(transport, seeing_of(recipe)) as (_, port):
            edge = box(port, EVENTS, cut=cut, recipe=recipe, question=QUESTION, sampling=SAMPLING)
            await asyncio.wait_for(edge.run(told), 150)

    asyncio.run(run())
    kinds = {edge_pb2.Outcome.Kind.Name(reply.outcome.kind): reply.outcome.problem for reply in replies}
    assert kinds == {"ANSWERED": ""}
    return [(reply.outcome.number, tuple(reply.outcome.answer.token_ids)) for reply in replies]


@pytest.mark.ray
@pytest.mark.parametrize("cut", ["raw", "frames", "features"])
def test_what_actors_say_of_a_window_is_what_this_process_says(
    transport: RayTransport, recipe: Recipe, wanted: list[tuple[int, tuple[int, ...]]], cut: str
) -> None:
    assert asked(transport, recipe, cut) == wanted


@pytest.mark.ray
def test_no_window_is_lost_doubled_or_changed_when_the_target_is_killed(
    transport: RayTransport, recipe: Recipe, wanted: list[tuple[int, tuple[int, ...]]]
) -> None:
    supervisor = transport.pipeline.supervisor
    assert supervisor is not None
    killed: list[int] = []

    def kill_once(reply: Reply) -> None:
        if not killed:
            killed.append(supervisor.pulses()["target"].pid)
            os.kill(killed[0], signal.SIGKILL)

    assert asked(transport, recipe, "frames", kill_once) == wanted
    assert [each.stage for each in supervisor.recoveries] == ["target"]
    assert supervisor.pulses()["target"].pid not in killed
