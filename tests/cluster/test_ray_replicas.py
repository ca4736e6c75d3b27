"""Replicas of a stage as Ray actors: requests are shared, and go on where one of them is killed or started anew."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from emulated import emulated_table
from toy_family import toy_events

from cascade_runtime.api import GenerateRequest
from cascade_runtime.client import CascadeClient
from cascade_runtime.config import SamplingParams, recipe_from_dict
from cascade_runtime.engine import Engine


def requests(count: int) -> list[GenerateRequest]:
    return [
        GenerateRequest(
            events=toy_events(),
            question="What moves?",
            sampling=SamplingParams(max_tokens=100, temperature=0.7, seed=seed, ignore_eos=True),
        )
        for seed in range(count)
    ]


@pytest.mark.ray
def test_a_replica_may_be_killed_and_another_started_anew_while_requests_run(ray_cluster: None) -> None:
    table = emulated_table(["level0"], {"agreement": [0.8]}, slots=6)
    for name in ("level0", "target"):
        table["stages"][name]["replicas"] = 2
    table["stages"]["target"]["profile"]["base_ms"] = 15.0
    supervision = {"silent_s": 1.5, "restarts": 100}
    recipe = recipe_from_dict({**table, "supervision": supervision, "deadlines": {"start_s": 300.0}})
    asked = requests(6)
    expected = [answer.token_ids for answer in Engine.load(recipe).generate(asked)]  # type: ignore[union-attr]
    with CascadeClient("ray", recipe=recipe) as client, ThreadPoolExecutor(6) as pool:
        pipeline: Any = client._async._transport.pipeline  # type: ignore[attr-defined]
        assert list(pipeline.stages) == ["encoder", "adapter", "level0", "level0.2", "target", "target.2"]
        assert len(pipeline.backends) == 4

        def rows() -> dict[str, int]:
            return {name: told.get("active_rows", 0) for name, told in pipeline.stats().items()}

        answers = [pool.submit(pipeline.generate, each) for each in asked]
        end = time.monotonic() + 30
        while min(rows()[name] for name in ("target", "target.2")) < 3 and time.monotonic() < end:
            time.sleep(0.05)
        assert [rows()[name] for name in ("level0", "level0.2", "target", "target.2")] == [3, 3, 3, 3]
        for name in ("level0.2", "target.2"):
            os.kill(pipeline.stages[name].ask(30.0, "pulse").pid, signal.SIGKILL)
        assert [answer.result(60).token_ids for answer in answers] == expected
        answers = [pool.submit(pipeline.generate, each) for each in asked]
        assert {each.stage for each in pipeline.restart("target", "level0")} == {"target", "level0"}
        assert [answer.result(60).token_ids for answer in answers] == expected
        stats = pipeline.stats()
        assert [stats[name]["free_slots"] for name in ("level0", "level0.2", "target", "target.2")] == [3] * 4
        assert {each.stage for each in pipeline.supervisor.recoveries} == {"level0", "level0.2", "target", "target.2"}
