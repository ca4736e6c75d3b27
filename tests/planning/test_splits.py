"""Plans that split a language model by layers over devices of one node: when, what each holds, what it costs."""

from __future__ import annotations

import json
import tomllib
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_family import toy_requests

from cascade_runtime.config import Recipe, recipe_from_dict, recipe_to_dict
from cascade_runtime.engine import Engine
from cascade_runtime.errors import ConfigError
from cascade_runtime.models import load_checkpoint
from cascade_runtime.models.bundled import family_path
from cascade_runtime.planning import (
    Cluster,
    Load,
    Plan,
    cluster_from_dict,
    draw,
    edge_cuts,
    load_cluster,
    load_planned_recipe,
    placed_recipes,
    plan,
    to_toml,
)
from cascade_runtime.planning.confirm import confirm
from cascade_runtime.planning.forecast import forecast
from cascade_runtime.planning.free_devices import FreeDevices
from cascade_runtime.planning.layout import layouts, pieces_on, slots_that_fit
from cascade_runtime.planning.plan import Replica, StageOnDevice
from cascade_runtime.planning.problem import Problem, problem_of
from cascade_runtime.planning.roofline import CROSSING_S

# LLaVA-OneVision 72B: 80 layers of hidden size 8192, 64 heads and 8 of keys and values of size 128, inner size 29568.
LAYER = 2 * 8192 * 8192 + 2 * 8192 * 1024 + (8192 + 2 * 1024) + 3 * 8192 * 29568 + 2 * 8192
ENDS = 2 * 152_128 * 8192 + 8192  # embeddings, head, last norm
PROJECTOR, TOWER = 76_570_624, 397_747_744
LIGHT = 24 * (2 * 896 * 896 + 2 * 896 * 128 + 1152 + 3 * 896 * 4864 + 2 * 896) + 152_000 * 896 + 896 + 1_837_696  # 0.5B
SLOT = 2 * 8 * 128 * 8192 * 2  # of one layer, bfloat16
SEEN = {"stage": "heavy", "kind": "h100_80", "base_ms": 60.0, "request_ms": 100.0}

SMALL = {"memory_gib": 6, "bandwidth_gb_s": 400, "tflops": {"bfloat16": 60, "float32": 10}}
TINY = {"memory_gib": 0.1, "bandwidth_gb_s": 400, "tflops": {"bfloat16": 60, "float32": 10}}


def cluster(kind: str, devices: int, each: int = 0, **more: Any) -> Cluster:
    pool = {"name": "p", "kind": kind, "devices": devices, "devices_per_node": each}
    pools = [pool, *more.pop("pools", [])]
    return cluster_from_dict({"name": "c", "kinds": {"small": SMALL, "tiny": TINY}, "pools": pools, **more})


def onevision(**stage: Any) -> Recipe:
    recipe = load_planned_recipe("onevision")
    return replace(recipe, stages=(*recipe.stages[:-1], replace(recipe.target, **stage)))


def stages_of(replica: Replica, name: str) -> list[StageOnDevice]:
    return [stage for device in replica.devices for stage in device.stages if stage.stage == name]


# -- what fits -------------------------------------------------------------------------------------------------------


def test_a_target_of_72b_is_planned_over_both_devices_of_a_node() -> None:
    found = plan(onevision(), load_cluster("2xh100"))
    (replica,) = found.replicas
    assert replica.levels == ("heavy",) and found.runs_today and not found.spare
    first, second = stages_of(replica, "heavy")
    assert [(s.piece, s.pieces, s.layers) for s in (first, second)] == [(1, 2, 39), (2, 2, 41)]
    assert first.weight_bytes == 2 * (39 * LAYER + ENDS + PROJECTOR + TOWER) == 74_392_992_832
    assert second.weight_bytes == 2 * 41 * LAYER == 71_970_148_352
    assert (first.kv_bytes, second.kv_bytes) == (2 * 39 * SLOT, 2 * 41 * SLOT)
    assert replica.slots == replica.slots_that_fit == 2  # a third would need 3.9 GB beside 74.4 of 77.3
    assert all(device.used_bytes <= device.usable_bytes == int(0.9 * 80 * 2**30) for device in replica.devices)
    assert first.load_s + second.load_s == pytest.approx((first.weight_bytes + second.weight_bytes) / 50e9)


