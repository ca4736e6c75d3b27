"""Drafters that live beside the target: they read its hidden states, and propose trees of tokens beyond its answer.

    drafter = load_drafter(folder, decoder)      the target's decoder keeps from now on what the drafter reads
    after every pass of the decoder over a row:  drafter.observe(row, answer)       the answer as it now stands
    whenever drafts are wanted:                  drafter.propose([Ask(row, budget=16, depth=5), ..]) -> [Tree, ..]
    when the row ends:                           drafter.forget(row)

`observe` takes over the states of the row's last pass along the path that became the answer; `answer` ends with the
token that the pass chose, which the target has not fed yet. Trees stand on that token. A tree is a proposal: whatever
it holds, the answer is the target's.

MedusaDrafter  one product for all depths: a Cartesian tree, the nodes worth most
EagleDrafter   EAGLE-2: layer by layer, `width` nodes of each looked beyond; of all nodes those worth most. width 1 and
               a budget of `depth` give a chain. It stands at the text positions behind what is seen, and knows of that
               what the target's states there tell, unless its head looks at it first

Where a request is sampled, candidates are ranked with the noise that the target will choose with (`choice.py`). A row
that was never observed, or whose numbers are not finite, gets an empty tree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.choice import gumbel_noise, process_logits
from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.row import Row
from cascade_runtime.decoding.trees.product import product_tree
from cascade_runtime.decoding.trees.tree import Tree
from cascade_runtime.errors import InputError
from cascade_runtime.models.eagle import EagleHead, load_eagle
from cascade_runtime.models.head_folder import head_kind
from cascade_runtime.models.language import LanguageModel
from cascade_runtime.models.medusa import MedusaHeads, load_medusa
from cascade_runtime.models.slot_cache import Branches

DEEPEST = 8  # levels of an EAGLE tree at most; its slots hold so many layers beyond an answer


@dataclass(frozen=True)
class Ask:
    """A row that wants drafts: at most `budget` nodes, at most `depth` of them one after the other."""

    row: Row
    budget: int
    depth: int

    def __post_init__(self) -> None:
        for name, value in (("budget", self.budget), ("depth", self.depth)):
            if value < 0:
                raise InputError(name, value, "0 or more")


class Drafter(Protocol):
    """What a target's loop may ask of a head."""

    def observe(self, row: Row, answer: Sequence[int]) -> None:
        """Take over the states of the row's last pass. Raises `InputError` where a pass was left out."""
        ...

    def propose(self, asks: Sequence[Ask]) -> list[Tree]:
        """A tree for each, in their order."""
        ...

    def forget(self, row: Row) -> None:
        """The row has ended."""
        ...


def load_drafter(folder: str | Path, decoder: Decoder, *, width: int = 4) -> MedusaDrafter | EagleDrafter:
    """The head of a folder beside this target, whose decoder keeps its states from now on. Raises `ConfigError`."""
    if head_kind(folder) == "medusa":
        drafter: MedusaDrafter | EagleDrafter = MedusaDrafter(load_medusa(folder, decoder.language), decoder.language)
    else:
        head = load_eagle(folder, decoder.language)
        cache = decoder.cache
        drafter = EagleDrafter(head, decoder.language, slots=cache.slots, max_len=cache.max_len, width=width)
    decoder.keeps = drafter.keeps
    return drafter


@dataclass
class _Heard:
    """Of one row: the answer as it was last told, and its target's state at the answer's last fed position."""

    row: Row
    answer: list[int]
    state: torch.Tensor


