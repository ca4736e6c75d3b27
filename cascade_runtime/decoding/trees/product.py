"""The Cartesian tree of heads that do not know each other's words (Cai et al. 2024, Medusa, section 3.1)."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence

from cascade_runtime.decoding.trees.tree import Tree


def product_tree(choices: Sequence[Sequence[tuple[int, float]]], budget: int, ends: Collection[int]) -> Tree:
    """The `budget` best nodes of a Cartesian tree: any of `choices[d]` may follow any of `choices[d - 1]`.

    choices: per depth (token, log probability), the best first. Nothing follows a token of `ends`.
    """
    tree = Tree()
    waiting: list[tuple[float, int, int, int]] = []  # (minus the path's value, parent, depth, which of the depth's)

    def offer(parent: int, depth: int, rank: int) -> None:
        if depth < len(choices) and rank < len(choices[depth]):
            above = tree.values[parent] if parent >= 0 else 0.0
            heapq.heappush(waiting, (-above - choices[depth][rank][1], parent, depth, rank))

    offer(-1, 0, 0)
    while waiting and len(tree) < budget:
        _, parent, depth, rank = heapq.heappop(waiting)
        token, step = choices[depth][rank]
        tree.add(token, parent, step)
        if token not in ends:
            offer(len(tree) - 1, depth + 1, 0)
        offer(parent, depth, rank + 1)
    return tree
