"""A training model's hidden states over packed lessons: of every block, at the positions where answers are chosen."""

from __future__ import annotations

from typing import Any

import torch

from cascade_runtime.training.language import IGNORED, Packed, Packer, embedded


def layer_states(model: Any, packed: Packed, raw: torch.Tensor, packer: Packer) -> tuple[torch.Tensor, ...]:
    """(B, L, D) before the first block and after each; the last one is normed."""
    return model.model.language_model(
        inputs_embeds=embedded(model, packed, raw, packer),
        attention_mask=packed.mask(),
        position_ids=packed.positions,
        use_cache=False,
        output_hidden_states=True,
    ).hidden_states


def answer_states(model: Any, packed: Packed, raw: torch.Tensor, packer: Packer) -> list[torch.Tensor]:
    """The same at answer positions only: (A, D) each, row after row."""
    chosen = packed.targets != IGNORED
    return [states[chosen] for states in layer_states(model, packed, raw, packer)]


def log_probs(model: Any, last_AD: torch.Tensor, packer: Packer) -> torch.Tensor:
    """Log-probabilities (A, V) of a last hidden state, V the tokenizer's entries: a head may have more rows."""
    return model.lm_head(last_AD)[..., : packer.tokenizer.get_vocab_size()].log_softmax(-1)
