"""Before anything is loaded: would every stage fit the memory of a device that it may get? Refused in one sentence.

GPUs count by the data sheet of their kind, a tenth of it left for activations; a stage on a CPU counts against what Ray
says a node has for workers. What is not known passes here: every stage also looks at its device itself, before it reads
a weight (`models/room.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from cascade_runtime.config import Recipe
from cascade_runtime.errors import ConfigError
from cascade_runtime.planning import Need, device_kinds, needs
from cluster.label_selectors import meets
from cluster.nodes import RayNode, known_kind
from cluster.placement import Bundle, bundles


def check_memory(recipe: Recipe, nodes: Sequence[RayNode]) -> None:
    """Raise `ConfigError` naming the stage that fits no node it may go to: bytes needed, bytes there."""
    for bundle in bundles(recipe):
        where = [node for node in nodes if meets(bundle.labels, node.labels)]
        found = [verdict for node in where if (verdict := _verdict(recipe, bundle, node)) is not None]
        if found and not any(fits for fits, *_ in found):
            _, asked, has, words = max(found, key=lambda each: each[2])
            shown = f"{_gb(sum(need.total for need in asked))}: {', '.join(need.text() for need in asked)}"
            raise ConfigError(_field(recipe, asked), shown, f"at most {_gb(has)}, {words}")


def _verdict(recipe: Recipe, bundle: Bundle, node: RayNode) -> tuple[bool, list[Need], int, str] | None:
    """Whether a bundle fits a node, what it asks, what is there and what that is; None where it is not known."""
    kinds = device_kinds()
    if bundle.num_gpus:
        kind = kinds.get(known_kind(node.accelerator))
        if kind is None or node.gpus < bundle.num_gpus:
            return None
        has = kind.usable_bytes * max(1, int(bundle.num_gpus))
        words = f"nine tenths of {max(1, int(bundle.num_gpus))} x {kind.name} of {node.address}"
    else:
        kind, has = kinds["cpu_core"], node.memory_bytes
        words = f"what Ray has for workers on {node.address}"
    every = needs(recipe, kind)
    asked = [every[stage] for stage in bundle.shares if stage in every]
    return (sum(need.total for need in asked) <= has, asked, has, words) if asked else None


def _field(recipe: Recipe, asked: Sequence[Need]) -> str:
    largest = max(asked, key=lambda need: need.total).stage
    return f"stages.{largest}" if largest in recipe.cascade.levels else largest


def _gb(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
