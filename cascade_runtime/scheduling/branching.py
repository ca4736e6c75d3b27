"""Drafts that branch, as two sequences: tokens, and per token the earlier one that it follows (-1: the prefix).

A node is a token's place in them. Functions give nodes, ascending, so that whatever is kept beside the tokens can be
taken along; a node's parent is among those that are given, or is the one they hang on.
"""

from __future__ import annotations

from collections.abc import Sequence


def depths(parents: Sequence[int]) -> list[int]:
    """Of each node, how many stand between it and the prefix."""
    deep: list[int] = []
    for parent in parents:
        deep.append(deep[parent] + 1 if parent >= 0 else 0)
    return deep


def child(tokens: Sequence[int], parents: Sequence[int], node: int, token: int) -> int | None:
    """The first child of a node that says `token`."""
    return next((i for i in range(node + 1, len(tokens)) if tokens[i] == token and parents[i] == node), None)


def follow(tokens: Sequence[int], parents: Sequence[int], choices: Sequence[int]) -> list[int]:
    """The path that a verifier accepts: from the prefix on, the child that is what it chose there.

    choices: after the prefix and after each node, 1 + len(tokens).
    """
    path: list[int] = []
    node = child(tokens, parents, -1, choices[0])
    while node is not None:
        path.append(node)
        node = child(tokens, parents, node, choices[node + 1])
    return path


def walk(tokens: Sequence[int], parents: Sequence[int], path: Sequence[int]) -> int | None:
    """The node that these tokens lead to, -1 for none of them; None where they leave the tree."""
    node: int | None = -1
    for token in path:
        node = child(tokens, parents, node, token)
        if node is None:
            return None
    return node


def below(parents: Sequence[int], root: int) -> list[int]:
    """All nodes that hang on `root`, itself not among them."""
    found: list[int] = []
    inside = {root}
    for node, parent in enumerate(parents):
        if parent in inside:
            inside.add(node)
            found.append(node)
    return found


def shallow(parents: Sequence[int], deepest: int, most: int) -> list[int]:
    """The first `most` nodes of those on paths of at most `deepest` tokens."""
    return [node for node, depth in enumerate(depths(parents)) if depth < deepest][: max(0, most)]


def first_path(parents: Sequence[int]) -> list[int]:
    """From the prefix on, always the first child."""
    path, node = list[int](), -1
    for at, parent in enumerate(parents):
        if parent == node:
            path.append(at)
            node = at
    return path


def among(parents: Sequence[int], nodes: Sequence[int]) -> list[int]:
    """The parents of these nodes as places among them; -1 for what hangs on none of them."""
    place = {node: at for at, node in enumerate(nodes)}
    return [place.get(parents[node], -1) for node in nodes]
