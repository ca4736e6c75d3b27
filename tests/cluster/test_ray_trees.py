"""Trees over real channels between Ray actors: the tokens of the target alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from toy_family import toy_recipe, toy_requests, write_toy_family

from cascade_runtime.api import Answer
from cascade_runtime.client import CascadeClient
from cascade_runtime.config import SupervisionConfig, TreeConfig
from cascade_runtime.engine import Engine

pytestmark = pytest.mark.ray


def test_trees_on_ray_bring_the_targets_own_tokens_and_survive_their_drafter(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    family, deadlines = write_toy_family(tmp_path), {"start_s": 300.0, "upstream_s": 1.0}
    recipe = toy_recipe(family, ["noisy", "noisy"], deadlines=deadlines, channels={"backend": "stream"})
    recipe = replace(
        recipe, supervision=SupervisionConfig(restarts=0), tree=TreeConfig(kind="eagle2", width=3, depth=4, nodes=14)
    )
    requests = toy_requests(8, seed=11)
    expected = Engine.load(toy_recipe(family, [])).generate(requests)
    with CascadeClient("ray", recipe=recipe) as client:

        def answers(first: int, last: int) -> list[Answer]:
            return [
                client.generate(each.events, each.question, sampling=each.sampling)  # type: ignore[misc, arg-type]
                for each in requests[first:last]
            ]

        pipeline = client._async._transport.pipeline  # type: ignore[attr-defined]
        before = answers(0, 6)
        edges = [answer.edges[0] for answer in before]
        assert sum(edge.num_draft_tokens for edge in edges) >= sum(edge.num_accepted_tokens for edge in edges) > 0
        assert all(answer.target_passes < len(answer.token_ids) for answer in before if len(answer.token_ids) > 8)
        stats = pipeline.stats()
        for name in ("level0", "level1", "target"):
            assert (stats[name]["free_slots"], stats[name]["active_rows"], stats[name]["refused_messages"]) == (4, 0, 0)
        ray.kill(pipeline.stages["level0"].actor)
        said = [answer.token_ids for answer in (*before, *answers(6, 8))]
        assert said == [answer.token_ids for answer in expected]  # type: ignore[union-attr]
