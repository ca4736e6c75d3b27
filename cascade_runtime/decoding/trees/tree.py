"""`Tree`: drafts that branch. Nodes stand in an order in which every one comes after the node it follows."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cascade_runtime.scheduling.branching import follow


@dataclass(eq=False)
class Tree:
    """tokens, parents (-1: the prefix that the tree hangs on) and log-confidence of each node's path.

    values[i] is the drafter's log-probability of the whole path to node i: the sum of its steps.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)  # 0: follows the prefix

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, tokens: Sequence[int], parents: Sequence[int], steps: Sequence[float] | None = None) -> Tree:
        """A tree of whole lists; steps: log-probability of each node after the one it follows."""
        tree = cls()
        for token, parent, step in zip(tokens, parents, steps or [0.0] * len(tokens), strict=True):
            tree.add(token, parent, step)
        return tree

    def add(self, token: int, parent: int, step: float = 0.0) -> int:
        """One more node, of log-probability `step` after its parent. Returns it."""
        if not -1 <= parent < len(self):
            raise IndexError(f"parent {parent} of node {len(self)}")
        self.tokens.append(token)
        self.parents.append(parent)
        self.values.append(step + (self.values[parent] if parent >= 0 else 0.0))
        self.depths.append(self.depths[parent] + 1 if parent >= 0 else 0)
        return len(self) - 1

    def best(self, nodes: int) -> Tree:
        """The so many nodes with the most probable paths; a node's parent is never less probable than itself."""
        kept = sorted(sorted(range(len(self)), key=lambda node: (-self.values[node], node))[:nodes])
        return self.only(kept)

    def worst_of(self, nodes: int) -> float:
        """The value of the last of `best(nodes)`; -inf where there are fewer."""
        return heapq.nlargest(nodes, self.values)[-1] if len(self) >= nodes > 0 else -math.inf

    def only(self, nodes: Iterable[int]) -> Tree:
        """These nodes, ascending, every one's parent among them."""
        place, tree = {-1: -1}, Tree()
        for node in nodes:
            parent = self.parents[node]
            step = self.values[node] - (self.values[parent] if parent >= 0 else 0.0)
            place[node] = tree.add(self.tokens[node], place[parent], step)
        return tree

    def shallower(self, depth: int) -> Tree:
        """The nodes on paths of at most so many tokens."""
        return self.only(node for node, deep in enumerate(self.depths) if deep < depth)

    def follow(self, choices: Sequence[int]) -> list[int]:
        """The path that a verifier accepts: from the prefix on, the child that is what it chose there.

        choices: after the prefix and after each node, 1 + len(self). Returns the path's nodes.
        """
        return follow(self.tokens, self.parents, choices)
