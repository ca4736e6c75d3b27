"""Drafts from an edge box into a pipeline of Ray actors: the target's own tokens, before and after a restart."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from edge.edge_ends import box, core
from toy_family import edge_recipe, toy_events, toy_recipe, write_toy_family

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import SamplingParams
from cascade_runtime.edge.ingest import windows_of
from cascade_runtime.engine import Engine
from cluster.edge.pipeline import open_pipeline
from cluster.edge.seeing import seeing_of

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif("CASCADE_ACCEPTANCE" not in os.environ, reason="heavy: set CASCADE_ACCEPTANCE=1"),
]
QUESTION, SAMPLING = "What moves?", SamplingParams(temperature=0.8, seed=5, max_tokens=12)
EVENTS = toy_events(4, count=3000, span_us=140_000)
TABLES: dict[str, Any] = {
    "cascade": {"mode": "aligned"},
    "gate": {"policy": "predicted", "accept": -1.0, "reject": -1.0},
}


def test_an_edge_drafts_for_actors_and_for_the_relay_that_takes_the_place_of_one(
    ray_cluster: None, tmp_path: Path
) -> None:
    family = write_toy_family(tmp_path)
    recipe = edge_recipe(family, ["identical"], {"start_s": 300.0, "upstream_s": 10.0}, **TABLES)
    windows = list(windows_of(EVENTS, 50_000))
    asked = [GenerateRequest(events=each.events, question=QUESTION, sampling=SAMPLING) for each in windows]
    answers = Engine.load(toy_recipe(family, [], **TABLES)).generate(asked)
    wanted = [answer.token_ids for answer in answers if isinstance(answer, Answer)]
    transport, relay = open_pipeline("ray", recipe)

    async def drafted() -> int:
        replies: list[Any] = []
        async with core(transport, seeing_of(recipe), relay=relay) as (_, port):
            edge = box(port, EVENTS, cut="drafts", recipe=recipe, question=QUESTION, sampling=SAMPLING)
            await asyncio.wait_for(edge.run(replies.append), 120)
        assert [tuple(reply.outcome.answer.token_ids) for reply in replies] == wanted
        return sum(reply.outcome.accepted for reply in replies)

    async def test() -> None:
        try:
            assert await drafted() > 0
            await asyncio.to_thread(transport.pipeline.restart, "level0")  # type: ignore[attr-defined]
            assert await drafted() > 0
        finally:
            await transport.close()

    asyncio.run(test())
