"""Where stages go: bundles, refusals in words, memory; and, on a cluster of several nodes, where they really are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_family import toy_recipe, toy_requests, write_toy_family

from cascade_runtime.client import CascadeClient
from cascade_runtime.config import Recipe, load_recipe, recipe_from_dict, recipe_names, recipe_to_dict, setup_names
from cascade_runtime.engine import Engine
from cascade_runtime.errors import ConfigError
from cascade_runtime.planning import cluster_from_dict, load_cluster, load_planned_recipe, placed_recipes, plan
from cluster import cli
from cluster.memory_check import check_memory
from cluster.nodes import RayNode
from cluster.placement import bundles, refusal

GB = 10**9


def table(**stages: dict[str, Any]) -> dict[str, Any]:
    levels = list(stages)
    return {
        "cascade": {"name": "t", "levels": levels, "num_draft_tokens": [4] * (len(levels) - 1)},
        "stages": {name: {"checkpoint": "family:light", **more} for name, more in stages.items()},
    }


def gpu_node(accelerator: str, gpus: float = 1, **labels: str) -> RayNode:
    return RayNode(accelerator, "192.0.2.9", 8, gpus, accelerator, 64 * GB, GB, labels)


# -- bundles ---------------------------------------------------------------------------------------------------------


def test_stages_beside_each_other_share_a_bundle_and_one_gpu() -> None:
    recipe = recipe_from_dict(
        table(light={"beside": "heavy"}, mid={"num_gpus": 1}, heavy={"num_gpus": 1, "labels": {"tier": "core"}})
    )
    encoder, mid, heavy, controller = bundles(recipe)
    assert set(heavy.shares) == {"heavy", "light", "adapter"}  # the adapter holds the target's vision tower
    assert {share.num_gpus for share in heavy.shares.values()} == {0.3333}
    assert heavy.resources == {"CPU": 3.0, "GPU": 1} and heavy.labels == {"tier": "core"}
    assert (set(mid.shares), mid.resources) == ({"mid"}, {"CPU": 1.0, "GPU": 1})
    assert encoder.resources == {"CPU": 1.0} and controller.resources == {"CPU": 0.5}


def test_who_lives_beside_a_stage_with_several_gpus_asks_for_none_and_names_its_host() -> None:
    _, heavy, _ = bundles(recipe_from_dict(table(light={"beside": "heavy"}, heavy={"num_gpus": 2})))
    assert heavy.resources == {"CPU": 3.0, "GPU": 2}
    shares = {name: (share.num_gpus, share.host) for name, share in heavy.shares.items()}
    assert shares == {"heavy": (2, ""), "adapter": (0, "heavy"), "light": (0, "heavy")}


def test_each_replica_has_a_place_of_its_own_and_its_neighbours_with_it() -> None:
    stages = table(light={"beside": "heavy", "replicas": 2}, heavy={"num_gpus": 1, "replicas": 3, "num_cpus": 2})
    encoder, *heavies, controller = bundles(recipe_from_dict(stages))
    assert [set(bundle.shares) for bundle in heavies] == [
        {"heavy", "adapter", "light"},  # an adapter with each, for its tower
        {"heavy.2", "adapter.2", "light.2"},
        {"heavy.3", "adapter.3"},
    ]
    assert [bundle.resources for bundle in heavies] == [
        {"CPU": 4, "GPU": 1},
        {"CPU": 4, "GPU": 1},
        {"CPU": 3, "GPU": 1},
    ]
    assert set(encoder.shares) == {"encoder"} and set(controller.shares) == {"controller"}


def test_each_replica_needs_memory_for_its_part_of_the_slots() -> None:
    for replicas, gigabytes in ((1, 5.64), (2, 2.82), (3, 1.88)):
        recipe = load_recipe("setups/2x4090", [f"stages.heavy.replicas={replicas}"])
        with pytest.raises(ConfigError, match=f"and {gigabytes} GB of KV"):
            check_memory(recipe, [gpu_node("GeForce-RTX-3060")])


@pytest.mark.parametrize(
    ("light", "field"),
    [({"beside": "nobody"}, "beside"), ({"beside": "light"}, "beside"), ({"beside": "heavy", "num_gpus": 1}, "beside")],
)
def test_a_stage_lives_beside_one_that_has_a_place(light: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        recipe_from_dict(table(light=light, heavy={}))
    assert refused.value.field == f"stages.light.{field}"


def test_a_refusal_names_the_stage_and_what_nodes_have() -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}, "Labels": {"tier": "core"}}]
    edge = recipe_from_dict(table(heavy={"labels": {"tier": "edge"}}))
    assert str(refusal(bundles(edge), nodes)).startswith("heavy, adapter.labels: got {'tier': 'edge'}")
    assert "tier=core" in str(refusal(bundles(edge), nodes))
    gpus = recipe_from_dict(table(heavy={"num_gpus": 2}))
    assert "at most {'CPU': 4.0, 'GPU': 0}" in str(refusal(bundles(gpus), nodes))
    assert "of {'CPU': 4.0, 'GPU': 0}" in str(refusal(bundles(recipe_from_dict(table(heavy={}))), nodes))


# -- memory ----------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_bytes_needed_and_there() -> None:
    recipe = load_recipe("setups/1x4090")
    check_memory(recipe, [gpu_node("GeForce-RTX-4090")])
    with pytest.raises(ConfigError) as refused:
        check_memory(recipe, [gpu_node("GeForce-RTX-3060")])
    assert refused.value.field == "stages.heavy"
    text = str(refused.value)
    assert "heavy 16.1 GB of bfloat16 weights and 1.88 GB of KV" in text and "at most 11.6 GB" in text


def test_memory_counts_on_the_nodes_that_a_stage_may_go_to() -> None:
    recipe = load_recipe("setups/edge_and_core")
    big, small = gpu_node("H100", tier="edge"), gpu_node("GeForce-RTX-3060", tier="core")
    with pytest.raises(ConfigError, match="rtx3060"):
        check_memory(recipe, [big, small])
    check_memory(recipe, [replace(big, labels={"tier": "core"}), replace(small, labels={"tier": "edge"})])
    check_memory(recipe, [gpu_node("Nova-9", tier="core")])  # what is not known is not refused here


def test_a_cpu_node_is_held_to_its_memory() -> None:
    recipe = load_recipe("setups/1x4090", ["stages.heavy.num_gpus=0"])
    with pytest.raises(ConfigError, match="of float32 weights"):
        check_memory(recipe, [RayNode("n", "192.0.2.9", 8, 0, "", 16 * GB, GB, {})])


def test_who_lives_beside_a_split_counts_on_its_first_card() -> None:
    node = gpu_node("H100", 2)
    small = "stages.light.checkpoint=llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
    beside = ["stages.light.drafter=model", small, "stages.light.beside=heavy"]
    check_memory(load_recipe("setups/2xh100", [*beside, "cascade.slots=1", "cascade.max_len=4096"]), [node])
    # 150.5 + 1.4 GB would fit 154.6; 76.9 of the target and the drafter do not fit the first card's 77.3.
    with pytest.raises(ConfigError) as refused:
        check_memory(load_recipe("setups/2xh100", beside), [node])
    text = str(refused.value)
    assert "heavy 1/2 74.4 GB" in text and "light" in text and "at most 77.3 GB, nine tenths of 1 x h100_80" in text
    assert "2/2" not in text


def test_stages_that_may_only_go_to_the_same_nodes_must_fit_beside_each_other() -> None:
    seven = {"checkpoint": "llava-hf/llava-onevision-qwen2-7b-ov-hf", "dtype": "bfloat16", "num_gpus": 0.5}
    halves = recipe_from_dict(table(mid=seven, heavy=seven))
    with pytest.raises(ConfigError, match=r"mid 1.* and heavy|heavy 1.*mid|mid 1.*heavy") as refused:
        check_memory(halves, [gpu_node("GeForce-RTX-4090")])
    assert "at most 23.2 GB, nine tenths of 1 x rtx4090 of 192.0.2.9" in str(refused.value)
    cpus = RayNode("head", "192.0.2.8", 8, 0, "", 64 * GB, GB, {})
    with pytest.raises(ConfigError, match="1 x rtx4090"):  # a head without one has no part in it
        check_memory(halves, [cpus, gpu_node("GeForce-RTX-4090")])
    check_memory(halves, [gpu_node("GeForce-RTX-4090", 2)])
    other = replace(gpu_node("GeForce-RTX-4090"), node_id="m", address="192.0.2.10")
    check_memory(halves, [gpu_node("GeForce-RTX-4090"), other])
    check_memory(halves, [gpu_node("GeForce-RTX-4090"), replace(other, accelerator="Nova-9")])  # who knows
    edge = recipe_from_dict(table(mid=seven | {"labels": {"tier": "edge"}}, heavy=seven | {"labels": {"tier": "core"}}))
    apart = [gpu_node("GeForce-RTX-4090", tier="edge"), replace(other, labels={"tier": "core"})]
    check_memory(edge, apart)
    cores = recipe_from_dict(table(mid=seven | {"num_gpus": 0}, heavy=seven | {"num_gpus": 0}))
    with pytest.raises(ConfigError, match="what Ray has for workers"):
        check_memory(cores, [RayNode("n", "192.0.2.9", 16, 0, "", 30 * GB, GB, {})])
    check_memory(cores, [RayNode("n", "192.0.2.9", 16, 0, "", 96 * GB, GB, {})])


def test_an_accelerator_of_two_sizes_is_refused_where_the_larger_is_too_small() -> None:
    check_memory(load_recipe("setups/1xa100"), [gpu_node("A100")])
    with pytest.raises(ConfigError, match="a100_80"):
        check_memory(load_recipe("setups/1xa100", ["cascade.slots=400"]), [gpu_node("A100")])


def test_a_stage_that_is_split_is_held_to_each_device() -> None:
    two = [gpu_node("H100", 2)]
    check_memory(load_recipe("setups/2xh100"), two)
    with pytest.raises(ConfigError) as refused:  # 154.4 GB would fit 154.6, but not in these shares
        check_memory(load_recipe("setups/2xh100", ["cascade.slots=3"]), two)
    assert refused.value.field == "stages.heavy"
    assert "heavy 1/2 74.4 GB of bfloat16 weights and 3.93 GB of KV" in str(refused.value)
    assert "at most 77.3 GB, nine tenths of 1 x h100_80" in str(refused.value)
    with pytest.raises(ConfigError, match=r"heavy 151 GB|heavy 146 GB"):
        check_memory(load_recipe("setups/2xh100"), [gpu_node("GeForce-RTX-4090", 2)])
    whole = ["stages.heavy.device=auto"]  # two are asked for, and one is used
    with pytest.raises(ConfigError, match=r"heavy 146 GB .* at most 77\.3 GB"):
        check_memory(load_recipe("setups/2xh100", whole), two)


@pytest.mark.parametrize("name", setup_names())
def test_every_setup_fits_the_machines_that_it_is_for(name: str) -> None:
    short = name.removeprefix("setups/")
    accelerators = {"rtx4090": "GeForce-RTX-4090", "a100_80": "A100-80G", "h100_80": "H100", "h200": "H200"}
    accelerators["orin_64"] = "Orin"
    cluster = load_cluster(short)
    nodes = [gpu_node(accelerators[pool.kind], pool.devices, tier=pool.site) for pool in cluster.pools if pool.kind]
    check_memory(load_recipe(name), nodes)
    with pytest.raises(ConfigError, match=r"at most (11\.6|23\.2) GB, nine tenths of . x rtx3060"):
        check_memory(load_recipe(name), [replace(node, accelerator="GeForce-RTX-3060") for node in nodes])


# -- a plan as a recipe ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*recipe_names(), *setup_names()])
def test_a_recipe_survives_its_own_tables(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe


def test_a_plan_becomes_labels_gpus_and_neighbours() -> None:
    kinds = {
        "big": {"memory_gib": 40, "bandwidth_gb_s": 1000, "tflops": {"bfloat16": 200, "float32": 20}},
        "small": {"memory_gib": 4, "bandwidth_gb_s": 400, "tflops": {"bfloat16": 60, "float32": 10}},
    }
    pools = [
        {"name": "p", "kind": "big", "devices": 2, "labels": {"rack": "1"}},
        {"name": "q", "kind": "small", "devices": 2, "labels": {"rack": "2"}},
    ]
    cluster = cluster_from_dict({"name": "c", "kinds": kinds, "pools": pools, "agreement": {"light->heavy": 0.9}})
    recipe = load_planned_recipe("onevision_small")
    found = plan(recipe, cluster)
    (placed,) = placed_recipes(recipe, found, cluster)
    assert placed.cascade.replicas == found.replicas[0].count == 2
    assert placed.cascade.slots == found.replicas[0].slots
    assert dict(placed.target.labels) == {"rack": "1"} and placed.target.num_gpus == 1.0
    assert dict(placed.stage("light").labels) == {"rack": "2"} and placed.stage("light").num_gpus == 1.0
    (alone,) = placed_recipes(recipe, plan(recipe, load_cluster("1x4090")), load_cluster("1x4090"))
    assert [bundle.num_gpus for bundle in bundles(alone)] == [0.0, 1.0, 0.0]
    with pytest.raises(ConfigError, match="int8"):
        placed_recipes(recipe, plan(recipe, load_cluster("one_small"), assume=("int8",)), load_cluster("one_small"))


def test_a_plan_of_turns_becomes_a_recipe_that_takes_turns() -> None:
    kinds = {"k": {"memory_gib": 17, "bandwidth_gb_s": 1000, "tflops": {"bfloat16": 200, "float32": 20}}}
    cluster = cluster_from_dict({"name": "c", "kinds": kinds, "pools": [{"name": "p", "kind": "k"}]})
    recipe = load_planned_recipe("onevision_small")
    (placed,) = placed_recipes(recipe, plan(recipe, cluster, assume=("sequential",)), cluster)
    assert (placed.cascade.loading, placed.target.device, placed.cascade.replicas) == ("in_turns", "cuda", 1)


def test_the_command_writes_recipes_that_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "placed.toml"
    assert cli.main(["plan", "three_level", "--cluster", "2x4090", "-o", str(out)]) == 0
    assert str(out) in capsys.readouterr().err
    placed = load_recipe(out)
    assert placed.target.num_gpus == 1.0 and placed.adapter is not None and placed.adapter.beside == "heavy"
    assert cli.main(["plan", "three_level", "--cluster", "2x4090", "-o", str(tmp_path / "placed.json")]) == 2


# -- three nodes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


@contextmanager
def nodes_added(*added: dict[str, Any]) -> Iterator[None]:
    """More nodes for the session's cluster, gone again afterwards."""
    import ray
    from ray.cluster_utils import Cluster

    head = ray._private.worker._global_node
    cluster = Cluster()
    cluster.head_node, cluster.redis_address, cluster.global_state = head, head.gcs_address, ray._private.state.state
    common = {"num_cpus": 2, "object_store_memory": 80_000_000, "include_dashboard": False}
    nodes = [cluster.add_node(wait=True, **{**common, **each}) for each in added]
    yield
    for node in nodes:
        cluster.remove_node(node, allow_graceful=True)


