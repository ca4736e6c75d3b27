"""One text model as every language stage uses it: embeddings in, hidden states out, keys and values in slots.

A pass is packed: the tokens of all its rows lie one after the other, (N, D), and no product is spent on padding. The
layers are `Block`s, made of the library's own layers (Qwen2Model, LlamaModel, Qwen2VLTextModel), whose embedding,
rotary frequencies and last norm are used as they are. This wrapper fixes what callers must never infer from a
cache's width: explicit position ids, an explicit mask, and logits cut to the tokenizer's length (the rows of
`lm_head` differ inside one family: 152000 for OneVision 0.5B, 152128 for 7B and 72B).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from cascade_runtime.errors import ConfigError, InputError
from cascade_runtime.models.block import Block
from cascade_runtime.models.linear import Linear
from cascade_runtime.models.norm import RmsNorm
from cascade_runtime.models.room import check_room
from cascade_runtime.models.slot_cache import Branches, SlotCache

Cache = TypeVar("Cache", bound=SlotCache)


class LanguageModel:
    """A decoder, its head, and the facts about it that a cascade needs. It takes the decoder's layers over: they are
    gone from it afterwards, and their weights are held once.

    Shapes: N tokens of a pass, D hidden size, V = `vocab_size`.
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
        rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        if rope in ("dynamic", "longrope"):
            raise ConfigError(
                "rope_type", rope, "frequencies that do not depend on a row's length, which is rolled back"
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
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = {"heads": self.heads, "kv_heads": self.kv_heads, "head_dim": self.head_dim}
        self.blocks: list[Block] = []
        for index, layer in enumerate(decoder.layers):  # one after the other, so that no more than one is held twice
            self.blocks.append(Block(layer, index, **shape))
            decoder.layers[index] = nn.Identity()
        decoder.layers = nn.ModuleList()
        self.norm = RmsNorm(decoder.norm)
        bias = getattr(lm_head, "bias", None)
        self.head = Linear(lm_head.weight.detach()[:vocab_size], None if bias is None else bias.detach()[:vocab_size])
        self._turns = torch.zeros(0, 1, self.head_dim // 2, dtype=torch.complex64, device=self.device)

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Where its layers are, in order; several for a model that is split."""
        return tuple(dict.fromkeys(block.device for block in self.blocks))

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype

    @property
    def weight_bytes(self) -> int:
        """Bytes of decoder and head, tied weights counted once."""
        tensors = {p.data_ptr(): p for m in (self.decoder, self.lm_head) for p in m.parameters()}
        return sum(p.numel() * p.element_size() for p in tensors.values()) + sum(block.nbytes for block in self.blocks)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name within the library's decoder, tensor), all of them."""
        yield from self.decoder.state_dict().items()
        for block in self.blocks:
            for name, tensor in block.named_weights():
                yield f"layers.{block.index}.{name}", tensor

    @property
    def turns(self) -> torch.Tensor:
        """Cosine and sine of all text positions of the longest cache, float32 (positions, d / 2, 2)."""
        return torch.view_as_real(self._turns)[:, 0]

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.kv_heads * self.head_dim * self.lm_head.weight.element_size()

    def new_cache(self, slots: int, max_len: int, kind: type[Cache] = SlotCache) -> Cache:
        """A cache of `slots` rows of at most `max_len` positions for this model."""
        for device in self.devices:
            layers = sum(block.device == device for block in self.blocks)
            check_room("cascade.slots", slots * max_len * self.kv_bytes_per_token * layers // self.num_layers, device)
        self.reach(max_len)
        return kind(
            layers=self.num_layers,
            slots=slots,
            max_len=max_len,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            device=[block.device for block in self.blocks],
        )

    def reach(self, positions: int) -> None:
        """Be ready for position ids below this. Raises ConfigError for more than the model knows."""
        if positions > self.max_positions:
            raise ConfigError("max_len", positions, f"at most {self.max_positions}, the positions this model knows")
        if len(self._turns) < positions:
            at = torch.arange(positions, device=self.device)[None]
            self._turns = self._rotary(at if self.position_axes == 1 else at.expand(self.position_axes, 1, -1))

    def check(self, token_ids: Sequence[int]) -> None:
        """Raise InputError for an id outside the tokenizer."""
        if token_ids and (min(token_ids) < 0 or max(token_ids) >= self.vocab_size):
            raise InputError("token_ids", [min(token_ids), max(token_ids)], f"0..{self.vocab_size - 1}")

    def embed(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Token ids to embeddings (N, D). Raises InputError as `check` does."""
        self.check(token_ids)
        return F.embedding(torch.tensor(token_ids, device=self.device), self.decoder.embed_tokens.weight)

    @torch.inference_mode()
    def forward(
        self,
        embeds_ND: torch.Tensor,
        *,
        slots: Sequence[int],
        starts: Sequence[int],
        counts: Sequence[int],
        positions: torch.Tensor,
        cache: SlotCache,
        groups: Sequence[int] | None = None,
        branches: Sequence[Branches | None] | None = None,
        keep: dict[int, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Append each row's tokens, row after row in `embeds_ND`, to its slot; return hidden states (N, D).

        positions: (N,) for one axis, (3, N) for M-RoPE; always explicit, since a model may keep offsets of its own.
        groups, branches: see `SlotCache.place`. keep: filled with what each block puts out (N, D), by its index.
        """
        cache.place(slots, starts, counts, groups, branches)
        hidden = self._passed(embeds_ND, self.blocks, self._turned(positions), cache, keep)
        return self.norm(moved(hidden, self.device))

    @torch.inference_mode()
    def through(
        self,
        hidden_ND: torch.Tensor,
        blocks: range,
        *,
        slots: Sequence[int],
        starts: Sequence[int],
        counts: Sequence[int],
        positions: torch.Tensor,
        cache: SlotCache,
    ) -> torch.Tensor:
        """As `forward`, through these blocks alone: what the last of them puts out, not normed."""
        cache.place(slots, starts, counts)
        chosen = self.blocks[blocks.start : blocks.stop]
        return moved(self._passed(hidden_ND, chosen, self._turned(positions), cache), self.device)

    def _passed(
        self,
        hidden: torch.Tensor,
        blocks: Sequence[Block],
        turns: torch.Tensor,
        cache: SlotCache,
        keep: dict[int, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        for block in blocks:
            if hidden.device != block.device:  # a model that is split by layers
                hidden, turns = moved(hidden, block.device), moved(turns, block.device)
            hidden = block(hidden, turns, cache)
            if keep is not None:
                keep[block.index] = hidden
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (N, D) to float32 logits (N, V), V the tokenizer's length whatever the head's rows."""
        return self.head(hidden).float()

    def _turned(self, positions: torch.Tensor) -> torch.Tensor:
        """cos + i sin of each token's position as the library's rotary embedding gives them, (N, 1, d / 2) complex."""
        if self.position_axes == 1:
            return self._turns.index_select(0, positions)
        return self._rotary(positions[:, None])

    def _rotary(self, positions: torch.Tensor) -> torch.Tensor:
        exact = torch.zeros(0, device=self.device)  # the library rounds to the type of what it is given
        cos, sin = self.decoder.rotary_emb(exact, positions)
        half = self.head_dim // 2
        return torch.complex(cos[0, :, :half].float(), sin[0, :, :half].float())[:, None]


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device, itself where it is there already."""
    return tensor if tensor.device == device else tensor.to(device)
