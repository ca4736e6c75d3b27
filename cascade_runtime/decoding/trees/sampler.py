"""`Sampler`: a model drafts a tree whose children are drawn from its law without replacement, and keeps the laws."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cascade_runtime.decoding.acceptance.law import laws
from cascade_runtime.decoding.choice import derived_seed, gumbel_noise
from cascade_runtime.decoding.row import Row
from cascade_runtime.decoding.trees.grower import Grower, Growing
from cascade_runtime.decoding.trees.tree import Tree

_CHILDREN, _COIN, _OTHER = 3 << 24, 4 << 24, 5 << 24


def children_key(seed: int, base: int) -> int:
    """Where the noise of a round's drafts comes from. base: tokens of the answer that stand before it.

    Every round has numbers of its own, one stream for drafts, one for coins and one for other draws, each counted by
    node: what a coin decided of a tree that was mostly refused must decide nothing of the next.
    """
    return derived_seed(seed, _CHILDREN + base)


def coin_key(seed: int, base: int) -> int:
    """The same of its coins."""
    return derived_seed(seed, _COIN + base)


def other_key(seed: int, base: int) -> int:
    """The same of the tokens that follow what is kept."""
    return derived_seed(seed, _OTHER + base)


class Sampler(Grower):
    """`sample` gives trees and, per tree, the laws float64 (V,) that its nodes' children were drawn from."""

    def sample(
        self, rows: Sequence[Row], prefixes: Sequence[Sequence[int]], most: Sequence[int]
    ) -> list[tuple[Tree, dict[int, torch.Tensor]]]:
        """See `Grower.grow`. The laws are by node, -1 the prefix; of nodes that have no children there is none."""
        self._laws: dict[int, dict[int, torch.Tensor]] = {row.slot: {} for row in rows}
        return [(tree, self._laws[row.slot]) for row, tree in zip(rows, self.grow(rows, prefixes, most), strict=True)]

    def children(self, logits_V: torch.Tensor, one: Growing, node: int, width: int) -> list[tuple[int, float]]:
        """The largest of log q + G: a draw of so many without replacement, in their order (Kool et al. 2019)."""
        if not bool(logits_V.isfinite().all()):
            return []
        (law,) = laws(logits_V[None], one.row.sampling)
        self._laws[one.row.slot][node] = law.chances
        key = children_key(one.row.sampling.seed, len(one.prefix))
        scores = law.chances.log() + gumbel_noise([key], [node + 1], len(law.chances), law.chances.device)[0]
        best = torch.topk(scores, min(width, len(scores)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(token, float(law.chances[token].log())) for token, score in pairs if score > -torch.inf]
