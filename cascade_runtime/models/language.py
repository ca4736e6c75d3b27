"""One text model as every language stage uses it: embeddings in, hidden states out, keys and values in slots.

The unchanged layers of the library (of Qwen2Model, LlamaModel, Qwen2VLTextModel) do the arithmetic. They are run one
after the other here, since what those models' own `forward` does around them (masks, recorded outputs, defaults) is
known here already and costs a small model dearly. This wrapper fixes what callers must never infer from a cache's
width: explicit position ids, an explicit mask, and logits cut to the tokenizer's length (the rows of `lm_head` differ
inside one family: 152000 for OneVision 0.5B, 152128 for 7B and 72B).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from cascade_runtime.errors import ConfigError, InputError
from cascade_runtime.models.slot_cache import SlotCache


class LanguageModel:
    """A decoder, its head, and the facts about it that a cascade needs.

    Shapes: B rows, q query positions, D hidden size, V = `vocab_size`.
    """

    def __init__(
        self,
        decoder: Any,
        lm_head: Any,
        *,
        vocab_size: int,
        family: str,
        eos_token_ids: tuple[int, ...],
        position_axes: int = 1,
        max_positions: int = 32768,
    ) -> None:
        config = decoder.config
        rows = lm_head.weight.shape[0]
        if not 1 <= vocab_size <= rows:
            raise ConfigError("vocab_size", vocab_size, f"1..{rows}, the rows of lm_head")
        if position_axes not in (1, 3):
            raise ConfigError("position_axes", position_axes, "1 (text positions) or 3 (M-RoPE)")
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise ConfigError(
                "layer_types", sorted(kinds), "full_attention: a sliding window cannot be rolled back in slots"
            )
        self.decoder = decoder.eval()
        self.lm_head = lm_head
        self.vocab_size = vocab_size
        self.family = family
        self.eos_token_ids = eos_token_ids
        self.position_axes = position_axes
        self.max_positions = max_positions
        self.num_layers: int = config.num_hidden_layers
        self.hidden_size: int = config.hidden_size
        self.kv_heads: int = config.num_key_value_heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._head_weight = lm_head.weight[:vocab_size]
        self._head_bias = None if getattr(lm_head, "bias", None) is None else lm_head.bias[:vocab_size]

    @property
    def device(self) -> torch.device:
        return self._head_weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._head_weight.dtype

    @property
    def weight_bytes(self) -> int:
        """Bytes of decoder and head, tied weights counted once."""
        tensors = {p.data_ptr(): p for m in (self.decoder, self.lm_head) for p in m.parameters()}
        return sum(p.numel() * p.element_size() for p in tensors.values())

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.kv_heads * self.head_dim * self._head_weight.element_size()

    def new_cache(self, slots: int, max_len: int) -> SlotCache:
        """A cache of `slots` rows of at most `max_len` positions for this model."""
        if max_len > self.max_positions:
            raise ConfigError("max_len", max_len, f"at most {self.max_positions}, the positions this model knows")
        return SlotCache(
            layers=self.num_layers,
            slots=slots,
            max_len=max_len,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            device=self.device,
        )

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Token ids (...,) to embeddings (..., D). Raises InputError for an id outside the tokenizer."""
        if token_ids.numel():
            least, most = (int(bound) for bound in torch.aminmax(token_ids))  # before they move: waits for no device
            if least < 0 or most >= self.vocab_size:
                raise InputError("token_ids", [least, most], f"0..{self.vocab_size - 1}")
        return self.decoder.embed_tokens(token_ids.to(self.device))

    @torch.inference_mode()
    def forward(
        self,
        embeds_BqD: torch.Tensor,
        *,
        slots: Sequence[int],
        starts: Sequence[int],
        counts: Sequence[int],
        positions: torch.Tensor,
        cache: SlotCache,
    ) -> torch.Tensor:
        """Append each row's tokens to its slot; return hidden states (B, q, D), garbage beyond `counts`.

        positions: (B, q) for one axis, (3, B, q) for M-RoPE; always explicit, since a model may keep offsets of its
        own.
        """
        mask = cache.place(slots, starts, counts, embeds_BqD.shape[1])
        rotary = self.decoder.rotary_emb(embeds_BqD, positions)
        hidden = embeds_BqD
        for layer in self.decoder.layers:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary, past_key_values=cache)
        return self.decoder.norm(hidden)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (..., D) to float32 logits (..., V), V the tokenizer's length whatever the head's rows."""
        return F.linear(hidden, self._head_weight, self._head_bias).float()