def test_one_device_refuses_it_and_says_how_many_would_do() -> None:
    with pytest.raises(ConfigError) as refused:
        plan(onevision(), cluster("h100_80", 1))
    assert refused.value.field == "stages.heavy"
    assert str(refused.value).endswith(
        "at most 77.3 GB, nine tenths of a h100_80, or its layers over devices of one node, of which p has 1. "
        "Would fit: 2 h100_80 on one node or --assume int8 (73.2 GB of weights) or --assume int4 (41.2 GB of weights)"
    )
    with pytest.raises(ConfigError, match=r"Would fit: 7 rtx4090 on one node\. No quantisation that a plan may assume"):
        plan(onevision(), cluster("rtx4090", 1))
    with pytest.raises(ConfigError, match=r"Would fit: 7 rtx4090 on one node or --assume int4 \(41\.2 GB"):
        plan(onevision(), cluster("rtx4090", 2))  # in int4 over both


def test_layers_are_not_split_across_nodes() -> None:
    with pytest.raises(ConfigError, match=r"of which p has 1\. Would fit: 2 h100_80 on one node"):
        plan(onevision(), cluster("h100_80", 8, 1))
    # Of nodes with three, three and one a pair fits twice, and a drafter on one of those left over.
    found = plan(onevision(), cluster("h100_80", 7, 3, profiles=[SEEN]))
    placed = [(r.count * d.copies, s) for r in found.replicas for d in r.devices for s in d.stages]
    assert sum(count for count, stage in placed if (stage.stage, stage.piece) == ("heavy", 1)) == 2
    assert all(len(stages_of(replica, "heavy")) in (2, 3) for replica in found.replicas)


@pytest.mark.parametrize(
    "stage", [{"compile": True}, {"heads": "family:medusa"}, {"sees": "pool:4"}, {"drafter": "lookup"}]
)
def test_what_a_recipe_may_not_split_is_not_planned_so(stage: dict[str, Any]) -> None:
    problem = problem_of(onevision(), load_cluster("2xh100"), Load())
    kind = problem.cluster.kinds["h100_80"]
    assert problem.most_devices(problem.levels[-1], kind) == 8
    config = replace(problem.levels[-1].config, **stage)
    assert problem.most_devices(replace(problem.levels[-1], config=config), kind) == 1


def test_a_recipe_that_may_not_be_split_is_refused_as_before() -> None:
    with pytest.raises(ConfigError, match=r"this stage runs on one device\. Would fit: --assume int8"):
        plan(onevision(compile=True), load_cluster("2xh100"))


def test_cores_are_not_split_over() -> None:
    with pytest.raises(ConfigError, match="this stage runs on one device"):
        plan(load_planned_recipe("onevision_small"), cluster("cpu_core", 64))


@pytest.mark.parametrize("kind", ["rtx4090", "h100_80"])
def test_nothing_is_split_that_fits_one_device(kind: str) -> None:
    problem = problem_of(load_planned_recipe("onevision_small"), cluster(kind, 8), Load(streams=64))
    assert not [layout for layout in layouts(problem, {0: 8}) if layout.spans]


def test_more_devices_are_taken_only_for_requests_that_they_hold() -> None:
    def spans(streams: int) -> set[int]:
        problem = problem_of(onevision(), cluster("h100_80", 8), Load(streams=streams))
        return {layout.spans["heavy"] for layout in layouts(problem, {0: 8}) if layout.levels == (2,)}

    assert spans(2) == {2} and spans(4) == {2, 3} and spans(10_000) == set(range(2, 9))


def test_a_drafter_has_a_device_of_its_own_or_lives_on_the_first_of_the_split() -> None:
    profiles = [SEEN, {"stage": "light", "kind": "h100_80", "base_ms": 4.0}]

    def placed(devices: int) -> list[list[str]]:
        known = cluster("h100_80", devices, profiles=profiles, agreement={"light->heavy": 0.9})
        (replica,) = plan(onevision(), known, load=Load(streams=1)).replicas
        assert replica.simulated_tokens_per_s == pytest.approx(replica.tokens_per_s, rel=0.25)
        return [sorted(stage.label for stage in device.stages) for device in replica.devices]

    assert placed(3) == [["heavy 1/2"], ["heavy 2/2"], ["light"]]
    assert placed(2) == [["heavy 1/2", "light"], ["heavy 2/2"]]
    problem = problem_of(onevision(), cluster("h100_80", 2), Load(streams=2))
    (beside,) = [layout for layout in layouts(problem, {0: 2}) if layout.levels == (0, 2)]
    first, second = (pieces_on(problem, beside, device) for device in (0, 1))
    assert sum(piece.weight_bytes for piece in first.values()) == 74_392_992_832 + 2 * LIGHT
    assert set(second) == {"heavy"}
    assert slots_that_fit(problem, beside) == 1  # 1.41 GB each, where 77.31 - 75.38 are left


