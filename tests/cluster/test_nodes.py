"""What nodes offer, as a cluster description; no Ray runs here."""

from __future__ import annotations

import json
import tomllib

import pytest

from cascade_runtime.planning import cluster_from_dict, load_planned_recipe, plan, to_toml
from cluster import cli, cli_nodes
from cluster.label_selectors import meets
from cluster.nodes import NODE_ID, RayNode, Survey, describe
from cluster.probes import LinkSpeed, StepSpeed

GB = 10**9
H100 = StepSpeed("NVIDIA H100 80GB HBM3", 85 * GB, {"float32": 4e13, "bfloat16": 6e14}, 2.5e12, 4e10)
CORE = StepSpeed("cpu", 0, {"float32": 5e10, "bfloat16": 1e10}, 1e10, 5e9)


def node(name: str, cpus: float = 4, gpus: float = 0, accelerator: str = "", **labels: str) -> RayNode:
    every = {NODE_ID: name, **labels}
    return RayNode(name, f"192.0.2.{len(name)}", cpus, gpus, accelerator, 32 * GB, GB, every)


def test_alike_nodes_are_one_pool_and_unlike_ones_are_not() -> None:
    nodes = [node("a"), node("bb"), node("ccc", tier="edge"), node("dddd", gpus=2, accelerator="H100")]
    steps = {"a": CORE, "bb": CORE, "ccc": CORE, "dddd": H100}
    table, notes = describe(nodes, steps, {("core", "edge"): LinkSpeed(20.0, 100.0)})
    pools = {pool["name"]: (pool["devices"], pool["site"]) for pool in table["pools"]}
    assert pools == {"core-cpu_core": (8, "core"), "edge-cpu_core": (4, "edge"), "core-h100_80": (2, "core")}
    assert table["kinds"]["h100_80"]["memory_gib"] == pytest.approx(85 * GB / 2**30, rel=0.01)
    assert table["kinds"]["cpu_core"]["memory_gib"] == pytest.approx(8 * GB / 2**30, rel=0.01)
    assert table["links"] == [{"between": ["core", "edge"], "latency_ms": 20.0, "mbit_s": 100.0}]
    assert notes == []


def test_gpu_nodes_are_alike_if_they_have_as_many_and_the_table_says_how_many() -> None:
    pairs = [node(name, gpus=2, accelerator="H100") for name in ("a", "bb", "ccc")]
    nodes = [*pairs, node("dddd", gpus=4, accelerator="H100"), node("eeeee")]
    table, _ = describe(nodes, {}, {})
    pools = [(pool["name"], pool["devices"], pool.get("devices_per_node")) for pool in table["pools"]]
    assert pools == [("core-h100_80", 6, 2), ("core-h100_80-2", 4, 4), ("core-cpu_core", 4, None)]
    again = tomllib.loads(to_toml(table))
    assert again == table and [pool.devices_per_node for pool in cluster_from_dict(again).pools] == [2, 4, 0]
    text = cli_nodes._text(Survey(tuple(nodes), {}, {}, table, ()))
    assert "pool core-h100_80: 6 x h100_80 (core), 2 to a node" in text


def test_a_node_that_is_twice_as_fast_is_a_pool_of_its_own() -> None:
    fast = StepSpeed("cpu", 0, {name: 2 * value for name, value in CORE.flops.items()}, 1e10, 5e9)
    table, _ = describe([node("a"), node("bb")], {"a": CORE, "bb": fast}, {})
    assert [kind["tflops"]["float32"] for kind in table["kinds"].values()] == [0.05, 0.1]


def test_pools_are_found_again_by_labels_or_else_by_ids() -> None:
    table, _ = describe([node("a"), node("bb"), node("ccc", tier="edge", rack="7")], {}, {})
    selectors = [pool["labels"] for pool in table["pools"]]
    assert selectors == [{NODE_ID: "in(a, bb)"}, {"tier": "edge", "rack": "7"}]
    assert meets(selectors[0], {NODE_ID: "bb"}) and not meets(selectors[0], {NODE_ID: "ccc"})


@pytest.mark.parametrize(
    ("condition", "value", "is_met"),
    [
        ("x", "x", True),
        ("x", None, False),
        ("!x", None, True),
        ("!x", "x", False),
        ("in(x, y)", "y", True),
        ("in(x, y)", "z", False),
        ("!in(x, y)", "z", True),
        ("!in(x, y)", "x", False),
    ],
)
def test_conditions_mean_what_ray_says(condition: str, value: str | None, is_met: bool) -> None:
    assert meets({"k": condition}, {} if value is None else {"k": value}) == is_met


def test_a_gpu_that_nobody_knows_is_left_out_and_said_so() -> None:
    nodes = [node("a"), node("bb", gpus=1, accelerator="Nova-9", tier="edge"), node("ccc", gpus=1, accelerator="L4")]
    table, notes = describe(nodes, {}, {})
    assert [pool["kind"] for pool in table["pools"]] == ["cpu_core", "l4"]
    assert any("Nova-9" in note for note in notes)
    assert "l4" not in table["kinds"]  # the data sheet's


def test_sites_without_a_probed_link_are_named() -> None:
    _, notes = describe([node("a"), node("bb", tier="edge")], {}, {})
    assert notes == ["no link known between core and edge: no stage of one works with a stage of the other"]


def test_the_description_survives_its_file_and_can_be_planned_with() -> None:
    nodes = [node("a", gpus=1, accelerator="H100"), node("bb", tier="edge", cameras="true")]
    table, _ = describe(nodes, {"a": H100, "bb": CORE}, {("core", "edge"): LinkSpeed(5.0, 50.0)})
    again = tomllib.loads(to_toml(table))
    assert again == table
    found = plan(load_planned_recipe("onevision_small"), cluster_from_dict(again))
    assert found.replicas[0].devices[0].kind == "h100_80"


def test_a_survey_is_a_table_and_json() -> None:
    nodes = (node("a", gpus=1, accelerator="H100"), node("bb", tier="edge", cameras="true"))
    steps, links = {"a": H100}, {("core", "edge"): LinkSpeed(5.0, 50.0)}
    table, notes = describe(nodes, steps, links)
    found = Survey(nodes, steps, links, table, (*notes, "not probed within 15 s: 192.0.2.2"))
    text = cli_nodes._text(found)
    assert "1 NVIDIA H100 80GB HBM3  85 GB" in text and "core <-> edge: 5 ms, 50 Mbit/s" in text
    assert "pool edge-cpu_core: 4 x cpu_core (edge)" in text and text.endswith(
        "note: not probed within 15 s: 192.0.2.2"
    )
    told = json.loads(json.dumps(found.to_dict()))
    assert told["schema"] == 1 and [each["speed"] is None for each in told["nodes"]] == [False, True]
    assert cluster_from_dict(told["cluster"]) == found.cluster


def test_no_cluster_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(**options: object) -> None:
        raise ConnectionError(f"nobody at {options['address']}")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    assert cli.main(["nodes", "--address", "192.0.2.1:6379"]) == 1
    assert "no Ray cluster at 192.0.2.1:6379: nobody at 192.0.2.1:6379" in capsys.readouterr().err


def test_toml_keeps_every_sort_of_value() -> None:
    table = {"a": 'say "x"\n\\', "b": [1, 2.5, True], "c": {"d.e": "é\x7f", "f": {"g": -1}}, "h": [{"i": 1}, {"i": 2}]}
    assert tomllib.loads(to_toml(table)) == table
