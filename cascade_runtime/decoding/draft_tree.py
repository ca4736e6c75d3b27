"""`DraftTree`: what a head proposes beyond an answer, and the two ways to choose its nodes.

A node is worth the product of the draft probabilities on its path (EAGLE-2, Li et al. 2024, section 4.1). A parent is
worth at least what its child is, so the best m nodes of any tree are a tree themselves, and nodes in the order of their
making have their parents before them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class DraftTree:
    """tokens: one per node. parents: per node an earlier node, or -1 for the answer's last token. log_probs: per node
    the logarithm of what it is worth.

    Example: "a" or "b" next, and after "a" perhaps "c": tokens [a, b, c], parents [-1, -1, 0], log_probs
    [log .6, log .3, log .6 + log .5].
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, token: int, parent: int, log_prob: float) -> None:
        """One node more."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.log_probs.append(log_prob)

    def best(self, budget: int) -> DraftTree:
        """The `budget` nodes that are worth most, in their order; of equals those made first."""
        order = sorted(range(len(self)), key=lambda node: (-self.log_probs[node], node))
        kept = sorted(order[:budget])
        place = {node: i for i, node in enumerate(kept)}
        tree = DraftTree()
        for node in kept:
            tree.add(self.tokens[node], place.get(self.parents[node], -1), self.log_probs[node])
        return tree

    def worst_of(self, budget: int) -> float:
        """What the last of `best(budget)` is worth; -inf where there are fewer."""
        return heapq.nlargest(budget, self.log_probs)[-1] if len(self) >= budget > 0 else -math.inf


def product_tree(choices: Sequence[Sequence[tuple[int, float]]], budget: int, ends: Collection[int]) -> DraftTree:
    """The `budget` best nodes of a Cartesian tree: any of `choices[d]` may follow any of `choices[d - 1]`.

    choices: per depth (token, log probability), the best first. Nothing follows a token of `ends`.
    """
    tree = DraftTree()
    waiting: list[tuple[float, int, int, int]] = []  # (minus what it is worth, parent, depth, which of the depth's)

    def offer(parent: int, depth: int, rank: int) -> None:
        if depth < len(choices) and rank < len(choices[depth]):
            above = tree.log_probs[parent] if parent >= 0 else 0.0
            heapq.heappush(waiting, (-above - choices[depth][rank][1], parent, depth, rank))

    offer(-1, 0, 0)
    while waiting and len(tree) < budget:
        worth, parent, depth, rank = heapq.heappop(waiting)
        token = choices[depth][rank][0]
        tree.add(token, parent, -worth)
        if token not in ends:
            offer(len(tree) - 1, depth + 1, 0)
        offer(parent, depth, rank + 1)
    return tree
