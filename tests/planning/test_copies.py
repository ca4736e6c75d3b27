"""Several of one stage in a plan: one drafter for several targets, or the other way round, and what that promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_runtime.config import PolicyConfig, Recipe, recipe_from_dict, recipe_to_dict
from cascade_runtime.planning import Load, Plan, cluster_from_dict, draw, load_planned_recipe, placed_recipes, plan
from cascade_runtime.planning.candidates import candidates
from cascade_runtime.planning.cluster import Cluster
from cascade_runtime.planning.confirm import confirm
from cascade_runtime.planning.forecast import forecast
from cascade_runtime.planning.free_devices import FreeDevices
from cascade_runtime.planning.layout import Layout, layouts, pieces_on, slots_that_fit
from cascade_runtime.planning.problem import Problem, problem_of
from cascade_runtime.planning.roofline import RooflineCost, crowded
from cascade_runtime.scheduling.cost import StepCost
from cluster.placement import bundles

GPU = {"memory_gib": 40, "bandwidth_gb_s": 1000, "tflops": {"bfloat16": 200, "float32": 20}}
SMALL = {"memory_gib": 4, "bandwidth_gb_s": 400, "tflops": {"bfloat16": 60, "float32": 10}}
SLOT = {"heavy": 57_344 * 8192, "light": 12_288 * 8192}


def cluster(big: int, little: int, **more: Any) -> Cluster:
    pools = [
        {"name": "big", "kind": "gpu", "devices": big, "labels": {"rack": "1"}},
        {"name": "little", "kind": "small", "devices": little, "labels": {"rack": "2"}},
    ]
    more = {"agreement": {"light->heavy": 0.8}, **more}
    return cluster_from_dict({"name": "c", "kinds": {"gpu": GPU, "small": SMALL}, "pools": pools, **more})


def recipe(**policy: Any) -> Recipe:
    return replace(load_planned_recipe("onevision_small"), policy=PolicyConfig(**policy))


def copies(found: Plan) -> dict[str, int]:
    """Stage -> how many of it the plan has."""
    counted: dict[str, int] = {}
    for replica in found.replicas:
        for device in replica.devices:
            for stage in device.stages:
                counted[stage.stage] = counted.get(stage.stage, 0) + replica.count * device.copies
    return counted


# -- what is planned -------------------------------------------------------------------------------------------------


def test_one_small_device_drafts_for_four_targets() -> None:
    found = plan(recipe(), cluster(4, 1))
    (replica,) = found.replicas
    assert replica.count == 1 and copies(found) == {"light": 1, "heavy": 4} and found.runs_today and not found.spare
    targets, drafter = replica.devices
    assert (targets.pool, targets.copies, drafter.pool, drafter.copies) == ("big", 4, "little", 1)
    # Each target holds the slots of its quarter of the requests, the drafter those of all.
    assert replica.slots == 16
    assert targets.stages[0].kv_bytes == 4 * SLOT["heavy"] and drafter.stages[0].kv_bytes == 16 * SLOT["light"]
    # Worth more than one pair and three targets by themselves, which is what one pipeline for each target would be.
    pair, alone = plan(recipe(), cluster(1, 1)).tokens_per_s, found.tokens_per_s_alone / 4
    assert pair > 1.2 * alone
    assert found.tokens_per_s > 1.1 * (pair + 3 * alone)
    assert 0.9 * 4 * pair < found.tokens_per_s < 4 * pair


def test_several_slow_drafters_serve_one_target() -> None:
    slow = {"stage": "light", "kind": "small", "base_ms": 1.0, "per_row_ms": 4.0}
    steady = {"stage": "heavy", "kind": "gpu", "base_ms": 60.0}
    elsewhere = {"stage": "light", "kind": "gpu", "base_ms": 500.0}
    known = cluster(1, 3, profiles=[slow, steady, elsewhere], agreement={"light->heavy": 0.9})
    found = plan(recipe(), known, load=Load(streams=8))
    (replica,) = found.replicas
    assert copies(found) == {"heavy": 1, "light": 3} and replica.slots == 6  # as many for each of the three
    one = plan(recipe(), cluster(1, 1, profiles=[slow, steady, elsewhere], agreement={"light->heavy": 0.9}))
    assert found.tokens_per_s > 1.2 * one.tokens_per_s


@pytest.mark.parametrize(("token_ms", "targets"), [(3.0, 1), (1.0, 2), (0.3, 6)])
def test_the_busier_a_drafter_the_fewer_targets_it_gets(token_ms: float, targets: int) -> None:
    profiles = [
        {"stage": "light", "kind": "small", "base_ms": 1.0, "per_token_ms": token_ms},
        {"stage": "light", "kind": "gpu", "base_ms": 500.0},
        {"stage": "heavy", "kind": "gpu", "base_ms": 60.0},
    ]
    found = plan(recipe(), cluster(8, 1, profiles=profiles), load=Load(prompt=64))
    (drafted,) = [replica for replica in found.replicas if "light" in replica.levels]
    assert {device.pool: device.copies for device in drafted.devices} == {"big": targets, "little": 1}
    assert copies(found) == {"light": 1, "heavy": 8}


@pytest.mark.parametrize(("objective", "shared"), [("throughput", True), ("latency", False)])
def test_for_one_quick_answer_nothing_is_shared(objective: str, shared: bool) -> None:
    problem = problem_of(recipe(objective=objective), cluster(4, 1), Load())
    assert any(each.copied for each in candidates(problem, {0: 4, 1: 1}, sequential=False)) == shared


@pytest.mark.parametrize("streams", [1, 3, 5, 16])
def test_no_more_requests_at_a_time_are_planned_than_asked_for(streams: int) -> None:
    assert 1 <= plan(recipe(), cluster(4, 1), load=Load(streams=streams)).streams <= streams


def test_one_more_device_is_worth_about_one_of_those_there() -> None:
    gains = {more.pool: more.gain for more in plan(recipe(), cluster(4, 1)).one_more}
    each = plan(recipe(), cluster(4, 1)).tokens_per_s / 4
    assert gains["big"] == pytest.approx(each, rel=0.1) and gains["little"] < 0.2 * each


def without_copies(monkeypatch: pytest.MonkeyPatch, made: Cluster, load: Load) -> Plan:
    with monkeypatch.context() as patch:
        patch.setattr("cascade_runtime.planning.candidates._copied", lambda *_: [])
        return plan(recipe(), made, load=load)


@pytest.mark.parametrize("agreement", [0.4, 0.7, 0.9])
@pytest.mark.parametrize(("big", "little", "streams"), [(8, 8, 16), (7, 2, 0), (20, 20, 20), (3, 1, 2), (1, 4, 50)])
def test_no_plan_is_worth_less_than_whole_replicas(
    monkeypatch: pytest.MonkeyPatch, big: int, little: int, streams: int, agreement: float
) -> None:
    made, load = cluster(big, little, agreement={"light->heavy": agreement}), Load(streams=streams)
    whole, found = without_copies(monkeypatch, made, load), plan(recipe(), made, load=load)
    assert all(device.copies == 1 for replica in whole.replicas for device in replica.devices)
    assert found.tokens_per_s >= 0.999 * whole.tokens_per_s
    assert found.tokens_per_s_alone == whole.tokens_per_s_alone


def test_where_edge_boxes_draft_nothing_is_planned_twice() -> None:
    sizes = [f"llava-hf/llava-onevision-qwen2-{size}-ov-hf" for size in ("0.5b", "7b")]
    changes = [f"stages.{name}.checkpoint={size}" for name, size in zip(("light", "heavy"), sizes, strict=True)]
    boxes = load_planned_recipe("edge_drafts", [*changes, "cascade.max_len=4096"])
    known = cluster(4, 1)
    placed = placed_recipes(boxes, plan(boxes, known), known)  # which would refuse replicas
    assert all(stage.replicas == 1 for each in placed for stage in each.stages)


# -- what becomes of it ----------------------------------------------------------------------------------------------


def test_the_recipe_of_the_plan_has_replicas_of_the_stage_each_with_a_place() -> None:
    known = cluster(4, 1)
    found = plan(recipe(), known)
    (placed,) = placed_recipes(recipe(), found, known)
    assert (placed.target.replicas, placed.stage("light").replicas, placed.cascade.replicas) == (4, 1, 1)
    assert placed.cascade.slots == 16 and placed.target.num_gpus == 1.0
    again = recipe_from_dict(recipe_to_dict(placed))
    assert again == placed
    places = {tuple(bundle.shares): (bundle.num_gpus, dict(bundle.labels)) for bundle in bundles(placed)}
    for member, adapter in zip(placed.target.members, placed.members["adapter"], strict=True):
        assert places[(member, adapter)] == (1.0, {"rack": "1"})  # each target brings its tower, as the plan counts it
    assert places[("light",)] == (1.0, {"rack": "2"})
    (said,) = [text for text in found.replicas[0].overrides if "replicas" in text]
    assert load_planned_recipe("onevision_small", [said]).target.replicas == 4
    assert "4 x gpu in big (core)" in found.text() and ">gpu x 4<" in draw(found)


def test_replicas_written_by_hand_do_not_stay_where_the_plan_has_one() -> None:
    by_hand = load_planned_recipe("onevision_small", ["stages.heavy.replicas=3"])
    known = cluster(1, 1)
    (placed,) = placed_recipes(by_hand, plan(by_hand, known), known)
    assert placed.target.replicas == 1
    (replica,) = plan(by_hand, known).replicas
    again = load_planned_recipe("onevision_small", ["stages.heavy.replicas=3", *replica.overrides])
    assert (again.target.replicas, again.cascade.slots) == (1, replica.slots)
    tight = {**GPU, "memory_gib": 17}
    turns = cluster_from_dict({"name": "c", "kinds": {"k": tight}, "pools": [{"name": "p", "kind": "k"}]})
    (placed,) = placed_recipes(by_hand, plan(by_hand, turns, assume=("sequential",)), turns)
    assert (placed.cascade.loading, placed.target.replicas) == ("in_turns", 1)


def test_the_line_of_overrides_is_left_out_where_it_would_not_do() -> None:
    """Who lives beside whom is the recipe's to say, and a plan with copies may say otherwise."""
    beside = load_planned_recipe("onevision_small", ["stages.heavy.num_gpus=1", "stages.light.beside=heavy"])
    known = cluster(4, 1)
    found = plan(beside, known)
    assert copies(found)["heavy"] == 4 and found.replicas[0].overrides == ()
    (placed,) = placed_recipes(beside, found, known)
    assert placed.stage("light").beside == "" and placed.target.replicas == 4