class MedusaDrafter:
    """Medusa's heads, and of each row the one state that they read."""

    def __init__(self, heads: MedusaHeads, language: LanguageModel) -> None:
        self._heads, self._language = heads, language
        self._heard: dict[int, _Heard] = {}
        self.keeps = (language.num_layers,)

    def observe(self, row: Row, answer: Sequence[int]) -> None:
        """See `Drafter.observe`; a pass that fed none of the answer's last position leaves nothing to read."""
        self._heard.pop(row.slot, None)
        first, values = _confirmed(row, answer)
        last = len(row.prompt) + len(answer) - 2 - first
        if answer and 0 <= last < len(values):
            self._heard[row.slot] = _Heard(row, list(answer), values[last])

    def forget(self, row: Row) -> None:
        """See `Drafter.forget`."""
        if _of(self._heard, row) is not None:
            del self._heard[row.slot]

    @torch.inference_mode()
    def propose(self, asks: Sequence[Ask]) -> list[Tree]:
        """See `Drafter.propose`. No deeper than there are heads."""
        trees = [Tree() for _ in asks]
        found = [(i, _of(self._heard, ask.row)) for i, ask in enumerate(asks) if ask.budget and ask.depth]
        live = [(i, heard) for i, heard in found if heard is not None]
        if not live:
            return trees
        states = self._heads(torch.stack([heard.state for _, heard in live]))
        count, depths = len(live), states.shape[1]
        rows = [heard.row for _, heard in live for _ in range(depths)]
        at = [len(heard.answer) + depth for _, heard in live for depth in range(depths)]
        log_probs = _log_probs(self._language.logits(states.flatten(0, 1)), [row.sampling for row in rows], at)
        most = min(max(asks[i].budget for i, _ in live), log_probs.shape[-1])
        values, tokens = log_probs.view(count, depths, -1).topk(most)
        for (i, _), row_values, row_tokens in zip(live, values.tolist(), tokens.tolist(), strict=True):
            choices = [
                [(token, value) for token, value in zip(*each, strict=True) if math.isfinite(value)]
                for each in zip(row_tokens, row_values, strict=True)
            ]
            trees[i] = product_tree(choices[: asks[i].depth], asks[i].budget, self._language.eos_token_ids)
        return trees


@dataclass
class _Followed:
    """Of one row: `known` states of positions from the visual prefix's end on, in the answer's order, and how many of
    them the head has taken in. answer: as it was last told.
    """

    row: Row
    answer: list[int] = field(default_factory=list)
    known: int = 0
    held: int = 0
    looked: int = 0  # positions of the visual prefix that the head has taken in

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


