"""Traversal verification: a tree of drafts tested from its leaves to its root (Weng et al. 2025, algorithm 1).

A node is kept with everything above it. alpha(v) = min(1, alpha(parent) p(v) / q(v)) is the chance of that; a leaf that
is refused leaves its parent the residual p' = norm(S'), S' = max(0, alpha p - q), and the chance S / (S + 1 - alpha),
S = sum(S'). Testing whole paths keeps more than testing token after token. Children must be *sampled* from q without
replacement, in the order of their indices: a tree of the most probable tokens has no q, and belongs to shared noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from cascade_runtime.errors import InputError

Keeps = Callable[[float, int], bool]
Draw = Callable[[torch.Tensor, int], int]


@dataclass(frozen=True)
class Traversed:
    """nodes: the path that is kept, from below the root on. token: what follows it."""

    nodes: tuple[int, ...]
    token: int


def traverse(
    tokens: Sequence[int],
    parents: Sequence[int],
    q: Sequence[torch.Tensor],
    p: Sequence[torch.Tensor],
    keeps: Keeps,
    draw: Draw,
) -> Traversed:
    """Verify a tree of n nodes: tokens[i] stands after node parents[i] < i, or after the prefix where that is -1.

    q, p: n + 1 laws float64 (V,): first those after the prefix, then those after each node. keeps(chance, node) is
    a coin, draw(law, node) a token after that node (-1: the prefix). The kept path and its next token have the target's
    law. A leaf's q is not looked at. Raises `InputError` for a child that its q cannot have given.
    """
    children: list[list[int]] = [[] for _ in range(len(tokens) + 1)]
    for node, parent in enumerate(parents):
        children[parent + 1].append(node)

    def visit(node: int, alpha: float) -> Traversed | None:
        drafts, target = q[node + 1], p[node + 1]
        for child in children[node + 1]:
            token = tokens[child]
            if not drafts[token] > 0:
                raise InputError("tokens", token, "children drawn from q without replacement")
            kept = visit(child, min(1.0, alpha * float(target[token]) / float(drafts[token])))
            if kept is not None:
                return kept if node < 0 else Traversed((node, *kept.nodes), kept.token)
            alpha, target, drafts = refused(alpha, target, drafts, token)
        if node >= 0 and not keeps(alpha, node):
            return None
        return Traversed((node,) if node >= 0 else (), draw(target, node))

    traversed = visit(-1, 1.0)
    assert traversed is not None  # the root stands anyway
    return traversed


def refused(alpha: float, p: torch.Tensor, q: torch.Tensor, token: int) -> tuple[float, torch.Tensor, torch.Tensor]:
    """A node's chance, law and law of further children, after its child `token`, drawn from q, was refused."""
    rest, left = (alpha * p - q).clamp(min=0.0), q.clone()
    mass = float(rest.sum())
    left[token] = 0.0
    return mass / (mass + 1.0 - alpha) if mass else 0.0, rest / mass if mass else p, left / left.sum()
