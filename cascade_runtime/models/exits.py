"""Early exits of a target: what its first blocks would say next, read by a small product of their own.

    block 1 .. draft_layers .. middle_layers .. the last
                    |               |
                 exit 0          exit 1       norm, + one gate of SiLU (D -> I -> D), the target's own lm_head

HiSpec (arXiv 2510.01336) drafts at an eighth of the depth and checks at a quarter. It takes targets that were trained
to be left early; here the target stays as it is, and the exits learn to read it.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from cascade_runtime.errors import ConfigError
from cascade_runtime.models.head_folder import check_settings, load_plain, save_head
from cascade_runtime.models.language import LanguageModel
from cascade_runtime.models.library import library_class

_LIMITS = {
    "hidden_size": 65536,
    "vocab_size": 1 << 20,
    "intermediate_size": 1 << 18,
    "draft_layers": 1024,
    "middle_layers": 1024,
}
_EPSILON = 1e-6


def exit_layers(layers: int) -> tuple[int, int]:
    """How many of a target's blocks each exit lies behind: an eighth and a quarter, rounded up."""
    draft = math.ceil(layers / 8)
    return draft, max(draft + 1, math.ceil(layers / 4))


class ExitHeads(nn.Module):
    """Two exits of width D. Untrained ones say what the target's head reads in the state, once that is normed."""

    def __init__(
        self, *, hidden_size: int, vocab_size: int, intermediate_size: int, draft_layers: int, middle_layers: int
    ) -> None:
        super().__init__()
        self.settings = {
            "hidden_size": hidden_size,
            "vocab_size": vocab_size,
            "intermediate_size": intermediate_size,
            "draft_layers": draft_layers,
            "middle_layers": middle_layers,
        }
        check_settings(self.settings, _LIMITS)
        if draft_layers >= middle_layers:
            raise ConfigError("draft_layers", draft_layers, f"fewer than middle_layers, {middle_layers}")
        self.layers = (draft_layers, middle_layers)
        self.blocks = (draft_layers - 1, middle_layers - 1)  # whose outputs are read
        norm = library_class("llama.modeling_llama:LlamaRMSNorm")
        self.norms: nn.ModuleList = nn.ModuleList(norm(hidden_size, eps=_EPSILON) for _ in range(2))
        self.ups: nn.ModuleList = nn.ModuleList(nn.Linear(hidden_size, intermediate_size) for _ in range(2))
        downs = [nn.Linear(intermediate_size, hidden_size, bias=False) for _ in range(2)]
        for down in downs:
            nn.init.zeros_(down.weight)
        self.downs: nn.ModuleList = nn.ModuleList(downs)

    def read(self, number: int, states: torch.Tensor) -> torch.Tensor:
        """States (.., D) behind the blocks of this exit, as lm_head reads them."""
        normed = self.norms[number](states)
        return normed + self.downs[number](F.silu(self.ups[number](normed)))


def save_exits(exits: ExitHeads, path: str | Path) -> None:
    """Write a folder that `load_exits` reads."""
    save_head(path, "exits", exits.settings, exits)


def load_exits(path: str | Path, language: LanguageModel) -> ExitHeads:
    """Exits of this target. Raises ConfigError naming what is wrong with the folder, or where they do not fit."""
    exits: ExitHeads = load_plain(path, "exits", _LIMITS, ExitHeads, language)
    if exits.layers[1] >= language.num_layers:
        raise ConfigError("middle_layers", exits.layers[1], f"fewer than the target's {language.num_layers}")
    return exits