_Held = TypeVar("_Held", _Heard, _Followed)


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
        one = _of(self._followed, row)
        if one is None:
            one = self._followed[row.slot] = _Followed(row)
        agree = _agreeing(one.answer, answer)
        tail = len(row.prompt) - one.base  # of the prompt
        # What the head took in at a position depends on the token after it, a state only on those before it.
        one.held = min(one.held, tail - 1 + agree)
        one.known = min(one.known, tail + agree)
        one.answer = list(answer)
        fed, values = _confirmed(row, answer)
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
        if _of(self._followed, row) is not None:
            del self._followed[row.slot]

    @torch.inference_mode()
    def propose(self, asks: Sequence[Ask]) -> list[Tree]:
        """See `Drafter.propose`. No deeper than `deepest`."""
        trees = [Tree() for _ in asks]
        growing: dict[int, _Growing] = {}
        for i, ask in enumerate(asks):
            one = _of(self._followed, ask.row)
            depth = min(ask.depth, self._deepest)
            if one is not None and one.answer and one.known >= one.wanted and ask.budget and depth:
                growing[i] = _Growing(ask, one, depth)
        if not growing:
            return trees
        if self._head.looks:
            self._look_first([each.followed for each in growing.values() if each.followed.looked < each.followed.base])
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
        counts = [one.base for one in rows]
        self._head.forward(
            None,
            torch.cat([one.row.prompt.embeds[: one.base] for one in rows]).to(self._states),
            slots=[one.row.slot for one in rows],
            starts=[0] * len(rows),
            counts=counts,
            positions=[at for count in counts for at in range(count)],
            cache=self._cache,
        )
        for one in rows:
            one.looked = one.base

    def _take_in(self, rows: Sequence[_Followed]) -> torch.Tensor:
        """Feed what the answer has grown by; the head's states (rows, D) after it."""
        starts = [min(one.held, one.wanted - 1) for one in rows]
        counts = [one.wanted - start for one, start in zip(rows, starts, strict=True)]
        places = [one.looked + start for one, start in zip(rows, starts, strict=True)]
        states = [self._states[one.row.slot, s : s + n] for one, s, n in zip(rows, starts, counts, strict=True)]
        out = self._head.forward(
            torch.cat(states),
            torch.cat([self._followers(one, start) for one, start in zip(rows, starts, strict=True)]),
            slots=[one.row.slot for one in rows],
            starts=places,
            counts=counts,
            positions=[at for place, count in zip(places, counts, strict=True) for at in range(place, place + count)],
            cache=self._cache,
        )
        for one in rows:
            one.held = one.wanted
        last = torch.tensor(counts, device=out.device).cumsum(0) - 1
        return out.index_select(0, last)

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
        found = self._head.forward(
            out.index_select(0, sources),
            self._language.embed([tree.made.tokens[node] for tree, node in pairs]),
            slots=[tree.followed.row.slot for tree in trees],
            starts=[tree.followed.end + tree.fed for tree in trees],
            counts=[len(nodes) for nodes in frontiers],
            positions=[tree.followed.end + layer - 2 for tree, _ in pairs],
            cache=self._cache,
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
        log_probs = _log_probs(logits, [tree.followed.row.sampling for tree, _ in rows], at)
        values, tokens = log_probs.topk(min(self._width, log_probs.shape[-1]))
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


def _of(held: dict[int, _Held], row: Row) -> _Held | None:
    """What is held of a row; a slot may have gone to another."""
    one = held.get(row.slot)
    return one if one is not None and one.row is row else None


def _agreeing(mine: Sequence[int], theirs: Sequence[int]) -> int:
    agree = 0
    while agree < min(len(mine), len(theirs)) and mine[agree] == theirs[agree]:
        agree += 1
    return agree


def _confirmed(row: Row, answer: Sequence[int]) -> tuple[int, torch.Tensor]:
    """Of the row's last pass, the states along prompt and answer: the position of the first, and (n, blocks * D)."""
    if row.states is None:
        raise InputError("row.states", None, "states of a pass: set Decoder.keeps to what the drafter keeps")
    path, start, prompt = _path(row, answer), row.states.start, len(row.prompt)
    places = [*range(start, min(row.held, prompt)), *(prompt + node for node in path if prompt + node >= start)]
    first = start if start < prompt else prompt + sum(prompt + node < start for node in path)
    at = torch.tensor([place - start for place in places], dtype=torch.long, device=row.states.values.device)
    return first, row.states.values.index_select(0, at)


def _path(row: Row, answer: Sequence[int]) -> list[int]:
    """The nodes in the row's slot that say the answer, as far as there are any: of a chain the first so many."""
    if row.above is None:
        return list(range(_agreeing(row.tokens, answer)))
    path, node = list[int](), -1
    for token in answer:
        above, tokens = row.above, row.tokens
        child = next((i for i in range(node + 1, len(tokens)) if above[i] == node and tokens[i] == token), None)
        if child is None:
            break
        path.append(child)
        node = child
    return path


def _log_probs(logits: torch.Tensor, params: Sequence[SamplingParams], positions: Sequence[int]) -> torch.Tensor:
    """Logarithms of the probabilities (N, V) that candidates are ranked by, row i as position `positions[i]` of an
    answer sampled with `params[i]`. Where a row's numbers are not finite none of it is.
    """
    scores = logits.float().clone()
    for row, (wants, at) in enumerate(zip(params, positions, strict=True)):
        if wants.temperature > 0:
            noisy = process_logits(scores[row : row + 1], wants)
            scores[row] = (noisy + gumbel_noise([wants.seed], [at], noisy.shape[-1], noisy.device))[0].float()
    return scores.log_softmax(-1)