@pytest.fixture(scope="module")
def sites(ray_cluster: None) -> Iterator[None]:
    """An edge box, and a lab machine."""
    with nodes_added({"labels": {"tier": "edge", "cameras": "true"}}, {"labels": {"tier": "lab"}, "num_cpus": 4}):
        yield


@pytest.fixture
def rig(ray_cluster: None) -> Iterator[None]:
    """A machine that says it has GPUs."""
    with nodes_added({"labels": {"tier": "rig"}, "num_gpus": 3}):
        yield


def nodes_of(client: CascadeClient) -> dict[str, str]:
    """Stage -> tier of the node that its process really is on, by Ray's own books."""
    import ray

    pipeline: Any = client._async._transport.pipeline  # type: ignore[attr-defined]
    tiers = {node["NodeID"]: node["Labels"].get("tier", "head") for node in ray.nodes()}
    actors = ray._private.state.actors()
    stages = {**pipeline.stages, "controller": pipeline.controller}
    return {name: tiers[actors[each.actor._actor_id.hex()]["Address"]["NodeID"]] for name, each in stages.items()}


def on_tiers(family: Path, **tiers: str) -> Recipe:
    kinds = {"level0": "noisy", "target": "target"}
    stages = {
        name: {"checkpoint": str(family / kind), "num_cpus": 0.2, "labels": {"tier": tiers[name]}}
        for name, kind in kinds.items()
    }
    return toy_recipe(family, ["noisy"], stages=stages)


