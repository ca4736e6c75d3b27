"""`Sight`: what one drafting level sees of a video: all its patches, some, fewer made of them, or none (`Sees`).

    prompt (n, D), n = text + visual  ->  Sight.narrow  ->  prompt (m, D), m <= n, with the position ids it had

Whatever stays keeps the position id it had in the whole prompt, and what is made of several patches takes the one in
their middle. So the question and the answer stand where they always stand: drafters agree with their target more often
than with positions closed up (`python -m benchmarks.seeing` prints both), and M-RoPE's axes need no rule of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from cascade_runtime.config import Sees
from cascade_runtime.decoding.attention_scores import attention_scores, evenly, two_stages
from cascade_runtime.errors import FeatureSpaceError, InputError, PromptTooLong
from cascade_runtime.events.cell_counts import resampled
from cascade_runtime.models.compressor import OPTIONS, QUERIES, STRIDE, Compressor
from cascade_runtime.models.prompts import Prompt
from cascade_runtime.models.visual_layout import VisualLayout
from cascade_runtime.vision.features import VisualFeatures

Scores = Callable[[Prompt, torch.Tensor], torch.Tensor]
"""A prompt and its embeddings -> (n,) how much each position matters."""


@dataclass(frozen=True)
class Narrowed:
    """A prompt that shows less: embeds (m, D), positions (m,) or (3, m). visual_end: where its visual positions end, 0
    where there are none. name: equal for prompts that show equal parts of equal features.
    """

    embeds: torch.Tensor
    positions: torch.Tensor
    visual_end: int
    name: str


@dataclass(frozen=True)
class _Left:
    """Visual tokens (m, D), and whose place among the visual positions each has, ascending."""

    tokens: torch.Tensor
    places: torch.Tensor


class Sight:
    """One level's choice. scores: of "attention"; the level's own unless given. compressor: of what is learnt."""

    def __init__(
        self, sees: Sees, model: Any, *, compressor: Compressor | None = None, scores: Scores | None = None
    ) -> None:
        self.sees, self.model, self.compressor = sees, model, compressor
        self._scores = scores or self._own_scores

    @torch.inference_mode()
    def narrow(self, prompt: Prompt, embeds: torch.Tensor, features: VisualFeatures) -> Narrowed:
        """What is left of a whole prompt and its embeddings (n, D).

        Raises `FeatureSpaceError` where `features` do not say what the choice needs, `PromptTooLong` where a model
        cannot read the whole prompt that it has to score.
        """
        layout: VisualLayout = self.model.prompts.layout(features.frames, features.grid)
        if layout.total != prompt.num_visual:
            raise InputError("visual positions", prompt.num_visual, f"{layout.total}, all of them")
        start = int(prompt.visual_mask.int().argmax())
        stop = start + layout.total
        sees = self.sees
        if sees.method == "elastic":
            assert self.compressor is not None
            sees = Sees.parse(OPTIONS[self.compressor.choose(embeds[stop:])])
        visual = embeds[start:stop]
        if sees.method in ("text", "pool", "conv", "resampler"):
            left = self._made(sees, layout, visual)
        else:
            patches = layout.patches().flatten()
            chosen = patches[self._chosen(sees, layout, prompt, embeds, features)]
            left = _ordered(visual[chosen], chosen, visual, layout)
        places = left.places + start
        at = torch.cat([torch.arange(start), places, torch.arange(stop, len(prompt.input_ids))])
        return Narrowed(
            torch.cat([embeds[:start], left.tokens, embeds[stop:]]),
            prompt.position_ids[..., at],
            start + len(places) if len(places) else 0,
            f"{sees.method}:{left.places.tolist()}",
        )

    def _made(self, sees: Sees, layout: VisualLayout, visual: torch.Tensor) -> _Left:
        if sees.method == "text":
            return _Left(visual[:0], torch.zeros(0, dtype=torch.long))
        tokens, among = compress(sees, layout, visual[layout.patches().flatten()][None], self.compressor)
        return _ordered(tokens[0], among, visual, layout)

    def _chosen(
        self, sees: Sees, layout: VisualLayout, prompt: Prompt, embeds: torch.Tensor, features: VisualFeatures
    ) -> torch.Tensor:
        """Which patches stay, ascending."""
        patches = layout.patches().flatten()
        keep = sees.kept(len(patches))
        if sees.method == "uniform":
            return evenly(len(patches), keep)
        if sees.method == "events":
            return busiest(patch_events(features, layout), keep)
        start = int(prompt.visual_mask.int().argmax())
        return two_stages(self._scores(prompt, embeds).cpu()[start + patches], keep)

    def _own_scores(self, prompt: Prompt, embeds: torch.Tensor) -> torch.Tensor:
        language = self.model.language
        if len(embeds) > language.max_positions:
            raise PromptTooLong("prompt", len(embeds), f"at most {language.max_positions} positions")
        first = int(prompt.visual_mask.nonzero()[-1]) + 1
        return attention_scores(language, embeds, prompt.position_ids.to(embeds.device), first)


def compress(
    sees: Sees, layout: VisualLayout, patches_BnD: torch.Tensor, compressor: Compressor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fewer tokens made of a video's patches in order, (B, m, D), and whose place each takes (m,), for "pool", "conv"
    and "resampler".
    """
    patches = layout.patches()
    if sees.method == "pool":
        return _pooled(patches_BnD, patches, int(sees.count**0.5))
    assert compressor is not None  # the recipe asked for it
    count = patches.numel()
    if sees.method == "conv":
        middle = (torch.arange(0, count, STRIDE) + STRIDE // 2).clamp(max=count - 1)
        return compressor.conv(patches_BnD), patches.flatten()[middle]
    return compressor.resampler(patches_BnD), patches.flatten()[evenly(count, QUERIES)]


def _pooled(patches_BnD: torch.Tensor, patches: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Averages of side x side squares; at the edges of what is there."""
    h, w = patches.shape[1:]
    grids = patches_BnD.reshape(-1, h, w, patches_BnD.shape[2]).permute(0, 3, 1, 2)
    pooled = F.avg_pool2d(grids, side, ceil_mode=True, count_include_pad=False)
    rows, columns = ((torch.arange(0, length, side) + (side - 1) // 2).clamp(max=length - 1) for length in (h, w))
    places = patches[:, rows][:, :, columns].flatten()
    tokens = pooled.permute(0, 2, 3, 1).reshape(patches_BnD.shape[0], -1, patches_BnD.shape[2])
    return tokens, places


def _ordered(tokens: torch.Tensor, places: torch.Tensor, visual: torch.Tensor, layout: VisualLayout) -> _Left:
    """With the positions that show no patch, all in the order of their places."""
    others = layout.others()
    both = torch.cat([places, others])
    order = both.argsort(stable=True)
    return _Left(torch.cat([tokens, visual[others]])[order], both[order])


def busiest(counts: torch.Tensor, keep: int) -> torch.Tensor:
    """The `keep` patches with most events, ascending; of equal ones the earlier."""
    return counts.argsort(descending=True, stable=True)[:keep].sort().values


def patch_events(features: VisualFeatures, layout: VisualLayout) -> torch.Tensor:
    """(t * h * w,) events in each patch. Where a step of time holds several rendered frames, of all of them.

    Raises `FeatureSpaceError` for features that do not say where the events lie.
    """
    if features.density is None:
        raise FeatureSpaceError("features.density", None, "counts of events, which the event branch makes if asked")
    t, h, w = layout.grid
    counts = torch.from_numpy(resampled(features.density, h, w))
    step = torch.arange(len(counts)) // -(-len(counts) // t)
    return torch.zeros(t, h, w).index_add_(0, step, counts).flatten()
