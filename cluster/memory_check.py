"""Before anything is loaded: would every stage fit the memory of a device that it may get? Refused in one sentence.

GPUs count by the data sheet of their kind, a tenth of it left for activations, each by itself where a stage has
several; a stage on a CPU counts against what Ray says a node has for workers. What is not known passes here: every
stage also looks at its device itself, before it reads a weight (`models/room.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cascade_runtime.config import Recipe, stage_of
from cascade_runtime.errors import ConfigError
from cascade_runtime.planning import Need, device_kinds, needs
from cascade_runtime.planning.cluster import Kind
from cluster.label_selectors import meets
from cluster.nodes import RayNode, known_kind
from cluster.placement import Bundle, bundles

_LARGEST = {"A100": "a100_80"}  # Ray's name of both


def check_memory(recipe: Recipe, nodes: Sequence[RayNode]) -> None:
    """Raise `ConfigError` naming the stage that fits no node it may go to, or stages that do not fit beside each other
    on all that they may go to: bytes needed, bytes there.
    """
    places = [(bundle, [node for node in nodes if meets(bundle.labels, node.labels)]) for bundle in bundles(recipe)]
    for bundle, where in places:
        found = [verdict for node in where if (verdict := _verdict(recipe, bundle, node)) is not None]
        if found and not any(verdict.fits for verdict in found):
            raise max(found, key=lambda verdict: verdict.has).refusal(recipe)
    for on_gpus in (True, False):
        alike = [(bundle, where) for bundle, where in places if where and bool(bundle.num_gpus) == on_gpus]
        for _, there in alike:
            ids = {node.node_id for node in there}
            held = [bundle for bundle, where in alike if ids.issuperset(node.node_id for node in where)]
            verdict = _together(recipe, held, there, on_gpus)
            if verdict is not None and not verdict.fits:
                raise verdict.refusal(recipe)


@dataclass(frozen=True)
class _Verdict:
    """asked: what would have to fit. has, words: bytes of what is there, and what that is."""

    asked: Sequence[Need]
    has: int
    words: str

    @property
    def fits(self) -> bool:
        return sum(need.total for need in self.asked) <= self.has

    def refusal(self, recipe: Recipe) -> ConfigError:
        shown = f"{_gb(sum(need.total for need in self.asked))}: {', '.join(need.text() for need in self.asked)}"
        return ConfigError(_field(recipe, self.asked), shown, f"at most {_gb(self.has)}, {self.words}")


def _verdict(recipe: Recipe, bundle: Bundle, node: RayNode) -> _Verdict | None:
    """Whether a bundle fits a node; None where it is not known."""
    gpus = max(1, int(bundle.num_gpus)) if bundle.num_gpus else 0
    kind = _kind(node, bool(gpus))
    if kind is None or node.gpus < bundle.num_gpus:
        return None
    asked = _asked(recipe, bundle, kind)
    if not asked:
        return None
    whole = _Verdict(asked, *_memory(node, kind, gpus))
    if gpus < 2 or not whole.fits:
        return whole
    first = [(need.pieces or (need,))[0] for need in asked]  # who is not split lives on the first
    cards = [first, *([piece] for need in asked for piece in need.pieces[1:])]
    return next((one for card in cards if not (one := _Verdict(card, *_memory(node, kind, 1))).fits), whole)


def _together(recipe: Recipe, held: Sequence[Bundle], there: Sequence[RayNode], on_gpus: bool) -> _Verdict | None:
    """Whether bundles that may go nowhere else fit all of these nodes, however they are dealt out."""
    there = [node for node in there if node.gpus or not on_gpus]
    kinds = [_kind(node, on_gpus) for node in there]
    known = [kind for kind in kinds if kind is not None]
    if len(held) < 2 or not known or len(known) < len(there):
        return None
    asked: list[Need] = []
    for bundle in held:
        asked += min((_asked(recipe, bundle, kind) for kind in known), key=lambda needs: sum(n.total for n in needs))
    memory = [_memory(node, kind, int(node.gpus)) for node, kind in zip(there, known, strict=True)]
    words = [words for _, words in memory]
    shown = " and ".join(words) if len(words) < 3 else f"{words[0]} and {len(words) - 1} nodes more"
    return _Verdict(asked, sum(has for has, _ in memory), shown)


def _kind(node: RayNode, on_gpus: bool) -> Kind | None:
    """Of a node's devices; of an accelerator that is sold in two sizes, the larger."""
    name = _LARGEST.get(node.accelerator, known_kind(node.accelerator)) if on_gpus else "cpu_core"
    return device_kinds().get(name)


def _memory(node: RayNode, kind: Kind, gpus: int) -> tuple[int, str]:
    if gpus:
        return kind.usable_bytes * gpus, f"nine tenths of {gpus} x {kind.name} of {node.address}"
    return node.memory_bytes, f"what Ray has for workers on {node.address}"


def _asked(recipe: Recipe, bundle: Bundle, kind: Kind) -> list[Need]:
    every = needs(recipe, kind)
    return [every[stage] for stage in map(stage_of, bundle.shares) if stage in every]


def _field(recipe: Recipe, asked: Sequence[Need]) -> str:
    largest = max(asked, key=lambda need: need.total).stage
    return f"stages.{largest}" if largest in recipe.cascade.levels else largest


def _gb(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
