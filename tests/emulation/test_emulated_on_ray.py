"""Emulated stages as Ray actors: processes and links are real, and there is no checkpoint anywhere."""

from __future__ import annotations

import pytest
from emulated import emulated_table
from toy_family import toy_events

from cascade_runtime.api import Answer
from cascade_runtime.client import CascadeClient
from cascade_runtime.config import SamplingParams, recipe_from_dict

pytestmark = pytest.mark.ray


def test_emulated_stages_run_on_ray_and_say_so_and_encoding_with_all_threads_is_no_silence(
    ray_cluster: None,
) -> None:
    table = emulated_table(["light"], {"agreement": [0.7]}, slots=12)
    table["adapter"] = {"device": "emulated:one_at_a_time", "num_cpus": 0.1, "profile": {"dense_ms": 450}}
    table["supervision"] = {"silent_s": 1.5}
    table["stages"]["light"]["device"] = table["stages"]["target"]["device"] = "emulated:shared_by_a_test"
    recipe = recipe_from_dict({**table, "deadlines": {"start_s": 300.0}})
    sampling = SamplingParams(max_tokens=40, temperature=0.7, seed=3)
    with CascadeClient("ray", recipe=recipe) as client, CascadeClient(recipe=recipe) as reference:
        answer = client.generate(toy_events(), "What moves?", sampling=sampling)
        expected = reference.generate(toy_events(), "What moves?", sampling=sampling)
        pipeline = client._async._transport.pipeline  # type: ignore[attr-defined]
        stats = pipeline.stats()
        answers = client.generate([toy_events(seed) for seed in range(12)], "What moves?", progress=False)
        assert [type(each) for each in answers] == [Answer] * 12
        assert pipeline.supervisor.recoveries == ()
    assert answer.token_ids == expected.token_ids and len(answer.token_ids) == 40
    assert answer.notes == expected.notes == recipe.marks
    assert answer.edges[0].num_draft_tokens > answer.edges[0].num_accepted_tokens > 0
    assert [stats[name]["emulated"] for name in ("light", "target")] == [True, True]
