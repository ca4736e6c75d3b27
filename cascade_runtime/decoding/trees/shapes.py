"""Which leaves of a tree grow on, how many children they get, and which nodes are looked at in the end.

    static     the most likely chain, with siblings beside its first nodes (Cai et al. 2024, Medusa, section 3.1)
    eagle2     the most probable leaves of each layer grow, then the best of all are kept (Li et al. 2024, EAGLE-2)
    opt        the same, while a layer adds enough to the expected length (Wang et al. 2024, OPT-Tree)
    talon      the nodes of a layer that are nearly as probable as its best grow, until a budget is spent (Talon)
    duo        several chains, of as many first tokens as the likeliest chain's first two leave open (DuoDecoding)
    sampled    every node of a layer gets as many children: what was drawn decides nothing (Weng et al. 2025, Traversal)

A shape decides from path probabilities alone. It knows no model, and not how children are chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from cascade_runtime.config import TreeConfig
from cascade_runtime.decoding.trees.tree import Tree


class Shape(Protocol):
    """What grows."""

    def grows(self, tree: Tree, layer: list[int], depth: int) -> list[tuple[int, int]]:
        """Of the nodes of the last layer, those that get children, and how many; none: the tree is done. The prefix is
        asked about as layer [-1] at depth 0.
        """
        ...

    def kept(self, tree: Tree) -> Tree:
        """What is looked at of all that has grown."""
        ...


@dataclass(frozen=True)
class Static:
    """A chain of `depth` nodes, `widths[d]` children at depth d of it; siblings stay leaves. Beyond the list: 1."""

    widths: tuple[int, ...]
    depth: int
    nodes: int

    def grows(self, tree: Tree, layer: list[int], depth: int) -> list[tuple[int, int]]:
        """The first child of each layer, the most likely one."""
        if depth >= self.depth or len(tree) >= self.nodes:
            return []
        return [(layer[0], self.widths[depth] if depth < len(self.widths) else 1)]

    def kept(self, tree: Tree) -> Tree:
        """All, as far as there is room."""
        return tree.only(range(min(len(tree), self.nodes)))


@dataclass(frozen=True)
class Eagle2:
    """`width` leaves of each layer grow, by path probability, with `width` children each; `nodes` of all are kept."""

    width: int
    depth: int
    nodes: int

    def grows(self, tree: Tree, layer: list[int], depth: int) -> list[tuple[int, int]]:
        """The most probable."""
        return [(node, self.width) for node in _likeliest(tree, layer, self.width)] if depth < self.depth else []

    def kept(self, tree: Tree) -> Tree:
        """The most probable."""
        return tree.best(self.nodes)


@dataclass(frozen=True)
class Product:
    """`widths[d]` children for every node at depth d, beyond the list 1, down to `depth`."""

    widths: tuple[int, ...]
    depth: int

    def grows(self, tree: Tree, layer: list[int], depth: int) -> list[tuple[int, int]]:
        """All."""
        width = self.widths[depth] if depth < len(self.widths) else 1
        return [(node, width) for node in layer] if depth < self.depth else []

    def kept(self, tree: Tree) -> Tree:
        """All."""
        return tree


@dataclass(frozen=True)
class OptTree:
    """Grows while a layer adds more than `threshold` expected tokens to the best `nodes`; expected tokens are the sum
    of path probabilities (OPT-Tree, eq. 5).
    """

    width: int
    depth: int
    nodes: int
    threshold: float

    def grows(self, tree: Tree, layer: list[int], depth: int) -> list[tuple[int, int]]:
        """The most probable, if the last layer was worth it."""
        if depth >= self.depth:
            return []
        if depth and self._expected(tree) - self._expected(tree.only(range(layer[0]))) <= self.threshold:
            return []
        return [(node, self.width) for node in _likeliest(tree, layer, self.width)]

    def kept(self, tree: Tree) -> Tree:
        """The most probable."""
        return tree.best(self.nodes)

    def _expected(self, tree: Tree) -> float:
        return sum(math.exp(value) for value in sorted(tree.values, reverse=True)[: self.nodes])


@dataclass(frozen=True)
class Duo:
    """Chains of `depth` tokens, `width` at most: one from every first token that is more probable than the likeliest
    one and its successor together (DuoDecoding, arXiv 2503.00784, figure 2: p_1k > p_11 p_21).
    """

    width: int
    depth: int

    def grows(self, tree: Tree, layer: list[int], depth: int) -> list[tuple[int, int]]:
        """The first tokens, then each chain."""
        if depth >= self.depth:
            return []
        if layer == [-1]:
            return [(-1, self.width)]
        stay = set(self._stay(tree))
        return [(node, 1) for node in layer if node in stay]

    def kept(self, tree: Tree) -> Tree:
        """The chains that stay."""
        return tree.only(self._stay(tree))

    def _stay(self, tree: Tree) -> list[int]:
        limit = next((tree.values[node] for node, parent in enumerate(tree.parents) if parent == 0), -math.inf)
        stay = set[int]()
        for node, parent in enumerate(tree.parents):
            if parent in stay or (parent < 0 and (node == 0 or tree.values[node] > limit)):
                stay.add(node)
        return sorted(stay)


@dataclass(frozen=True)
class Talon:
    """Of each layer stay the nodes whose path is at least `gate` times as probable as the layer's best, until `nodes`
    stay in all; each that stays grows `width` children. Sure drafters give long narrow trees, others short wide ones.
    """

    width: int
    depth: int
    nodes: int
    gate: float

    def grows(self, tree: Tree, layer: list[int], depth: int) -> list[tuple[int, int]]:
        """Those that stay, while there is budget left."""
        if layer == [-1]:
            return [(-1, self.width)]
        stay = self._stay(tree)
        if depth >= self.depth or len(stay) >= self.nodes:
            return []
        return [(node, self.width) for node in stay if node in layer]

    def kept(self, tree: Tree) -> Tree:
        """Those that stay."""
        return tree.only(self._stay(tree))

    def _stay(self, tree: Tree) -> list[int]:
        stay, last = list[int](), [-1]
        while last and len(stay) < self.nodes:
            layer = [node for node, parent in enumerate(tree.parents) if parent in last]
            layer.sort(key=lambda node: (-tree.values[node], node))
            last = [node for node in layer if math.exp(tree.values[node] - tree.values[layer[0]]) >= self.gate]
            last = last[: self.nodes - len(stay)]
            stay += last
        return sorted(stay)


def shape_of(config: TreeConfig) -> Shape:
    """The shape a recipe asks for."""
    if config.kind == "static":
        return Static(tuple(config.widths), config.depth, config.nodes)
    if config.kind == "eagle2":
        return Eagle2(config.width, config.depth, config.nodes)
    if config.kind == "sampled":
        return Product(tuple(config.widths), config.depth)
    if config.kind == "duo":
        return Duo(config.width, config.depth)
    if config.kind == "talon":
        return Talon(config.width, config.depth, config.nodes, config.threshold)
    return OptTree(config.width, config.depth, config.nodes, config.threshold)


def _likeliest(tree: Tree, layer: list[int], count: int) -> list[int]:
    if layer == [-1]:
        return layer
    return sorted(sorted(layer, key=lambda node: (-tree.values[node], node))[:count])