def with_event_branch(max_len: int) -> Recipe:
    recipe = load_planned_recipe("three_level")
    return replace(recipe, stages=onevision().stages, cascade=replace(recipe.cascade, max_len=max_len))


def test_an_event_branch_lives_beside_the_first_device_of_a_split() -> None:
    recipe, known = with_event_branch(8192), cluster("h100_80", 2)
    found = plan(recipe, known)
    (replica,) = found.replicas
    first, second = replica.devices
    assert {stage.label for stage in first.stages} >= {"heavy 1/2", "encoder", "adapter"} and len(second.stages) == 1
    heavy, (adapter,) = stages_of(replica, "heavy")[0], stages_of(replica, "adapter")
    assert heavy.weight_bytes == 2 * (39 * LAYER + ENDS + PROJECTOR) and adapter.weight_bytes > 2 * TOWER
    heavier = replace(adapter, weight_bytes=2 * heavy.weight_bytes)  # whatever it weighs, the split has the place
    other = replace(first, stages=tuple(heavier if stage is adapter else stage for stage in first.stages))
    for devices in ((first, second), (other, second)):
        (placed,) = placed_recipes(recipe, replace(found, replicas=(replace(replica, devices=devices),)), known)
        assert (placed.target.device, placed.target.num_gpus, placed.target.beside) == ("cuda:0+cuda:1", 2.0, "")
        for stage in (placed.encoder, placed.adapter):
            assert stage is not None and (stage.device, stage.num_gpus, stage.beside) == ("auto", 0.0, "heavy")


def test_an_adapter_without_room_beside_a_split_asks_for_one_more_device() -> None:
    recipe = with_event_branch(20_000)  # a slot of 3.19 GB beside 73.6, and 0.8 of the tower, in 77.3
    with pytest.raises(ConfigError, match="Would fit: 3 h100_80 on one node"):
        plan(recipe, cluster("h100_80", 2))
    found = layouts(problem_of(recipe, cluster("h100_80", 3), Load()), {0: 3})
    assert {layout.at["adapter"] for layout in found if layout.spans["heavy"] == 2} == {2}


# -- what it costs ---------------------------------------------------------------------------------------------------


def test_a_pass_over_several_takes_as_long_as_on_one_and_the_crossings() -> None:
    problem = problem_of(onevision(), load_cluster("2xh100"), Load())
    part, kind = problem.levels[-1], problem.cluster.kinds["h100_80"]
    whole = problem.cost(part, kind)
    for devices in (2, 4):
        split = problem.cost(part, kind, devices)
        for rows, tokens, context in ((1, 1, 0), (4, 20, 9000), (1, 4000, 4000)):
            crossings = devices * (CROSSING_S + tokens * 8192 * 2 / 50e9)  # once between each two, and back
            more = split.seconds(rows, tokens, context) - whole.seconds(rows, tokens, context)
            assert more == pytest.approx(crossings, rel=1e-6)
    measured = problem_of(onevision(), cluster("h100_80", 2, profiles=[SEEN]), Load())
    assert measured.cost(part, kind, 2).seconds(1, 1) == 0.06  # who measured it had it split


def test_devices_of_a_split_share_its_time() -> None:
    (replica,) = plan(onevision(), cluster("h100_80", 2, profiles=[SEEN]), load=Load(streams=2)).replicas
    first, second = stages_of(replica, "heavy")
    assert first.pass_ms + second.pass_ms == pytest.approx(60.0)
    assert first.pass_ms / second.pass_ms == pytest.approx(first.busy / second.busy) == pytest.approx(39 / 41)
    assert first.busy + second.busy <= 1.0
    assert replica.bottleneck == "heavy"


