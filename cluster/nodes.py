"""What a running Ray cluster offers, as the cluster description that `cascade plan` reads.

    read_nodes() -> [RayNode]            who is there: cores, GPUs and their kind, memory, labels
    survey(timeout_s) -> Survey          the same with probed speeds (probes.py), and the `Cluster` made of it

    node label        means
    tier=edge|core    the site; nodes without it are "core"
    cameras=true      recordings come in here

Alike nodes of a site become one pool: those with GPUs, and as many of them, offer GPUs, the others cores with an equal
part of the node's memory. A pool remembers by which labels Ray finds its nodes, so that a plan can be placed. What was
not probed in time counts by its data sheet, if there is one (`device_kinds.toml`); what is known by neither is left
out, and said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import ray

from cascade_runtime.planning import Cluster, cluster_from_dict, device_kinds
from cluster.label_selectors import meets, one_of
from cluster.probes import LinkSpeed, StepSpeed, probe_links, probe_steps

NODE_ID = "ray.io/node-id"
ACCELERATOR = "ray.io/accelerator-type"
_ALIKE = 1.3
_MOST_LINKS = 28  # of eight sites
# Ray's names of accelerators, and of what their drivers say, where the data sheet leaves no doubt.
_KINDS = {
    "GeForce-RTX-4090": "rtx4090",
    "GeForce-RTX-3060": "rtx3060",
    "L4": "l4",
    "A100-80G": "a100_80",
    "H100": "h100_80",
    "H200": "h200",
    "Orin": "orin_64",  # not one of Ray's: given as the resource accelerator_type:Orin
}


@dataclass(frozen=True)
class RayNode:
    """One node that is alive. accelerator: Ray's name of its GPUs' kind, "" where it has none or does not say."""

    node_id: str
    address: str
    cpus: float
    gpus: float
    accelerator: str
    memory_bytes: int
    object_store_bytes: int
    labels: Mapping[str, str]

    @property
    def site(self) -> str:
        """By its label tier."""
        return self.labels.get("tier", "core")

    @property
    def cameras(self) -> bool:
        """Whether recordings come in here."""
        return self.labels.get("cameras") == "true"

    @property
    def devices(self) -> int:
        """Whole GPUs, or whole cores where it has none."""
        return int(self.gpus) if self.gpus else int(self.cpus)

    @property
    def own_labels(self) -> dict[str, str]:
        """Those that somebody gave it."""
        return {key: value for key, value in self.labels.items() if not key.startswith("ray.io/")}


@dataclass(frozen=True)
class Survey:
    """steps, links: what was probed. table: the TOML form of `cluster`. notes: what is missing from it, and why."""

    nodes: tuple[RayNode, ...]
    steps: Mapping[str, StepSpeed]
    links: Mapping[tuple[str, str], LinkSpeed]
    table: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def cluster(self) -> Cluster:
        """For the planner. Raises `ConfigError` where no node offers a device that is known."""
        return cluster_from_dict(self.table)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "schema": 1,
            "nodes": [asdict(node) | {"speed": _plain(self.steps.get(node.node_id))} for node in self.nodes],
            "links": [{"between": list(pair), **asdict(speed)} for pair, speed in self.links.items()],
            "cluster": dict(self.table),
            "notes": list(self.notes),
        }


def read_nodes() -> list[RayNode]:
    """The nodes of the Ray that this process is connected to, by site and address."""
    found = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        has, labels = node["Resources"], dict(node["Labels"])
        named = [name.partition(":")[2] for name in has if name.startswith("accelerator_type:")]
        accelerator = max(named, key=len, default=labels.get(ACCELERATOR, ""))  # "A100-80G" says more than "A100"
        found.append(
            RayNode(
                node["NodeID"],
                node["NodeManagerAddress"],
                has.get("CPU", 0.0),
                has.get("GPU", 0.0),
                accelerator,
                int(has.get("memory", 0)),
                int(has.get("object_store_memory", 0)),
                labels,
            )
        )
    return sorted(found, key=lambda node: (node.site, node.address, node.node_id))


def survey(timeout_s: float = 15.0, *, probe: bool = True) -> Survey:
    """Read the nodes, probe them and the links between sites, each for at most `timeout_s`, and describe the whole."""
    nodes = read_nodes()
    steps: Mapping[str, StepSpeed] = {}
    links: dict[tuple[str, str], LinkSpeed] = {}
    if probe:
        steps = probe_steps({node.node_id: bool(node.gpus) for node in nodes}, timeout_s)
        pairs = dict(list(_pairs(nodes).items())[:_MOST_LINKS])
        told = probe_links(list(pairs.values()), {node.node_id: node.address for node in nodes}, timeout_s)
        links = {sites: told[pair] for sites, pair in pairs.items() if pair in told}
    table, notes = describe(nodes, steps, links)
    if probe:
        silent = [node.address for node in nodes if node.node_id not in steps]
        notes += [f"not probed within {timeout_s:g} s: {', '.join(silent)}"] if silent else []
    return Survey(tuple(nodes), steps, links, table, tuple(notes))


def known_kind(accelerator: str) -> str:
    """The kind of device that Ray's name of an accelerator means, "" where there is no data sheet of it."""
    return _KINDS.get(accelerator, "")


