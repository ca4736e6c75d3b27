"""Medusa's heads (Cai et al. 2024): k small networks on the target's last hidden state, each of which guesses one
token further ahead.

    f_t (after the last norm) -> f_t + silu(W_i f_t + b_i) -> the target's own lm_head -> token t + 1 + i,  i = 1 .. k

The target's head itself gives token t + 1. Each guess knows the place, not the guesses before it: one call drafts all
of them, and the further ahead, the less they are worth. `lm_head` is the target's, frozen.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from cascade_runtime.models.head_folder import check_settings, load_plain, save_head
from cascade_runtime.models.language import LanguageModel

_LIMITS = {"hidden_size": 65536, "vocab_size": 1 << 20, "heads": 16}


class MedusaHeads(nn.Module):
    """k heads of width D. Untrained ones all guess what the target's head says."""

    def __init__(self, *, hidden_size: int, vocab_size: int, heads: int) -> None:
        super().__init__()
        self.settings = {"hidden_size": hidden_size, "vocab_size": vocab_size, "heads": heads}
        check_settings(self.settings, _LIMITS)
        self.heads = heads
        self.weight = nn.Parameter(torch.zeros(heads, hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.zeros(heads, hidden_size))

    def forward(self, states_ND: torch.Tensor) -> torch.Tensor:
        """The target's states (N, D) to what its head reads for 2 .. k + 1 tokens ahead, (N, k, D)."""
        moved = torch.einsum("nd,ked->nke", states_ND, self.weight) + self.bias
        return states_ND[:, None] + F.silu(moved)


def save_medusa(heads: MedusaHeads, path: str | Path) -> None:
    """Write a folder that `load_medusa` reads."""
    save_head(path, "medusa", heads.settings, heads)


def load_medusa(path: str | Path, language: LanguageModel) -> MedusaHeads:
    """Heads for this target. Raises ConfigError naming what is wrong with the folder, or where they do not fit."""
    return load_plain(path, "medusa", _LIMITS, MedusaHeads, language)
