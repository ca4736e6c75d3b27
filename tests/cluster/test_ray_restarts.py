"""Stages that are Ray actors are killed and stopped in the middle of an answer, and the answer stays what it was."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulated import emulated_table
from toy_family import toy_events, toy_requests

from cascade_runtime.api import Answer, GenerateRequest, Piece
from cascade_runtime.client import CascadeClient
from cascade_runtime.config import Recipe, SamplingParams, recipe_from_dict

LEVELS = ("level0", "level1", "target")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """Emulated: processes and links are real, and start sooner. That keys and values are made anew: tests/actors."""
    table = emulated_table(LEVELS[:2], {"agreement": [0.7, 0.8]})
    table["stages"]["target"]["profile"]["base_ms"] = 10.0  # an answer takes long enough to be interrupted
    supervision = {"silent_s": 1.5, "restarts": 100}
    return recipe_from_dict({**table, "supervision": supervision, "deadlines": {"start_s": 300.0}})


@pytest.fixture(scope="module")
def client(ray_cluster: None, recipe: Recipe) -> Iterator[CascadeClient]:
    with CascadeClient("ray", recipe=recipe) as client:
        yield client


@pytest.fixture(scope="module")
def reference(recipe: Recipe) -> Iterator[CascadeClient]:
    with CascadeClient(recipe=recipe) as client:
        yield client


def request(max_tokens: int = 60) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.7, seed=4, ignore_eos=True)
    return GenerateRequest(events=toy_events(), question="What moves?", sampling=sampling)


@pytest.fixture(scope="module")
def expected(reference: CascadeClient) -> Answer:
    return answers_of(reference, [request(150)])[0]


def answers_of(client: CascadeClient, requests: list[GenerateRequest]) -> list[Any]:
    async def ask() -> list[Any]:
        answers: dict[int, Any] = {}
        async for index, update in client._async._transport.run(requests, 120.0, False):
            answers[index] = update
        return [answers[index] for index in range(len(requests))]

    return client._wait(ask())


def pipeline(client: CascadeClient) -> Any:
    return client._async._transport.pipeline  # type: ignore[attr-defined]


def recovered(client: CascadeClient, count: int, timeout_s: float = 60.0) -> tuple[Any, ...]:
    end = time.monotonic() + timeout_s
    while len(pipeline(client).supervisor.recoveries) < count and time.monotonic() < end:
        time.sleep(0.05)
    return pipeline(client).supervisor.recoveries


def signal_stage(client: CascadeClient, name: str, number: int) -> int:
    pulses = pipeline(client).supervisor.pulses()
    end = time.monotonic() + 30
    while name not in pulses and time.monotonic() < end:
        time.sleep(0.05)
        pulses = pipeline(client).supervisor.pulses()
    os.kill(pulses[name].pid, number)
    return pulses[name].pid


@pytest.mark.ray
def test_every_stage_and_the_controller_may_be_killed_in_the_middle_of_an_answer(
    client: CascadeClient, expected: Answer
) -> None:
    count = len(pipeline(client).supervisor.recoveries)
    for names in (("target", "encoder"), ("controller", "level1")):
        stream = client.stream(request(150).events, "What moves?", sampling=request(150).sampling)
        updates: list[Piece | Answer | str] = [next(stream)]
        for name in names:
            signal_stage(client, name, signal.SIGKILL)
        updates += list(stream)
        *pieces, answer = updates
        assert isinstance(answer, Answer) and answer.token_ids == expected.token_ids
        assert "".join(map(str, pieces)) == expected.text
        count += len(names)
        assert len(recovered(client, count)) == count
    stats = pipeline(client).stats()
    assert [stats[name]["free_slots"] for name in LEVELS] == [4, 4, 4]
    assert all(stats[name]["upstream_alive"] for name in LEVELS[1:])
    assert all(stats[name]["downstream_alive"] for name in LEVELS[:-1])


@pytest.mark.ray
def test_a_stopped_stage_is_replaced_and_the_others_go_on(client: CascadeClient, reference: CascadeClient) -> None:
    count = len(pipeline(client).supervisor.recoveries)
    requests = toy_requests(16, seed=3)
    expected = answers_of(reference, requests)
    stopped = [signal_stage(client, name, signal.SIGSTOP) for name in ("target",)]
    answers = answers_of(client, requests)
    assert [getattr(a, "token_ids", a) for a in answers] == [e.token_ids for e in expected]
    after = recovered(client, count + 1)[count:]
    assert {each.stage for each in after} == {"target"} and all("silent" in each.reason for each in after)
    assert not any(Path(f"/proc/{pid}").exists() for pid in stopped)