def describe(
    nodes: Sequence[RayNode], steps: Mapping[str, StepSpeed], links: Mapping[tuple[str, str], LinkSpeed]
) -> tuple[dict[str, Any], list[str]]:
    """The TOML form of a cluster of these nodes, and notes on what it lacks."""
    pools: list[list[RayNode]] = []
    for node in nodes:
        for pool in pools:
            if _alike(pool[0], node, steps):
                pool.append(node)
                break
        else:
            pools.append([node])
    table: dict[str, Any] = {"name": "live", "pools": [], "kinds": {}, "links": []}
    notes: list[str] = []
    for pool in pools:
        kind, own = _kind(pool, steps, taken=table["kinds"])
        if not kind or not pool[0].devices:
            if pool[0].gpus:
                told = pool[0].accelerator or "GPUs that do not say what they are"
                notes.append(f"left out, neither probed nor in a data sheet: {told} of {_listed(pool)}")
            continue
        if own:
            table["kinds"][kind] = own
        name = _fresh(f"{pool[0].site}-{kind.partition('-')[0]}", [each["name"] for each in table["pools"]])
        entry = {"name": name, "kind": kind, "devices": sum(node.devices for node in pool), "site": pool[0].site}
        entry |= {"devices_per_node": pool[0].devices} if pool[0].gpus else {}
        table["pools"].append(entry | {"cameras": pool[0].cameras, "labels": _selector(pool, nodes)})
    sites = {entry["site"] for entry in table["pools"]}
    for pair, speed in links.items():
        if set(pair) <= sites:
            link = {"latency_ms": float(f"{speed.latency_ms:.3g}"), "mbit_s": float(f"{speed.mbit_s:.3g}")}
            table["links"].append({"between": list(pair), **link})
    unlinked = [pair for pair in combinations(sorted(sites), 2) if pair not in links]
    notes += [
        f"no link known between {a} and {b}: no stage of one works with a stage of the other" for a, b in unlinked
    ]
    return table, notes


def _alike(one: RayNode, other: RayNode, steps: Mapping[str, StepSpeed]) -> bool:
    """Whether they make one pool: the same devices of the same speed, as far as known, and as many GPUs."""
    facts = [(n.site, n.cameras, n.accelerator, n.gpus, n.node_id in steps) for n in (one, other)]
    if facts[0] != facts[1]:
        return False
    sizes = [node.memory_bytes / max(node.cpus, 1) for node in (one, other) if not node.gpus]
    speeds = [steps[node.node_id].flops["float32"] for node in (one, other) if node.node_id in steps]
    return all(max(values) <= _ALIKE * min(values) for values in (sizes, speeds) if values)


def _kind(
    pool: Sequence[RayNode], steps: Mapping[str, StepSpeed], taken: Mapping[str, Any]
) -> tuple[str, dict[str, Any] | None]:
    """Name of a pool's kind of device, and its table where the catalogue's is not meant; "" where nothing is known."""
    first, told = pool[0], [steps[node.node_id] for node in pool if node.node_id in steps]
    named = "cpu_core" if not first.gpus else known_kind(first.accelerator)
    if not told and first.gpus:
        return named, None
    kind: dict[str, Any] = {}
    if told:
        # What was measured was reached: nothing is taken off for what a data sheet promises.
        kind = {
            "memory_gib": min(each.memory_bytes for each in told) / 2**30,
            "bandwidth_gb_s": min(each.bytes_per_s for each in told) / 1e9,
            "pcie_gb_s": min(each.load_bytes_per_s for each in told) / 1e9,
            "tflops": {name: float(f"{min(e.flops[name] for e in told) / 1e12:.3g}") for name in told[0].flops},
            "bandwidth_share": 1.0,
            "flops_share": 1.0,
        }
    else:
        sheet = device_kinds()["cpu_core"]
        kind = {"bandwidth_gb_s": sheet.bandwidth_gb_s, "pcie_gb_s": sheet.pcie_gb_s, "tflops": dict(sheet.tflops)}
    if not first.gpus:
        kind |= {"memory_gib": min(node.memory_bytes / max(node.cpus, 1) for node in pool) / 2**30, "cpu": True}
    rounded = {name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in kind.items()}
    own_name = named or re.sub(r"[^a-z0-9]+", "_", told[0].device.lower()).strip("_")[:24]
    return _fresh(own_name, list(taken)), rounded


def _selector(pool: Sequence[RayNode], nodes: Sequence[RayNode]) -> dict[str, str]:
    """Labels by which Ray finds just these nodes: those they were given, else their ids, which last as long as they."""
    ids = {node.node_id for node in pool}
    shared = dict(set.intersection(*({*node.own_labels.items()} for node in pool)))
    if pool[0].gpus and ACCELERATOR in pool[0].labels:
        shared[ACCELERATOR] = pool[0].labels[ACCELERATOR]
    if {node.node_id for node in nodes if meets(shared, node.labels)} == ids:
        return shared
    return {NODE_ID: one_of(sorted(ids))}


def _pairs(nodes: Sequence[RayNode]) -> dict[tuple[str, str], tuple[str, str]]:
    """Two sites, or one with several nodes -> a node of each."""
    by_site: dict[str, list[str]] = {}
    for node in nodes:
        by_site.setdefault(node.site, []).append(node.node_id)
    pairs = {(a, b): (by_site[a][0], by_site[b][0]) for a, b in combinations(sorted(by_site), 2)}
    pairs |= {(site, site): (ids[0], ids[1]) for site, ids in by_site.items() if len(ids) > 1}
    return pairs


def _fresh(name: str, taken: Sequence[str]) -> str:
    name = name[:29]
    return next(each for each in (name, *(f"{name}-{k}" for k in range(2, 100))) if each not in taken)


def _listed(pool: Sequence[RayNode]) -> str:
    return ", ".join(node.address for node in pool)


def _plain(speed: StepSpeed | None) -> dict[str, Any] | None:
    return None if speed is None else asdict(speed)