def test_the_tower_of_a_split_counts_on_its_first_device_as_on_one_that_were_large_enough() -> None:
    (replica,) = plan(onevision(), load_cluster("2xh100")).replicas
    problem = problem_of(onevision(), load_cluster("2xh100"), Load())
    part, kind = problem.levels[-1], problem.cluster.kinds["h100_80"]
    tower_s = 8 * 2 * TOWER * 729 / (0.5 * 989e12)  # frames x operations, at half of the data sheet
    prompt_s = 4 * problem.cost(part, kind, 2).seconds(1, 1633 / 4, 1633 / 2)  # in pieces of at most 512
    assert tower_s == pytest.approx(0.00938, rel=1e-3) and problem.request_s(part, kind) == pytest.approx(tower_s)
    assert replica.ttft_s == pytest.approx(tower_s + prompt_s)
    (layout,) = [layout for layout in layouts(problem, {0: 2}) if layout.levels == (2,)]
    said = forecast(problem, layout, 2)
    seen, unseen = (
        confirm(replace(problem, load=replace(problem.load, frames=frames)), layout, said) for frames in (8, 1)
    )
    assert seen is not None and unseen is not None  # the prompt is the same: seven frames more hold up 80 tokens
    assert 80 / seen.tokens_per_s - 80 / unseen.tokens_per_s == pytest.approx(7 / 8 * tower_s)


def test_one_more_device_counts_when_it_makes_another_split() -> None:
    recipe = onevision()
    cascade = replace(recipe.cascade, levels=("heavy",), num_draft_tokens=(), slots=2)
    alone = replace(recipe, cascade=cascade, stages=(recipe.target,))

    def gain(devices: int, each: int) -> float:
        found = plan(alone, cluster("h100_80", devices, each, profiles=[SEEN]))
        return found.one_more[0].gain / found.replicas[0].tokens_per_s

    assert gain(3, 2) == pytest.approx(1.0, rel=0.1)  # two nodes of two
    assert gain(2, 2) == 0.0  # the third is alone on its node


# -- what is said of it ----------------------------------------------------------------------------------------------


def planned() -> tuple[Recipe, Cluster, Plan]:
    recipe, known = onevision(), load_cluster("2xh100")
    return recipe, known, plan(recipe, known)


def test_text_json_and_picture_show_a_split_on_each_device() -> None:
    _, _, found = planned()
    text = found.text()
    assert "  heavy is split by layers over 2 h100_80 of one node, which work one after the other" in text
    assert "    heavy 1/2 39 layers, bfloat16 74.4 GB + 2.62 GB KV, " in text and "    heavy 2/2 41 layers" in text
    assert "states cross between two devices of a node in 20 us" in text
    told = json.loads(json.dumps(found.to_dict()))
    stages = [stage for device in told["replicas"][0]["devices"] for stage in device["stages"]]
    pieces = [[stage[key] for key in ("stage", "piece", "pieces", "layers")] for stage in stages]
    assert pieces == [["heavy", 1, 2, 39], ["heavy", 2, 2, 41]]
    root = ElementTree.fromstring(draw(found))
    words = ["".join(item.itertext()) for item in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"heavy 1/2 (bottleneck)", "heavy 2/2 (bottleneck)"} <= set(words)
    assert any("one after the other" in each for each in words)


def test_the_placed_recipe_asks_for_both_and_is_read_back() -> None:
    recipe, known, found = planned()
    (placed,) = placed_recipes(recipe, found, known)
    assert (placed.target.device, placed.target.num_gpus, placed.target.beside) == ("cuda:0+cuda:1", 2.0, "")
    assert placed.cascade.levels == ("heavy",) and placed.cascade.slots == 2
    assert recipe_from_dict(tomllib.loads(to_toml(recipe_to_dict(placed)))) == placed


def test_the_same_plan_of_a_small_family_runs_and_says_what_one_device_says() -> None:
    recipe = load_planned_recipe("light_heavy")
    long = replace(recipe, cascade=replace(recipe.cascade, max_len=8192))  # 31 MB of weights, 84 of a slot, 97 there
    known = cluster("tiny", 3, agreement={"light->heavy": 0.9})
    found = plan(long, known, load=Load(prompt=100, streams=1))
    (placed,) = placed_recipes(long, found, known)
    assert placed.cascade.levels == ("light", "heavy")
    assert placed.target.device == "cuda:0+cuda:1" and placed.stage("light").device == "auto"
    (said,) = [text for text in found.replicas[0].overrides if text.startswith("stages.")]
    assert load_planned_recipe("light_heavy", [said]).target.device == placed.target.device
    requests = toy_requests(2, seed=5, max_tokens=8)
    told = []
    for device in ("cpu+cpu", "cpu"):
        stages = (replace(placed.stages[0], device="cpu"), replace(placed.target, device=device))
        here = replace(placed, stages=stages, cascade=replace(placed.cascade, max_len=recipe.cascade.max_len))
        told.append([answer.token_ids for answer in Engine.load(here).generate(requests)])  # type: ignore[union-attr]
    assert told[0] == told[1]


