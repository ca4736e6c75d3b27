"""`Machines`: a Ray cluster of several nodes on this machine, whose nodes may be removed."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection
from typing import Any

import ray
from ray.cluster_utils import Cluster

from cascade_runtime.config import Recipe
from cluster.launch import FOREGROUND

_STORE_BYTES = 200_000_000
_HEAD_CPUS = 1  # room for the controller; Ray takes whole ones only
# A node whose Ray is gone is noticed after 0.9 s (Ray's own: 15), one that is silent after 7 (60); computed. As in the
# manifests.
QUICK = {
    "health_check_initial_delay_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_period_ms": 150,
    "health_check_failure_threshold": 6,
}


class Machines:
    """A head that holds the driver and stays, and `count` nodes that can hold the stages even when one is missing."""

    def __init__(self, recipe: Recipe, count: int, seed: int) -> None:
        places = [*recipe.stages, *filter(None, (recipe.encoder, recipe.adapter))]
        self._cpus = -(-int(sum(place.num_cpus for place in places) + 1) // (count - 1)) + 1
        self._rng = random.Random(seed)
        head = {"num_cpus": _HEAD_CPUS, "object_store_memory": _STORE_BYTES, "_system_config": {**FOREGROUND, **QUICK}}
        # its hooks at exit may only be set in the main thread, and nodes join in others: see `close`
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
        self._nodes = [self._add() for _ in range(count)]
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        self._cluster.wait_for_nodes()

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=self._cpus, object_store_memory=_STORE_BYTES)

    def replace_one(self, busy: Collection[str]) -> None:
        """A node is gone without a word, and another joins. busy: ids of nodes that hold stages; it is one of these."""
        node = self._rng.choice([node for node in self._nodes if node.node_id in busy] or self._nodes)
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._add())

    def close(self) -> None:
        """End the cluster."""
        ray.shutdown()
        self._cluster.shutdown()
