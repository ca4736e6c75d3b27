"""Cluster files: what is read, and that whatever is wrong is refused by name."""

from __future__ import annotations

import pytest

from cascade_runtime.errors import ConfigError
from cascade_runtime.planning import cluster_from_dict, cluster_names, load_cluster

POOL = {"name": "p", "kind": "l4"}
KIND = {"memory_gib": 8, "bandwidth_gb_s": 100, "tflops": {"bfloat16": 10, "float32": 5}}


def test_the_clusters_of_the_readme_are_there():
    assert {"1x4090", "2x4090", "1xa100", "2xh100", "edge_and_core", "one_small"} <= set(cluster_names())


def test_a_site_is_near_itself_far_where_a_link_says_so_and_else_unreachable():
    cluster = load_cluster("edge_and_core")
    vehicle, gaming, servers = cluster.pools
    assert cluster.latency_s(vehicle, servers) == cluster.latency_s(servers, vehicle) == 0.02
    assert cluster.latency_s(gaming, servers) == 1e-4
    assert cluster.bytes_per_s(vehicle, gaming) == 12.5e6
    apart = cluster_from_dict({"name": "c", "pools": [POOL, {"name": "q", "kind": "l4", "site": "edge"}]})
    assert apart.latency_s(*apart.pools) is None


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ({}, "name"),
        ({"name": "c"}, "pools"),
        ({"name": "c", "pools": []}, "pools"),
        ({"name": "c", "pools": {}}, "pools"),
        ({"name": "c", "pools": ["p"]}, "pools"),
        ({"name": "c", "pools": [POOL] * 33}, "pools"),
        ({"name": "c", "pools": [POOL, POOL]}, "pools.name"),
        ({"name": "c", "pools": [{"name": "p"}]}, "pools"),
        ({"name": "c", "pools": [{**POOL, "kind": "gtx"}]}, "pools.p.kind"),
        ({"name": "c", "pools": [{**POOL, "kind": ["l4"]}]}, "pools.p.kind"),
        ({"name": "c", "pools": [{**POOL, "devices": 0}]}, "pools.p.devices"),
        ({"name": "c", "pools": [{**POOL, "devices": 10**9}]}, "pools.p.devices"),
        ({"name": "c", "pools": [{**POOL, "devices": 16**5000}]}, "pools.p.devices"),
        ({"name": "c", "pools": [{**POOL, "devices": True}]}, "pools.p.devices"),
        ({"name": "c", "pools": [{**POOL, "devices_per_node": -1}]}, "pools.p.devices_per_node"),
        ({"name": "c", "pools": [{**POOL, "devices": 2, "devices_per_node": 3}]}, "pools.p.devices_per_node"),
        ({"name": "c", "pools": [{**POOL, "devices_per_node": True}]}, "pools.p.devices_per_node"),
        ({"name": "c", "pools": [{**POOL, "devices_per_node": "1"}]}, "pools.p.devices_per_node"),
        ({"name": "c", "pools": [{**POOL, "cameras": 1}]}, "pools.p.cameras"),
        ({"name": "c", "pools": [{**POOL, "rack": 1}]}, "pools.rack"),
        ({"name": "<c>", "pools": [POOL]}, "name"),
        ({"name": "c", "pools": [POOL], "gpus": 1}, "cluster.gpus"),
        ({"name": "c", "pools": [POOL], "links": [{"between": ["core"], "latency_ms": 1}]}, "links.between"),
        ({"name": "c", "pools": [POOL], "links": [{"between": ["core", "mars"], "latency_ms": 1}]}, "links.between"),
        (
            {"name": "c", "pools": [POOL], "links": [{"between": ["core", "core"], "latency_ms": -1}]},
            "links.latency_ms",
        ),
        ({"name": "c", "pools": [POOL], "agreement": {"a->b": 1.0}}, "agreement.a->b"),
        ({"name": "c", "pools": [POOL], "agreement": {"a->b": float("nan")}}, "agreement.a->b"),
        ({"name": "c", "pools": [POOL], "agreement": {"a": 0.5}}, "agreement.a"),
        ({"name": "c", "pools": [POOL], "agreement": 3}, "agreement"),
        ({"name": "c", "pools": [POOL], "load": {"tokens": 0}}, "load.tokens"),
        ({"name": "c", "pools": [POOL], "assume": "int8"}, "assume"),
        ({"name": "c", "pools": [POOL], "assume": ["int2"]}, "assume"),
        (
            {"name": "c", "pools": [POOL], "profiles": [{"stage": "s", "kind": "l4", "base_ms": 0}]},
            "profiles.s.base_ms",
        ),
        ({"name": "c", "pools": [POOL], "kinds": 3}, "kinds"),
        ({"name": "c", "pools": [POOL], "kinds": {"k": {**KIND, "memory_gib": float("inf")}}}, "kinds.k.memory_gib"),
        ({"name": "c", "pools": [POOL], "kinds": {"k": {**KIND, "tflops": 9}}}, "kinds.k.tflops"),
        ({"name": "c", "pools": [POOL], "kinds": {"k": {**KIND, "tflops": {"bfloat16": 1}}}}, "kinds.k.tflops"),
        ({"name": "c", "pools": [POOL], "kinds": {"k": {}}}, "kinds.k"),
    ],
)
def test_what_is_wrong_is_refused_by_name(table, field):
    with pytest.raises(ConfigError) as refusal:
        cluster_from_dict(table)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("devices", "each", "of", "expected"), [(2, 0, 2, 2), (20, 0, 20, 8), (20, 4, 20, 4), (2, 2, 3, 2), (4, 1, 4, 1)]
)
def test_devices_of_a_pool_share_a_node_up_to_eight_unless_told(devices, each, of, expected):
    (pool,) = cluster_from_dict({"name": "c", "pools": [{**POOL, "devices": devices, "devices_per_node": each}]}).pools
    assert pool.on_a_node(of) == expected


@pytest.mark.parametrize("text", [b"\xff", b"a = ", b"a = " + b"[" * 5000, b"#" * 70_000])
def test_a_hostile_file_is_refused(tmp_path, text):
    (tmp_path / "c.toml").write_bytes(text)
    with pytest.raises(ConfigError, match="cluster"):
        load_cluster(tmp_path / "c.toml")


@pytest.mark.parametrize("name", ["nowhere", "/nowhere/c.toml", "../recipes/onevision"])
def test_a_cluster_that_is_not_there_is_refused(name):
    with pytest.raises(ConfigError, match="cluster"):
        load_cluster(name)
