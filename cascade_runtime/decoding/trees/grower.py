"""`Grower`: a model drafts a tree, layer by layer. A layer is one pass over the leaves that grow, of all rows.

A node's children are the k largest of `process(logits) + G(seed, position)`, the shared noise of `choice.py` in it: the
first child is what the drafter itself would say, the others what it would say next. Since the verifier accepts only
what it chooses itself, with the same noise, sampling stays exact at any temperature, with no probability on the wire;
without the noise, siblings of a sampled answer would hardly ever be chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.choice import gumbel_noise, process_logits
from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.row import Extension, Row
from cascade_runtime.decoding.trees.shapes import Shape
from cascade_runtime.decoding.trees.tree import Tree


class Growing:
    """One row's tree while it grows beyond a prefix, by `room` tokens at most. layer: the nodes that may grow next, at
    this depth; of a tree that has begun, its own. fed: the nodes that the drafter has looked at, in the order of its
    cache.
    """

    def __init__(
        self, row: Row, prefix: Sequence[int], room: int, tree: Tree | None = None, layer: Sequence[int] = (-1,),
        depth: int = 0,
    ) -> None:  # fmt: skip
        self.row, self.prefix, self.room = row, prefix, room
        self.tree, self.layer, self.depth = tree or Tree(), list(layer), depth
        self.fed = sorted(set(self.tree.parents) - {-1})

    def extension(self, nodes: Sequence[int]) -> Extension:
        """Look at these nodes too."""
        new = [node for node in nodes if node >= 0]
        self.fed += new
        place = {node: at for at, node in enumerate(self.fed)}
        parents = [place.get(self.tree.parents[node], -1) for node in self.fed]
        drafts = [self.tree.tokens[node] for node in self.fed]
        return Extension(self.row, self.prefix, drafts, parents=parents, asked=len(nodes))


class Grower:
    """Drafts trees of one shape with a level's decoder."""

    def __init__(self, decoder: Decoder, shape: Shape, ends: Sequence[int]) -> None:
        self._decoder, self._shape, self._ends = decoder, shape, frozenset(ends)

    def grow(self, rows: Sequence[Row], prefixes: Sequence[Sequence[int]], most: Sequence[int]) -> list[Tree]:
        """One tree per row beyond its prefix, none deeper than most[i]. A row whose numbers are not finite gives an
        empty one.
        """
        return self.finish([Growing(*each) for each in zip(rows, prefixes, most, strict=True)])

    def finish(self, growing: Sequence[Growing]) -> list[Tree]:
        """Let these grow to their ends, a pass per layer for all that still do."""
        while True:
            asked: list[tuple[Growing, list[tuple[int, int]]]] = []
            for one in growing:
                room = self._decoder.room(one.row, len(one.prefix)) - len(one.fed)
                grows = self.grows(one.tree, one.layer, one.depth, one.room)[:room]
                one.layer, one.depth = [], one.depth + 1
                if grows:
                    asked.append((one, grows))
            if not asked:
                return [self._shape.kept(one.tree).shallower(one.room) for one in growing]
            looked = self._decoder.look([one.extension([node for node, _ in grows]) for one, grows in asked])
            for (one, grows), logits in zip(asked, looked, strict=True):
                for (node, width), line in zip(grows, logits, strict=True):
                    for token, step in self.children(line, one, node, width):
                        one.layer.append(one.tree.add(token, node, step))

    def grows(self, tree: Tree, layer: list[int], depth: int, most: int) -> list[tuple[int, int]]:
        """The nodes of a tree's last layer that get children, and how many. most: how deep it may become."""
        if not layer or depth >= most:
            return []
        grows = self._shape.grows(tree, layer, depth)
        return [(node, width) for node, width in grows if node < 0 or tree.tokens[node] not in self._ends]

    def children(self, logits_V: torch.Tensor, one: Growing, node: int, width: int) -> list[tuple[int, float]]:
        """Up to `width` tokens after a node, and the log-probability of each. logits: the drafter's there."""
        position = len(one.prefix) + (one.tree.depths[node] + 1 if node >= 0 else 0)
        return likeliest(logits_V, one.row.sampling, position, width)


def likeliest(
    logits_V: torch.Tensor, params: SamplingParams, position: int, count: int
) -> list[tuple[int, float]]:  # fmt: skip
    """The `count` largest of a model's perturbed scores at a position of the answer: (token, log of its share of them).

    Tokens that the request's top-k and top-p remove are left out; none where the logits are not finite.
    """
    if not bool(logits_V.isfinite().all()):
        return []
    if params.temperature > 0:
        scores = process_logits(logits_V[None], params)
        scores = (scores + gumbel_noise([params.seed], [position], scores.shape[-1], scores.device))[0]
    else:
        scores = logits_V.double()
    best = torch.topk(scores.log_softmax(-1), min(count, len(scores)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(token, value) for token, value in pairs if value > -torch.inf]