@pytest.mark.ray
def test_a_plan_for_the_live_cluster_runs_where_it_says(sites: None, family: Path) -> None:
    from cluster.nodes import survey

    found = survey(60.0)
    pools = {pool["site"]: pool for pool in found.table["pools"]}
    assert set(pools) == {"core", "edge", "lab"} and pools["edge"]["cameras"]
    assert (pools["edge"]["devices"], pools["lab"]["devices"]) == (2, 4)
    assert set(found.links) == {("core", "edge"), ("core", "lab"), ("edge", "lab")}
    assert all(0 < link.latency_ms < 1000 and link.mbit_s > 10 for link in found.links.values())
    assert all(speed.flops["float32"] > 1e8 for speed in found.steps.values()) and len(found.steps) == 3

    patient = {"start_s": 300.0, "upstream_s": 10.0}  # on a busy machine too, the target does not go on without drafts
    recipe = toy_recipe(family, ["noisy"], event_branch=False, deadlines=patient)
    kind_at = {site: pool["kind"] for site, pool in pools.items()}
    fast = {("level0", "edge"): 0.2, ("target", "lab"): 20.0}  # and the more who share it the slower
    profiles = [
        {
            "stage": stage,
            "kind": kind,
            "base_ms": fast.get((stage, site), 500.0),
            "per_row_ms": 20.0 * (stage == "target"),
            "request_ms": 0.0,
        }
        for stage in ("level0", "target")
        for site, kind in kind_at.items()
    ]
    kinds = {site: {**found.table["kinds"][kind]} for site, kind in kind_at.items()}
    told = {
        **found.table,
        "kinds": kinds,
        "pools": [
            {**pool, "kind": pool["site"], "devices": 1 + (pool["site"] == "lab")} for pool in found.table["pools"]
        ],
        "profiles": [{**each, "kind": next(s for s, k in kind_at.items() if k == each["kind"])} for each in profiles],
        "agreement": {"level0->target": 0.95},
        "load": {"tokens": 20, "prompt": 50, "streams": 4},
    }
    cluster = cluster_from_dict(told)
    planned = plan(recipe, cluster)
    (placed,) = placed_recipes(recipe, planned, cluster)
    assert {d.site: d.copies for d in planned.replicas[0].devices} == {"edge": 1, "lab": 2}  # one drafts for two
    requests = toy_requests(12, seed=2, max_tokens=12)
    expected = Engine.load(toy_recipe(family, [])).generate(requests)
    with CascadeClient("ray", recipe=placed) as client:
        where = nodes_of(client)
        assert (where["level0"], where["target"], where["adapter"]) == ("edge", "lab", "lab")
        assert (where["target.2"], where["adapter.2"]) == ("lab", "lab") and "level0.2" not in where
        assert client._async._transport.pipeline.backends == ("stream", "stream")  # type: ignore[attr-defined]
        answers = [update for _, update in sorted(_run(client, requests))]
    assert [a.token_ids for a in answers] == [e.token_ids for e in expected]  # type: ignore[union-attr]
    assert sum(a.edges[0].num_draft_tokens for a in answers) > 0


