"""`Foresight`: while a tree is being verified, draft the trees that would follow its likely outcomes.

    the drafter has proposed a tree; its likeliest path is x1 .. xK
    an outcome (k, t): x1 .. xk are kept, and the verifier's own next token is t
        look along x1 .. xK once            the likeliest t after each k, but for x_k+1 itself
        then a pass per layer               for every outcome, the tree that it would be given, all in one pass
    the verdict comes: what it says is one of them, and its tree is there, as far as time was, and grows on from there;
    or it is not, and one is drafted

SSD, also called Saguaro: how many t are foreseen after each k follows its theorem 12. With one outcome it is drafting
ahead of a verification that accepts everything, as PEARL and DuoDecoding do. What is foreseen is a proposal like any
other: the verifier accepts what it chooses itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.row import Extension, Row
from cascade_runtime.decoding.trees.grower import Grower, Growing
from cascade_runtime.decoding.trees.tree import Tree
from cascade_runtime.scheduling import branching

_POWER = 1.0  # r: of so many guesses after one k, all miss with probability F ** -r
_FORGET = 0.95
_FEW = (8.0, 10.0)  # kept and tested, before any verdict
_SUREST = 0.99


@dataclass(eq=False)
class _Outcome:
    """Node `root` of a row's big tree is what the verifier may say; `tree` is what would follow. place: its nodes as
    nodes of the big one.
    """

    root: int
    most: int
    tree: Tree = field(default_factory=Tree)
    layer: list[int] = field(default_factory=lambda: [-1])
    depth: int = 0
    place: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.place[-1] = self.root


@dataclass(eq=False)
class _Waiting:
    """A row whose tree is being verified. path: the likeliest of the tree. big: that path, and all that is foreseen."""

    path: list[int]
    big: Growing
    looked: bool = False
    outcomes: list[_Outcome] = field(default_factory=list)


class Foresight:
    """For the rows of one drafter, by any key. most: outcomes of a tree that are foreseen."""

    def __init__(self, grower: Grower, decoder: Decoder, most: int) -> None:
        self._grower, self._decoder, self._most = grower, decoder, most
        self._waiting: dict[int, _Waiting] = {}
        self._kept, self._tested = _FEW
        self.hits = self.misses = 0

    def planted(self, key: int, row: Row, prefix: Sequence[int], tree: Tree, deepest: int) -> None:
        """This tree of the row is being verified. deepest: tokens by which the drafter may outrun the prefix."""
        big = Growing(row, list(prefix), deepest)
        path = [tree.tokens[node] for node in branching.first_path(tree.parents)]
        for token in path:
            big.tree.add(token, len(big.tree) - 1)
        self._waiting.pop(key, None)
        if path and not row.poisoned:
            self._waiting[key] = _Waiting(path, big)

    def forget(self, key: int) -> None:
        """The row has ended, or is to begin anew."""
        self._waiting.pop(key, None)

    def came_true(self, key: int, prefix: Sequence[int], deepest: int) -> Growing | None:
        """The tree for what the verdict made of the prefix, as far as it has grown; None where it has not begun. What
        was foreseen besides is forgotten. deepest: as for `planted`.
        """
        one = self._waiting.pop(key, None)
        if one is None or list(prefix[: len(one.big.prefix)]) != one.big.prefix:
            return None
        said = list(prefix[len(one.big.prefix) :])
        self._learn(one.path, said)
        big = one.big.tree
        node = branching.walk(big.tokens, big.parents, said) if said else None
        found = next((each for each in one.outcomes if each.root == node), None)
        begun = found is not None and len(found.tree) > 0
        self.hits, self.misses = self.hits + begun, self.misses + (not begun)
        if found is None or not begun:
            return None
        return Growing(one.big.row, prefix, deepest, found.tree, found.layer, found.depth)

    def pass_ahead(self) -> list[int]:
        """One pass for all rows of which more can be foreseen; their keys, none where there is nothing left to do."""
        asked: list[tuple[int, _Waiting, Extension, list[tuple[_Outcome, int, int]]]] = []
        for key, one in self._waiting.items():
            if one.big.row.poisoned or one.big.row.released:
                continue
            if not one.looked:
                asked.append((key, one, self._along(one), []))
            elif layer := self._layer(one):
                nodes = [each.place[node] for each, node, _ in layer]
                asked.append((key, one, one.big.extension(nodes), layer))
        if not asked:
            return []
        looked = self._decoder.look([extension for _, _, extension, _ in asked])
        for (_, one, _, layer), logits in zip(asked, looked, strict=True):
            if one.looked:
                for (each, node, width), line in zip(layer, logits, strict=True):
                    for token, step in self._grower.children(line, one.big, each.place[node], width):
                        child = each.tree.add(token, node, step)
                        each.place[child] = one.big.tree.add(token, each.place[node], step)
                        each.layer.append(child)
                continue
            one.looked = True
            for k, count in enumerate(self.fan_out(len(one.path))):
                drafted = one.path[k] if k < len(one.path) else None
                guesses = self._grower.children(logits[k], one.big, k - 1, count + (drafted is not None))
                for token, step in [pair for pair in guesses if pair[0] != drafted][:count]:
                    one.outcomes.append(_Outcome(one.big.tree.add(token, k - 1, step), one.big.room - k - 1))
        return [key for key, *_ in asked]

    def fan_out(self, drafted: int) -> list[int]:
        """How many next tokens to foresee after 0, 1, .. drafts were kept (theorem 12, rounded to whole ones)."""
        if self._most == 1:
            return [0] * drafted + [1]
        share = min(_SUREST, self._kept / self._tested)
        weights = [share ** (k / (1 + _POWER)) for k in range(drafted + 1)]
        weights[-1] *= (1 - share) ** (-1 / (1 + _POWER))
        wanted = [self._most * weight / sum(weights) for weight in weights]
        counts = [int(each) for each in wanted]
        by_rest = sorted(range(drafted + 1), key=lambda k: (counts[k] - wanted[k], -wanted[k]))
        for k in by_rest[: self._most - sum(counts)]:
            counts[k] += 1
        return counts

    def _along(self, one: _Waiting) -> Extension:
        one.big.fed = list(range(len(one.path)))
        parents = [*range(-1, len(one.path) - 1)]
        return Extension(one.big.row, one.big.prefix, one.path, parents=parents)

    def _layer(self, one: _Waiting) -> list[tuple[_Outcome, int, int]]:
        """Per outcome the nodes that grow now, and how many children each gets. One for which the slot or the drafter's
        window has no room waits: when it has come true there will be.
        """
        room = self._decoder.room(one.big.row, len(one.big.prefix)) - len(one.big.fed)
        found: list[tuple[_Outcome, int, int]] = []
        for each in (each for each in one.outcomes if each.depth < each.most):
            grows = self._grower.grows(each.tree, each.layer, each.depth, each.most)
            if len(found) + len(grows) <= room:
                found += [(each, node, width) for node, width in grows]
                each.layer, each.depth = [], each.depth + 1
        return found

    def _learn(self, path: list[int], said: list[int]) -> None:
        if not said:
            return
        kept = 0
        while kept < min(len(path), len(said)) and path[kept] == said[kept]:
            kept += 1
        self._kept = _FORGET * self._kept + kept
        self._tested = _FORGET * self._tested + (kept if kept == len(said) else min(len(path), kept + 1))
