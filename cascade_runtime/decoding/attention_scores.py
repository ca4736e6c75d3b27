"""How much attention the text of a prompt pays each of its visual positions, in one model.

Verifier-guided pruning (SpecVLM, arXiv 2508.16201) scores a visual token by the mean of its attention over layers,
heads and the queries of the text after it, and keeps in two stages: the smallest set that holds 40 % of the mass, then
tokens evenly spaced over the rest. The published system reads the target's attention. A drafter here begins before the
target has seen anything, so it reads its own, which costs one prefill of the whole prompt in slots of their own.
"""

from __future__ import annotations

import torch

from cascade_runtime.models.language import LanguageModel
from cascade_runtime.models.slot_cache import SlotCache

MASS = 0.4


class _Watched(SlotCache):
    """One slot that adds up what the queries from position `first` on pay each position."""

    def watch(self, first: int, length: int) -> None:
        """Begin a prompt of so many positions."""
        self._first, self._length = first, length
        self.paid = torch.zeros(length, device=self.held[0].device)

    def attend(self, layer: int, mixed: torch.Tensor) -> torch.Tensor:
        """As always, and the scores beside."""
        found = super().attend(layer, mixed)
        shared, end = self.heads // self.kv_heads, self.heads * self.head_dim
        queries = mixed[self._first :, :end].float().view(-1, self.kv_heads, shared, self.head_dim)
        keys = self.held[layer][0, : self._length, 0].float()
        scores = torch.einsum("qksd,nkd->ksqn", queries, keys) / self.head_dim**0.5
        at = torch.arange(self._length, device=scores.device)
        scores = scores.masked_fill(at > at[self._first :, None], -torch.inf)
        self.paid += scores.softmax(-1).mean((0, 1, 2))
        return found


def attention_scores(
    language: LanguageModel, embeds: torch.Tensor, positions: torch.Tensor, first: int
) -> torch.Tensor:
    """(n,) float32: for each of a prompt's n positions, the mean over layers, heads and the positions from `first` on
    of the attention paid to it. embeds (n, D), positions (n,) or (3, n). Costs a prefill.
    """
    length = embeds.shape[0]
    cache = language.new_cache(1, length, _Watched)
    cache.watch(first, length)
    language.forward(embeds, slots=[0], starts=[0], counts=[length], positions=positions, cache=cache)
    return cache.paid / language.num_layers


def two_stages(scores: torch.Tensor, keep: int) -> torch.Tensor:
    """The `keep` of n scored tokens that stay, ascending: the fewest that hold `MASS` of all scores, then as many as
    are left to keep, evenly spaced over the others.
    """
    order = scores.argsort(descending=True, stable=True)
    held = scores[order].cumsum(0) / scores.sum()
    first = order[: min(keep, int((held < MASS).sum()) + 1)]
    rest = torch.ones(len(scores), dtype=torch.bool)
    rest[first] = False
    others = rest.nonzero().flatten()
    return torch.cat([first, others[evenly(len(others), keep - len(first))]]).sort().values


def evenly(total: int, keep: int) -> torch.Tensor:
    """`keep` of 0 .. total - 1, evenly spaced, each the middle of its share."""
    return ((torch.arange(keep) * 2 + 1) * total).div(2 * max(keep, 1), rounding_mode="floor")