@pytest.mark.ray
def test_who_lives_beside_a_split_stage_sees_the_first_of_its_gpus(rig: None, family: Path) -> None:
    recipe = toy_recipe(family, ["noisy"], [3])
    light = replace(recipe.stages[0], beside="target")
    target = replace(recipe.target, num_gpus=2.0, labels={"tier": "rig"})  # books of GPUs that are not there
    assert recipe.adapter
    recipe = replace(recipe, stages=(light, target), adapter=replace(recipe.adapter, beside="target"))
    with CascadeClient("ray", recipe=recipe) as client:
        pipeline: Any = client._async._transport.pipeline  # type: ignore[attr-defined]
        named = {name: pipeline.stages[name].ask(30.0, "info") for name in ("target", "level0")}
        both = named["target"]["visible_gpus"].split(",")
        assert len(both) == 2 and named["level0"]["visible_gpus"] == both[0]
        pipeline.restart("adapter")
        pid = pipeline.stages["adapter"].ask(30.0, "pulse").pid
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert f"CUDA_VISIBLE_DEVICES={both[0]}".encode() in environment


@pytest.mark.ray
def test_object_store_links_do_not_reach_another_node(sites: None, family: Path) -> None:
    recipe = on_tiers(family, level0="edge", target="lab")
    with pytest.raises(ConfigError, match="between nodes"):
        CascadeClient("ray", recipe=replace(recipe, channels=replace(recipe.channels, backend="object_store")))


def _run(client: CascadeClient, requests: list[Any]) -> list[tuple[int, Any]]:
    async def ask() -> list[tuple[int, Any]]:
        updates = client._async._transport.run(requests, 120.0, False)
        return [(index, update) async for index, update in updates if not isinstance(update, str)]

    return client._wait(ask())
