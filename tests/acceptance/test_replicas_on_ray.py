"""Two whole pipelines behind one front on Ray, one of which loses its target in the middle: no token changes.

Loads eight processes, so it is not part of `make test`:  CASCADE_ACCEPTANCE=1 python -m pytest tests/acceptance
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_family import toy_recipe, toy_requests, write_toy_family

from cascade_runtime.api import Answer
from cascade_runtime.engine import Engine
from cascade_runtime.transports import Replicas

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif("CASCADE_ACCEPTANCE" not in os.environ, reason="heavy: set CASCADE_ACCEPTANCE=1"),
]
REQUESTS = 60


def test_a_pipeline_that_dies_costs_time_and_no_token(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    from cluster.replicated import open_ray

    family = write_toy_family(tmp_path)
    recipe = toy_recipe(family, ["noisy"], event_branch=False)
    requests = toy_requests(REQUESTS, seed=4, max_tokens=40)
    expected = Engine.load(toy_recipe(family, [])).generate(requests)

    async def ask() -> tuple[dict[int, Any], list[int]]:
        front = await asyncio.to_thread(open_ray, replace(recipe, cascade=replace(recipe.cascade, replicas=2)))
        assert isinstance(front, Replicas)
        pipelines: list[Any] = [replica.transport.pipeline for replica in front._replicas]  # type: ignore[attr-defined]
        assert pipelines[0].group.id != pipelines[1].group.id
        done: dict[int, Any] = {}
        try:
            async for index, update in front.run(requests, 120.0, False):
                done[index] = update
                if len(done) == REQUESTS // 4:
                    ray.kill(pipelines[0].stages["target"].actor)
            passes = [pipeline.stats()["target"].get("passes", 0) for pipeline in pipelines]
            health = await front.health()
            assert health.ready
            return done, passes
        finally:
            await front.close()

    done, passes = asyncio.run(ask())
    assert all(isinstance(done[index], Answer) for index in range(REQUESTS))
    assert [done[index].token_ids for index in range(REQUESTS)] == [e.token_ids for e in expected]  # type: ignore[union-attr]
    assert passes[1] > 0
