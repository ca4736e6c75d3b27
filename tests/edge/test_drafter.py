"""The stage on the box by itself: how far it drafts, whom the core then waits for, and which recipes have one."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_family import edge_recipe, toy_events, toy_recipe, write_toy_family

from actors.course import Course, lightest_of
from cascade_runtime.api import GenerateRequest
from cascade_runtime.config import PolicyConfig, SamplingParams, load_recipe
from cascade_runtime.edge.feature_packing import FeatureModels, FeaturePacker
from cascade_runtime.edge.ingest import windows_of
from cascade_runtime.edge.unpacking import Unpacker
from cascade_runtime.engine import Engine
from cascade_runtime.errors import ConfigError
from cascade_runtime.messages import DraftBlock, Verdict, decode, encode
from cluster.edge.drafter import EdgeDrafter
from cluster.edge.seeing import seeing_of

QUESTION = "What moves?"
EVENTS = toy_events(2, count=2000, span_us=90_000)
DEADLINES = {"start_s": 300.0, "upstream_s": 0.02}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toys"))


@pytest.mark.parametrize(("policy", "most"), [({}, 12), ({"draft_length": "confidence", "min_confidence": 1.0}, 1)])
def test_a_box_drafts_within_its_window_and_until_it_is_no_longer_sure(
    family: Path, policy: dict[str, Any], most: int
) -> None:
    recipe = replace(edge_recipe(family, ["identical"], DEADLINES), policy=PolicyConfig(mode="fixed", **policy))
    engine = Engine.load(toy_recipe(family, []))
    features = engine.front_end.see(next(iter(windows_of(EVENTS, 50_000))).events).for_target
    drafter = EdgeDrafter(recipe)
    try:
        assert drafter.admit(3, QUESTION, features, SamplingParams(max_tokens=16))
        drafter.numbered(3, 7)
        end = asyncio.run(_last_block(drafter))
        assert drafter.due(6) == b""  # its last batch was not sent
        assert (end.request, end.epoch, len(end.tokens), end.finished) == (3, 0, most, True)
        drafter.hear(encode(Verdict(9, 0, 1, 0, (5,), (2,))))
        drafter.hear(b"noise")
        assert drafter.counts.refused_verdicts == 2
    finally:
        drafter.close()


async def _last_block(drafter: EdgeDrafter) -> DraftBlock:
    """The block after which it waits."""
    async with asyncio.timeout(60):
        while True:
            for message in decode(frame) if (frame := drafter.due(7)) else ():
                assert isinstance(message, DraftBlock)
                if message.finished:
                    return message
            await asyncio.sleep(0.01)


def test_without_a_drafter_on_the_edge_the_levels_behind_it_go_on_as_they_would(family: Path) -> None:
    recipe = edge_recipe(family, ["noisy", "noisy"], DEADLINES)
    request = GenerateRequest(events=EVENTS, question=QUESTION)
    course = Course(request, 1, 0.0, 1.0, True, lightest_of(recipe, request))
    assert [course.expects(level) for level in (1, 2)] == [False, True]
    assert lightest_of(toy_recipe(family, ["noisy"]), request) == 0
    window = next(iter(windows_of(EVENTS, 50_000)))
    part = FeaturePacker(FeatureModels.load(recipe), seeing_of(recipe)).pack(window)
    for drafts in (True, False):
        part.drafts = drafts
        sent = Unpacker(seeing_of(recipe), "drafts", EVENTS.width, EVENTS.height).window([part])
        assert lightest_of(recipe, replace(request, events=sent)) == 1 - drafts
        sent = Unpacker(seeing_of(recipe), "features", EVENTS.width, EVENTS.height).window([part])
        assert lightest_of(recipe, replace(request, events=sent)) == 1


def test_recipes_whose_drafter_is_on_the_edge_run_where_stages_run_apart_only() -> None:
    recipe = load_recipe("edge_drafts")
    with pytest.raises(ConfigError, match=r"light\.drafter.*edge-server"):
        Engine.load(recipe)
    with pytest.raises(ConfigError, match=r"heavy\.drafter.*lightest"):
        load_recipe("edge_drafts", ["stages.heavy.drafter=edge"])
    with pytest.raises(ConfigError, match=r"cascade\.replicas"):
        load_recipe("edge_drafts", ["cascade.replicas=2"])
    with pytest.raises(ConfigError, match=r"cascade\.acceptance"):
        load_recipe("edge_drafts", ["cascade.acceptance=ratio"])
    with pytest.raises(ConfigError, match=r"lookup\.drafter.*\[encoder\]"):
        load_recipe("lookup_heavy", ["stages.lookup.drafter=edge"])
