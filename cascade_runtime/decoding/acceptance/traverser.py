"""`Traverser`: rounds of traversal verification between a drafter and its target (`traversal.py`).

The drafter samples a tree, the target looks at all of it in one pass, and what is kept is decided from the leaves to
the root. Answers have the target's law; which ones a seed gives depends on the drafter too, as under "ratio".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cascade_runtime.config import Recipe
from cascade_runtime.decoding.acceptance.law import laws
from cascade_runtime.decoding.acceptance.traversal import Traversed, traverse
from cascade_runtime.decoding.choice import gumbel_noise, uniform_noise
from cascade_runtime.decoding.level import Level
from cascade_runtime.decoding.row import Extension, Row
from cascade_runtime.decoding.trees import shape_of
from cascade_runtime.decoding.trees.sampler import Sampler, coin_key, other_key
from cascade_runtime.decoding.trees.tree import Tree


@dataclass(frozen=True)
class Pair:
    """One request in a round: its row at the drafter (None: it takes no part), at the target, the answer so far, and
    how many tokens the tree may be deep.
    """

    drafter: Row | None
    target: Row
    prefix: Sequence[int]
    most: int


@dataclass(frozen=True)
class Round:
    """What came of it: the tokens that were kept, the one that follows them (None: the target's numbers are not
    finite), and the depth of the tree.
    """

    kept: tuple[int, ...]
    token: int | None
    depth: int


class Traverser:
    """Two levels of a recipe whose tree is "sampled"."""

    def __init__(self, recipe: Recipe, drafter: Level, target: Level) -> None:
        assert recipe.tree is not None  # `check_drafting` has seen to it
        self._sampler = Sampler(drafter.decoder, shape_of(recipe.tree), drafter.ends)
        self._target = target.decoder

    @torch.inference_mode()
    def round(self, pairs: Sequence[Pair]) -> list[Round]:
        """One pass of the target over each request's tree."""
        trees = self._trees(pairs)
        looked = self._target.look(
            [
                Extension(pair.target, pair.prefix, tree.tokens, parents=tree.parents)
                for pair, (tree, _) in zip(pairs, trees, strict=True)
            ]
        )
        rounds: list[Round] = []
        for pair, (tree, q), logits in zip(pairs, trees, looked, strict=True):
            if len(tree) and not bool(logits.isfinite().all()):  # a draft may have spoilt the pass: ask without any
                tree, q = Tree(), {}
                (logits,) = self._target.look([Extension(pair.target, pair.prefix)])
            rounds.append(_settled(pair, tree, q, logits))
        return rounds

    def _trees(self, pairs: Sequence[Pair]) -> list[tuple[Tree, dict[int, torch.Tensor]]]:
        drafting = [(i, pair.drafter) for i, pair in enumerate(pairs) if pair.drafter is not None]
        rows, prefixes = [row for _, row in drafting], [pairs[i].prefix for i, _ in drafting]
        sampled = self._sampler.sample(rows, prefixes, [pairs[i].most for i, _ in drafting])
        trees: list[tuple[Tree, dict[int, torch.Tensor]]] = [(Tree(), {}) for _ in pairs]
        for (i, _), (tree, q) in zip(drafting, sampled, strict=True):
            room = self._target.room(pairs[i].target, len(pairs[i].prefix))
            trees[i] = tree.only(range(min(len(tree), max(0, room)))), q
        return trees


def _settled(pair: Pair, tree: Tree, q: dict[int, torch.Tensor], logits: torch.Tensor) -> Round:
    depth = 1 + max(tree.depths, default=-1)
    if not bool(logits.isfinite().all()):
        return Round((), None, depth)
    sampling, base = pair.target.sampling, len(pair.prefix)
    p = [law.chances for law in laws(logits, sampling)]
    coins, others = coin_key(sampling.seed, base), other_key(sampling.seed, base)

    def keeps(chance: float, node: int) -> bool:
        return float(uniform_noise([coins], [node + 1], 1)) < chance

    def draw(law: torch.Tensor, node: int) -> int:
        return int((law.log() + gumbel_noise([others], [node + 1], len(law), law.device)[0]).argmax())

    drafts = [q.get(node, p[0]) for node in range(-1, len(tree))]  # of a leaf it is not looked at
    found: Traversed = traverse(tree.tokens, tree.parents, drafts, p, keeps, draw)
    return Round(tuple(tree.tokens[node] for node in found.nodes), found.token, depth)