def test_pieces_are_what_the_loader_puts_on_each_device() -> None:
    recipe = load_planned_recipe("light_heavy")
    problem = problem_of(recipe, cluster("cpu_core", 2), Load(prompt=100))
    part = replace(problem.levels[-1], numbers=problem.levels[-1].size.language)
    split = load_checkpoint(family_path("heavy"), parts=("language",), layer_devices=("cpu", "meta")).language
    assert split is not None
    held = Counter({torch.device("cpu"): split.weight_bytes - sum(block.nbytes for block in split.blocks)})
    for block in split.blocks:
        held[block.device] += block.nbytes
    pieces = problem.pieces(part, problem.cluster.kinds["cpu_core"], 2)
    assert [piece.weight_bytes for piece in pieces] == [held[torch.device(name)] for name in ("cpu", "meta")]
    cache = split.new_cache(1, recipe.cascade.max_len)
    assert [piece.slot_bytes for piece in pieces] == [
        sum(each.nbytes // len(each) for each in cache.held if each.device.type == name) for name in ("cpu", "meta")
    ]


def test_answers_of_a_core_that_splits_are_weighed_for_an_edge_link() -> None:
    cuts = edge_cuts(onevision(), load_cluster("2xh100"), "100,10")
    assert cuts is not None and cuts.drafting is not None
    assert cuts.drafting.alone.levels == ("heavy",) and cuts.drafting.edge.levels == ("light", "heavy")


# -- over random clusters --------------------------------------------------------------------------------------------

POOLS = st.lists(
    st.tuples(
        st.sampled_from(["small", "rtx3060", "rtx4090", "a100_80", "cpu_core"]),
        st.integers(1, 12),
        st.integers(0, 8),
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
)


def random_problem(pools: list[tuple[str, int, int, bool]], recipe: str, streams: int, dtype: str) -> Problem:
    tables = [
        {"name": f"p{i}", "kind": kind, "devices": n, "devices_per_node": min(each, n), "cameras": cameras}
        for i, (kind, n, each, cameras) in enumerate(pools)
    ]
    known = cluster_from_dict({"name": "c", "kinds": {"small": SMALL}, "pools": tables})
    planned = load_planned_recipe(recipe)
    if recipe == "three_level":
        planned = replace(planned, stages=load_planned_recipe("onevision").stages)
        planned = replace(planned, cascade=replace(planned.cascade, max_len=4096))
    return problem_of(planned, known, Load(streams=streams)).with_quantise(dtype)


@given(
    POOLS,
    st.sampled_from(["onevision", "onevision_small", "three_level"]),
    st.sampled_from([0, 1, 7, 500]),
    st.sampled_from(["", "int8"]),
)
@settings(max_examples=40, deadline=None)
def test_no_device_is_over_full_and_a_split_is_on_one_node_with_others_on_its_first_device(
    pools: list[tuple[str, int, int, bool]], recipe: str, streams: int, dtype: str
) -> None:
    problem = random_problem(pools, recipe, streams, dtype)
    room = {i: pool.devices for i, pool in enumerate(problem.cluster.pools)}
    free = FreeDevices.of(problem.cluster.pools, room)
    for layout in list(layouts(problem, room))[::7]:
        rows = slots_that_fit(problem, layout)
        assert rows >= 1 and free.most(layout.groups) >= 1
        assert {pool: sum(groups) for pool, groups in layout.groups.items()} == dict(layout.usage)
        for device, pool in enumerate(layout.devices):
            held = pieces_on(problem, layout, device)
            used = sum(piece.weight_bytes + rows * piece.slot_bytes for piece in held.values())
            assert used <= problem.cluster.kind_of(problem.cluster.pools[pool]).usable_bytes
            assert len(held) == 1 or device in layout.at.values()
        for name, span in layout.spans.items():
            first = layout.at[name]
            (where,) = set(layout.devices[first : first + span])
            kind = problem.cluster.kind_of(problem.cluster.pools[where])
            part = next(part for part in problem.parts if part.name == name)
            pieces = problem.pieces(part, kind, span)
            assert span <= problem.cluster.pools[where].on_a_node(room[where])
            assert sum(piece.layers for piece in pieces) == part.size.layers
            assert sum(piece.weight_bytes for piece in pieces) == pytest.approx(problem.weight_bytes(part, kind), abs=9)
            assert sum(piece.slot_bytes for piece in pieces) == problem.slot_bytes(part, kind)
            assert problem.weight_bytes(part, kind) + problem.slot_bytes(part, kind) > kind.usable_bytes
