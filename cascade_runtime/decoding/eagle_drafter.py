"""`EagleDrafter`: EAGLE's head and its kin beside a target, see `heads.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from cascade_runtime.decoding.head_states import Ask, agreeing, confirmed, held_of, log_probs
from cascade_runtime.decoding.row import Row
from cascade_runtime.decoding.trees.tree import Tree
from cascade_runtime.errors import InputError
from cascade_runtime.models.eagle import EagleHead
from cascade_runtime.models.language import LanguageModel
from cascade_runtime.models.slot_cache import Branches

DEEPEST = 8  # levels of an EAGLE tree at most; its slots hold so many layers beyond an answer


@dataclass
class _Followed:
    """Of one row: `known` states of positions from the visual prefix's end on, in the answer's order, and how many of
    them the head has taken in. answer: as it was last told.
    """

    row: Row
    answer: list[int] = field(default_factory=list)
    known: int = 0
    held: int = 0
    looked: int = 0  # positions in the head's slot that stand for the visual prefix, once it has looked
    gist: torch.Tensor | None = None  # (1, D), what it found there for every input

    @property
    def base(self) -> int:
        """The first position that the head sees."""
        return self.row.prompt.prefix_length

    @property
    def wanted(self) -> int:
        """Positions that the head must have taken in before it drafts: all but the answer's last token."""
        return len(self.row.prompt) + len(self.answer) - 1 - self.base

    @property
    def end(self) -> int:
        """Of what is in the slot, once all that is wanted is."""
        return self.looked + self.wanted


@dataclass
class _Growing:
    """A tree being made: the nodes so far, per node what it sees of the tree's part of the slot, and which of the last
    outputs its parent gave.
    """

    ask: Ask
    followed: _Followed
    depth: int
    made: Tree = field(default_factory=Tree)
    sees: dict[int, int] = field(default_factory=dict)
    source: dict[int, int] = field(default_factory=dict)
    layer: list[int] = field(default_factory=list)  # the nodes made last
    fed: int = 0

    def frontier(self, width: int, ends: Sequence[int]) -> list[int]:
        """The nodes of the last layer to look beyond: none whose children cannot be among the best."""
        least, made = self.made.worst_of(self.ask.budget), self.made
        open_ = [node for node in self.layer if made.values[node] > least and made.tokens[node] not in ends]
        return sorted(sorted(open_, key=lambda node: -made.values[node])[:width])