# -- the arithmetic --------------------------------------------------------------------------------------------------


@given(
    st.sampled_from([1.0, 2.0, 1.5, 13.0]),
    st.integers(1, 16),
    st.integers(2, 200),
    st.integers(1, 100_000),
)
def test_a_crowded_pass_is_one_over_so_much_more(by: float, rows: int, tokens: int, context: int) -> None:
    line = StepCost(0.01, 0.002, 0.003, 1e-6, 0.004)
    roof = RooflineCost(0.01, 0.0, 1e-5, 1e-7, host_s=0.003, compute_s=2e-4, attention_s=1e-9)
    for cost in (line, roof):
        whole = cost.seconds(by * rows, by * tokens, by * context)
        assert crowded(cost, by).seconds(rows, tokens, context) == pytest.approx(whole, rel=1e-12)


def grown(layout: Layout, steps: list[int]) -> Layout:
    for step in steps:
        layout = layout.with_copy(layout.places[step % len(layout.places)])
    return layout


def some_problem(streams: int, name: str = "onevision_small") -> Problem:
    return problem_of(load_planned_recipe(name), cluster(80, 80), Load(streams=streams))


@given(st.data(), st.lists(st.integers(0, 5), max_size=6))
@settings(max_examples=60, deadline=None)
def test_every_copy_has_room_for_its_share_and_is_counted(data: st.DataObject, steps: list[int]) -> None:
    problem = some_problem(0, data.draw(st.sampled_from(["onevision_small", "three_level"])))
    room = {0: 80, 1: 80}
    layout = grown(data.draw(st.sampled_from(list(layouts(problem, room)))), steps)
    rows = slots_that_fit(problem, layout)
    used = dict.fromkeys(room, 0)
    for device, pool in enumerate(layout.devices):
        share = -(-rows // layout.copies_of(device))
        held = pieces_on(problem, layout, device).values()
        kind = problem.cluster.kind_of(problem.cluster.pools[pool])
        assert sum(piece.weight_bytes + share * piece.slot_bytes for piece in held) <= kind.usable_bytes
        used[pool] += layout.copies_of(device)
    assert {pool: count for pool, count in used.items() if count} == dict(layout.usage)
    assert {pool: sum(groups) for pool, groups in layout.groups.items()} == dict(layout.usage)
    assert FreeDevices.of(problem.cluster.pools, room).most(layout.groups) >= 1
    assert layout.slices == max(layout.copies_of(device) for device in range(len(layout.devices)))


@pytest.mark.parametrize("times", [2, 3])
def test_so_many_of_every_stage_are_so_many_replicas(times: int) -> None:
    problem = some_problem(0)
    for layout in layouts(problem, {0: 40, 1: 40}):
        whole = grown(layout, [place for place in range(len(layout.places)) for _ in range(times - 1)])
        one, many = forecast(problem, layout, 4), forecast(problem, whole, 4 * times)
        assert many.tokens_per_s == pytest.approx(times * one.tokens_per_s, rel=1e-12)
        assert many.rows == 4 * times and many.busy == one.busy and many.ttft_s == one.ttft_s
        first, last = confirm(problem, layout, one), confirm(problem, whole, many)
        assert first and last and last.tokens_per_s == pytest.approx(times * first.tokens_per_s, rel=1e-12)
        assert slots_that_fit(problem, whole) == min(4096, times * slots_that_fit(problem, layout))


def test_a_shared_drafter_is_slower_for_each_and_never_better_than_one_each() -> None:
    problem = some_problem(0)
    (layout,) = [each for each in layouts(problem, {0: 40, 1: 40}) if each.levels == (0, 1) and each.devices == (0, 1)]
    target = layout.at["heavy"]
    rates, busy = [], []
    shared = layout
    for targets in range(1, 12):
        said = forecast(problem, shared, 4 * targets)
        rates.append(said.tokens_per_s / targets)
        busy.append(said.pass_s["light"])
        shared = shared.with_copy(target)
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.95 * rates[0]
    assert busy == sorted(busy) and busy[-1] > 1.2 * busy[0]
