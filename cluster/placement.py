"""Where each stage of a pipeline goes: one bundle for each device, asked of Ray as one placement group.

    bundles(recipe) -> [Bundle]              which stages together, what they ask for, on nodes with which labels
    reserve(recipe, deadline) -> Reserved    the group, and the node that every stage got; `ConfigError` in words

Stages of one bundle share a node and, where it has a GPU, that one GPU; of several GPUs the first. A selector that no
node meets would wait for ever in Ray: here every wait ends, and the refusal says which stage found no place, and what
the nodes have.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from cascade_runtime.channels import ChannelSpec, choose_backend
from cascade_runtime.config import Recipe, StageConfig
from cascade_runtime.errors import ConfigError
from cluster.label_selectors import meets

CONTROLLER = "controller"
CONTROLLER_CPUS = 0.5


@dataclass(frozen=True)
class Share:
    """What one actor asks of its bundle. host: whose first GPU it lives on without asking for a part of it, since Ray
    does not divide the GPUs of one who has several.
    """

    num_cpus: float
    num_gpus: float
    host: str = ""


@dataclass(frozen=True)
class Bundle:
    """One device, or the cores of one stage: who lives there, and what the node must be called."""

    shares: Mapping[str, Share]
    labels: Mapping[str, str]
    num_gpus: float = 0.0

    @property
    def resources(self) -> dict[str, float]:
        """As Ray counts them."""
        cpus = round(sum(share.num_cpus for share in self.shares.values()), 4)
        return {name: amount for name, amount in (("CPU", cpus), ("GPU", self.num_gpus)) if amount}


@dataclass(frozen=True)
class Node:
    """The node that a stage got: Ray's id of it and its address in the cluster."""

    node_id: str
    address: str


@dataclass(frozen=True)
class Reserved:
    """A placement group that is there."""

    group: Any
    bundles: tuple[Bundle, ...]
    nodes: tuple[Node, ...]

    def index(self, stage: str) -> int:
        """The bundle of a stage."""
        return next(i for i, bundle in enumerate(self.bundles) if stage in bundle.shares)

    def share(self, stage: str) -> Share:
        """What the stage's actor asks for."""
        return self.bundles[self.index(stage)].shares[stage]

    def node(self, stage: str) -> Node:
        """Where the stage is."""
        return self.nodes[self.index(stage)]

    def present(self) -> Reserved:
        """The same, with the nodes where Ray has put bundles since their own were lost."""
        return replace(self, nodes=_nodes(self.group, len(self.bundles)))


def places(recipe: Recipe) -> dict[str, StageConfig]:
    """Replica of a stage -> what it asks of the cluster. Encoder and adapter of a recipe without them ask for one core
    each; the adapter holds the target's vision tower and lives beside the target, of which each has one.
    """
    source, target = recipe.target.checkpoint or "none", recipe.target  # only the place is asked for
    adapter = StageConfig(
        name="adapter", checkpoint=source, beside=target.beside or target.name, replicas=target.replicas
    )
    stages = {
        "encoder": recipe.encoder or StageConfig(name="encoder", checkpoint=source),
        "adapter": recipe.adapter or adapter,
        **{stage.name: stage for stage in recipe.stages},
    }
    return {member: place for place in stages.values() for member in place.members}


def bundles(recipe: Recipe) -> list[Bundle]:
    """One for each replica that has a place of its own, with those beside it; the controller's is the last."""
    every = places(recipe)
    found = []
    for name, place in every.items():
        if place.beside:
            continue
        number = place.members.index(name)
        guests = [config for other, config in every.items() if config.beside == place.name and other == config.name]
        members = [name, *(guest.members[number] for guest in guests if number < guest.replicas)]
        if place.num_gpus > 1:
            shares = {member: Share(every[member].num_cpus, 0.0, name) for member in members[1:]}
            shares = {name: Share(place.num_cpus, place.num_gpus), **shares}
        else:
            part = int(1e4 * place.num_gpus / len(members)) / 1e4
            shares = {member: Share(every[member].num_cpus, part) for member in members}
        found.append(Bundle(shares, dict(place.labels), place.num_gpus))
    return [*found, Bundle({CONTROLLER: Share(CONTROLLER_CPUS, 0.0)}, {})]


def reserve(recipe: Recipe, deadline: float) -> Reserved:
    """Reserve every bundle by the deadline (of the monotonic clock). Raises `ConfigError` naming the stage without a
    place.
    """
    asked = bundles(recipe)
    selectors: dict[str, Any] = {}
    if any(bundle.labels for bundle in asked):
        selectors["bundle_label_selector"] = [dict(bundle.labels) for bundle in asked]
    try:
        group = placement_group([bundle.resources for bundle in asked], strategy="PACK", **selectors)
    except ValueError as error:  # a selector that Ray cannot read
        raise ConfigError("labels", selectors.get("bundle_label_selector"), str(error)) from error
    if not group.wait(max(1.0, deadline - time.monotonic())):
        remove_placement_group(group)
        raise refusal(asked, ray.nodes())
    return Reserved(group, tuple(asked), _nodes(group, len(asked)))


def edge_between(reserved: Reserved, light: str, heavy: str, backend: str) -> ChannelSpec:
    """The link between two neighbours: the lighter one listens, on its node's address where the other is on another.

    Raises `ConfigError` where the recipe's `backend` does not reach.
    """
    here = reserved.node(light)
    apart = here != reserved.node(heavy)
    chosen = choose_backend(backend, same_process=False, same_node=not apart)
    address = f"tcp:{here.address}:0" if chosen == "stream" and apart else ""
    return ChannelSpec(backend=chosen, link=f"{light}-{heavy}", address=address)


def _nodes(group: Any, bundles: int) -> tuple[Node, ...]:
    at = placement_group_table(group)["bundles_to_node_id"]
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    return tuple(Node(at[i], addresses[at[i]]) for i in range(bundles))


def refusal(asked: Sequence[Bundle], nodes: Sequence[Mapping[str, Any]]) -> ConfigError:
    """Why these bundles found no place among nodes as `ray.nodes` lists them, in words."""
    alive = [node for node in nodes if node["Alive"]]
    for bundle in asked:
        where = ", ".join(bundle.shares)
        called = [node for node in alive if meets(bundle.labels, node["Labels"])]
        if not called:
            labels = sorted({f"{k}={v}" for node in alive for k, v in node["Labels"].items() if "ray.io/" not in k})
            allowed = f"labels of a node; what the cluster has free is {', '.join(labels) or 'nodes without labels'}"
            return ConfigError(f"{where}.labels", dict(bundle.labels), allowed)
        if not any(_holds(node["Resources"], bundle.resources) for node in called):
            most = {name: max(node["Resources"].get(name, 0) for node in called) for name in bundle.resources}
            on = f" on a node with {dict(bundle.labels)}" if bundle.labels else ""
            return ConfigError(where, bundle.resources, f"at most {most}{on}, what the cluster has free at best")
    total = replace(asked[0], shares={name: share for bundle in asked for name, share in bundle.shares.items()})
    total = replace(total, num_gpus=sum(bundle.num_gpus for bundle in asked))
    have = {name: sum(node["Resources"].get(name, 0) for node in alive) for name in ("CPU", "GPU")}
    allowed = f"what the cluster has free, of {have}: each stage would fit by itself, all of them do not now"
    return ConfigError("recipe", total.resources, allowed)


def _holds(has: Mapping[str, float], asked: Mapping[str, float]) -> bool:
    return all(has.get(name, 0) >= amount for name, amount in asked.items())