class EagleDrafter:
    """EAGLE's head over slots of its own, one for each slot of the target."""

    def __init__(
        self,
        head: EagleHead,
        language: LanguageModel,
        *,
        slots: int,
        max_len: int,
        width: int = 4,
        deepest: int = DEEPEST,
    ) -> None:
        if width < 1:
            raise InputError("width", width, "1 or more")
        self._head, self._language, self._width, self._deepest = head, language, width, deepest
        self._cache = head.new_cache(slots, max_len + width * (deepest - 1))
        self._states = torch.zeros(slots, max_len, head.hidden_size, dtype=head.dtype, device=head.device)
        self._followed: dict[int, _Followed] = {}
        self.keeps = head.blocks or (language.num_layers,)

    def observe(self, row: Row, answer: Sequence[int]) -> None:
        """See `Drafter.observe`."""
        one = held_of(self._followed, row)
        if one is None:
            one = self._followed[row.slot] = _Followed(row)
        agree = agreeing(one.answer, answer)
        tail = len(row.prompt) - one.base  # of the prompt
        # What the head took in at a position depends on the token after it, a state only on those before it.
        one.held = min(one.held, tail - 1 + agree)
        one.known = min(one.known, tail + agree)
        one.answer = list(answer)
        fed, values = confirmed(row, answer)
        first = max(fed - one.base, 0)
        values = values[max(one.base - fed, 0) :]
        if not len(values):
            return
        if first > one.known:
            raise InputError("row.states.start", fed, f"at most {one.base + one.known}: a pass was not observed")
        one.known = first + len(values)
        one.held = min(one.held, first)
        self._states[row.slot, first : one.known] = self._head.taken(values)

    def forget(self, row: Row) -> None:
        """See `Drafter.forget`."""
        if held_of(self._followed, row) is not None:
            del self._followed[row.slot]

    @torch.inference_mode()
    def propose(self, asks: Sequence[Ask]) -> list[Tree]:
        """See `Drafter.propose`. No deeper than `deepest`."""
        trees = [Tree() for _ in asks]
        growing: dict[int, _Growing] = {}
        for i, ask in enumerate(asks):
            one = held_of(self._followed, ask.row)
            depth = min(ask.depth, self._deepest)
            if one is not None and one.answer and one.known >= one.wanted and ask.budget and depth:
                growing[i] = _Growing(ask, one, depth)
        if not growing:
            return trees
        if self._head.looks:
            followed = [each.followed for each in growing.values()]
            self._look_first([one for one in followed if one.base and not one.looked])
        out = self._take_in([each.followed for each in growing.values()])
        self._branch(list(growing.values()), [[-1]] * len(growing), out)
        layer, live = 1, list(growing.values())
        while live:
            layer += 1
            ends = self._language.eos_token_ids
            frontiers = [each.frontier(self._width, ends) if layer <= each.depth else [] for each in live]
            live = [each for each, nodes in zip(live, frontiers, strict=True) if nodes]
            frontiers = [nodes for nodes in frontiers if nodes]
            if live:
                out = self._look(live, frontiers, out, layer)
                self._branch(live, frontiers, out)
        for i, each in growing.items():
            trees[i] = each.made.best(each.ask.budget)
        return trees

    def _look_first(self, rows: Sequence[_Followed]) -> None:
        """Feed the visual prefixes of rows that are new."""
        if not rows:
            return
        looks = [self._head.seen(one.row.prompt.embeds[: one.base].to(self._states)) for one in rows]
        inputs, gists = [each for each, _ in looks], [gist for _, gist in looks]
        counts = [len(each) for each in inputs]
        self._head.forward(
            None,
            torch.cat(inputs),
            slots=[one.row.slot for one in rows],
            starts=[0] * len(rows),
            counts=counts,
            positions=[at for count in counts for at in range(count)],
            cache=self._cache,
        )
        for one, count, gist in zip(rows, counts, gists, strict=True):
            one.looked, one.gist = count, gist

    def _take_in(self, rows: Sequence[_Followed]) -> torch.Tensor:
        """Feed what the answer has grown by; the head's states (rows, D) after it."""
        starts = [min(one.held, one.wanted - 1) for one in rows]
        counts = [one.wanted - start for one, start in zip(rows, starts, strict=True)]
        places = [one.looked + start for one, start in zip(rows, starts, strict=True)]
        states = [self._states[one.row.slot, s : s + n] for one, s, n in zip(rows, starts, counts, strict=True)]
        out = self._forward(
            rows,
            torch.cat(states),
            torch.cat([self._followers(one, start) for one, start in zip(rows, starts, strict=True)]),
            counts,
            sees=[at + 1 for start, count in zip(starts, counts, strict=True) for at in range(start, start + count)],
            starts=places,
            positions=[at for place, count in zip(places, counts, strict=True) for at in range(place, place + count)],
        )
        for one in rows:
            one.held = one.wanted
        last = torch.tensor(counts, device=out.device).cumsum(0) - 1
        return out.index_select(0, last)

    def _forward(
        self,
        rows: Sequence[_Followed],
        states: torch.Tensor,
        embeds: torch.Tensor,
        counts: Sequence[int],
        *,
        sees: Sequence[int],
        starts: Sequence[int],
        positions: Sequence[int],
        branches: Sequence[Branches | None] | None = None,
        step: int = 0,
    ) -> torch.Tensor:
        """The head's states after these inputs, `counts` of each row. sees: per input, how many of the row's states it
        may look at.
        """
        gists = [one.gist.expand(n, -1) for one, n in zip(rows, counts, strict=True) if one.gist is not None]
        out = self._head.forward(
            states,
            embeds,
            slots=[one.row.slot for one in rows],
            starts=starts,
            counts=counts,
            positions=positions,
            cache=self._cache,
            branches=branches,
            step=step,
            gist_ND=torch.cat(gists) if gists else None,
        )
        if self._head.across is None:
            return out
        known = [self._states[one.row.slot, : one.wanted] for one in rows]
        limits = torch.tensor(sees, device=out.device).split(list(counts))
        parts = zip(out.split(list(counts)), known, limits, strict=True)
        return torch.cat([self._head.across(part[None], told[None], most[None])[0] for part, told, most in parts])

    def _followers(self, one: _Followed, start: int) -> torch.Tensor:
        """Embeddings of the tokens that follow positions start .. of a row."""
        first, prompt = one.base + start + 1, one.row.prompt
        answer = self._language.embed(one.answer[max(first - len(prompt), 0) :])
        return torch.cat([prompt.embeds[first:].to(answer), answer]) if first < len(prompt) else answer

    def _look(
        self, trees: Sequence[_Growing], frontiers: Sequence[Sequence[int]], out: torch.Tensor, layer: int
    ) -> torch.Tensor:
        """Feed these nodes, each seeing its own path; the head's states after them, (nodes, D)."""
        branches: list[Branches | None] = []
        for tree, nodes in zip(trees, frontiers, strict=True):
            for i, node in enumerate(nodes):
                tree.sees[node] = 1 << (tree.fed + i) | tree.sees.get(tree.made.parents[node], 0)
            branches.append(Branches(tree.followed.end, [tree.sees[node] for node in nodes]))
        pairs = [(tree, node) for tree, nodes in zip(trees, frontiers, strict=True) for node in nodes]
        sources = torch.tensor([tree.source[node] for tree, node in pairs], device=out.device)
        found = self._forward(
            [tree.followed for tree in trees],
            out.index_select(0, sources),
            self._language.embed([tree.made.tokens[node] for tree, node in pairs]),
            [len(nodes) for nodes in frontiers],
            sees=[tree.followed.wanted for tree, _ in pairs],
            starts=[tree.followed.end + tree.fed for tree in trees],
            positions=[tree.followed.end + layer - 2 for tree, _ in pairs],
            branches=branches,
            step=layer - 1,
        )
        for tree, nodes in zip(trees, frontiers, strict=True):
            tree.fed += len(nodes)
        return found

    def _branch(self, trees: Sequence[_Growing], parents: Sequence[Sequence[int]], out: torch.Tensor) -> None:
        """Give each parent its `width` best children. out: the head's states after them."""
        rows = [(tree, parent) for tree, nodes in zip(trees, parents, strict=True) for parent in nodes]
        at = [len(tree.followed.answer) + (tree.made.depths[parent] + 1 if parent >= 0 else 0) for tree, parent in rows]
        logits = self._language.logits(self._head.read(out))
        found = log_probs(logits, [tree.followed.row.sampling for tree, _ in rows], at)
        values, tokens = found.topk(min(self._width, found.shape[-1]))
        for tree in trees:
            tree.layer = []
        for source, ((tree, parent), *best) in enumerate(zip(rows, values.tolist(), tokens.tolist(), strict=True)):
            for value, token in zip(*best, strict=True):
                if math.isfinite(value):
                    tree.source[len(tree.made)] = source
                    tree.layer.append(len(tree.made))
                    tree.made.add(token, parent, value)
            if not math.isfinite(best[0][0]):  # such numbers stay in the slot: grow no further, take all in anew
                self._cache.scrub(tree.followed.row.slot)
                tree.followed.held, tree.followed.looked, tree.depth = 0, 0, 0
