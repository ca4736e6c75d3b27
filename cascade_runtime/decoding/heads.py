"""Drafters that live beside the target: they read its hidden states, and propose trees of tokens beyond its answer.

    drafter = load_drafter(folder, decoder)      the target's decoder keeps from now on what the drafter reads
    after every pass of the decoder over a row:  drafter.observe(row, answer)       the answer as it now stands
    whenever drafts are wanted:                  drafter.propose([Ask(row, budget=16, depth=5), ..]) -> [Tree, ..]
    when the row ends:                           drafter.forget(row)

`observe` takes over the states of the row's last pass along the path that became the answer; `answer` ends with the
token that the pass chose, which the target has not fed yet. Trees stand on that token. A tree is a proposal: whatever
it holds, the answer is the target's.

ExitDrafter    the target's own first blocks draft a chain, a few more of them judge it
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
from dataclasses import dataclass
from pathlib import Path

import torch

from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.eagle_drafter import EagleDrafter
from cascade_runtime.decoding.exit_drafter import ExitDrafter
from cascade_runtime.decoding.head_states import Ask, confirmed, held_of, log_probs
from cascade_runtime.decoding.row import Row
from cascade_runtime.decoding.trees.product import product_tree
from cascade_runtime.decoding.trees.tree import Tree
from cascade_runtime.models.eagle import load_eagle
from cascade_runtime.models.exits import load_exits
from cascade_runtime.models.head_folder import head_kind
from cascade_runtime.models.language import LanguageModel
from cascade_runtime.models.medusa import MedusaHeads, load_medusa


def load_drafter(folder: str | Path, decoder: Decoder, *, width: int = 4) -> MedusaDrafter | EagleDrafter | ExitDrafter:
    """The head of a folder beside this target, whose decoder keeps its states from now on. Raises `ConfigError`."""
    kind = head_kind(folder)
    if kind == "medusa":
        drafter: MedusaDrafter | EagleDrafter | ExitDrafter = MedusaDrafter(
            load_medusa(folder, decoder.language), decoder.language
        )
    elif kind == "exits":
        drafter = ExitDrafter(load_exits(folder, decoder.language), decoder)
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
        first, values = confirmed(row, answer)
        last = len(row.prompt) + len(answer) - 2 - first
        if answer and 0 <= last < len(values):
            self._heard[row.slot] = _Heard(row, list(answer), values[last])

    def forget(self, row: Row) -> None:
        """See `Drafter.forget`."""
        if held_of(self._heard, row) is not None:
            del self._heard[row.slot]

    @torch.inference_mode()
    def propose(self, asks: Sequence[Ask]) -> list[Tree]:
        """See `Drafter.propose`. No deeper than there are heads."""
        trees = [Tree() for _ in asks]
        found = [(i, held_of(self._heard, ask.row)) for i, ask in enumerate(asks) if ask.budget and ask.depth]
        live = [(i, heard) for i, heard in found if heard is not None]
        if not live:
            return trees
        states = self._heads(torch.stack([heard.state for _, heard in live]))
        count, depths = len(live), states.shape[1]
        rows = [heard.row for _, heard in live for _ in range(depths)]
        at = [len(heard.answer) + depth for _, heard in live for depth in range(depths)]
        found = log_probs(self._language.logits(states.flatten(0, 1)), [row.sampling for row in rows], at)
        most = min(max(asks[i].budget for i, _ in live), found.shape[-1])
        values, tokens = found.view(count, depths, -1).topk(most)
        for (i, _), row_values, row_tokens in zip(live, values.tolist(), tokens.tolist(), strict=True):
            choices = [
                [(token, value) for token, value in zip(*each, strict=True) if math.isfinite(value)]
                for each in zip(row_tokens, row_values, strict=True)
            ]
            trees[i] = product_tree(choices[: asks[i].depth], asks[i].budget, self._language.eos_token_ids)
        return trees
