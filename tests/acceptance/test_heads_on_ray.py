"""Heads in the target's actor on Ray: the tokens of the target alone, in fewer passes."""

from __future__ import annotations

import os

import pytest
from toy_family import toy_events

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.client import CascadeClient
from cascade_runtime.config import SamplingParams, load_recipe
from cascade_runtime.engine import Engine

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif("CASCADE_ACCEPTANCE" not in os.environ, reason="heavy: set CASCADE_ACCEPTANCE=1"),
]


def test_heads_draft_inside_the_targets_actor(ray_cluster: None) -> None:
    recipe = load_recipe("heavy", ['stages.heavy.heads="family:medusa"', "stages.heavy.num_cpus=0.2"])
    events, question, sampling = toy_events(count=800), "What is happening here?", SamplingParams(max_tokens=16)
    asked = GenerateRequest(events=events, question=question, sampling=sampling)
    (alone,) = Engine.load(load_recipe("heavy")).generate([asked])
    with CascadeClient("ray", recipe=recipe) as client:
        answer = client.generate(events, question, sampling=sampling)
    assert isinstance(answer, Answer) and isinstance(alone, Answer) and answer.token_ids == alone.token_ids
    assert answer.target_passes < alone.target_passes == len(alone.token_ids)
    (edge,) = answer.edges
    assert edge.edge == "medusa-heavy" and edge.num_accepted_tokens > 0
