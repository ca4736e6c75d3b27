"""Preallocated key-value slots: a row is a slot number and a length, and rollback is lowering the length.

Layout per layer: keys and values of shape (slots, kv_heads, max_len + 1, head_dim). A forward pass over B rows first
calls `place`, which says for every row in which slot it lives, where its new tokens go and how many of them are real;
every layer's `update` then scatters the new keys and values and hands back the keys and values of those slots up to
the longest row: a view where the slots are neighbours in ascending order, a copy otherwise. What lies beyond a row's
length is left-over of earlier use: the mask "key position <= query position" hides it, and it is overwritten when the
row grows. Padding of ragged rows is written to the one scratch position `max_len`.

This is a `transformers` Cache so that the unchanged text models of the library write into it. It knows nothing of
requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache

from cascade_runtime.errors import ConfigError, InputError


class SlotCache(Cache):
    """Keys and values of `slots` rows of at most `max_len` positions each, for every layer of one text model."""

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        max_len: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        for field, value in (("layers", layers), ("slots", slots), ("max_len", max_len)):
            if value < 1:
                raise ConfigError(field, value, "an integer >= 1")
        super().__init__(layers=[])
        shape = (slots, kv_heads, max_len + 1, head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.slots = slots
        self.max_len = max_len
        self._head_at = torch.arange(slots * kv_heads, device=device).view(slots, kv_heads) * (max_len + 1)
        # What `place` says of the next pass. Positions in `_write_at` are counted over slots, heads and positions.
        self._width = 0
        self._rows: slice | torch.Tensor = slice(0, 0)
        self._write_at = torch.zeros(0, dtype=torch.long)

    @property
    def nbytes(self) -> int:
        """Bytes held by keys and values together."""
        return 2 * sum(k.numel() * k.element_size() for k in self.keys)

    def place(
        self, slots: Sequence[int], starts: Sequence[int], counts: Sequence[int], query_length: int
    ) -> torch.Tensor | None:
        """Say where the next forward pass writes, and return its attention mask.

        slots, starts, counts: per row, its slot, its length before the pass, and its real tokens (1..query_length).
        Returns what attention adds to its scores, (B, 1, query_length, width) of the cache's dtype, width = longest row
        after the pass: 0 where the query may look, -inf where not (of a bool mask torch makes the same in every layer).
        None where each row has one query and that sees all of `width`.
        Raises InputError where a row would outgrow its slot or two rows share one.
        """
        if len(set(slots)) != len(slots):
            raise InputError("slots", list(slots), "a different slot for every row")
        for slot, start, count in zip(slots, starts, counts, strict=True):
            if not 0 <= slot < self.slots:
                raise InputError("slot", slot, f"0..{self.slots - 1}")
            if start < 0 or not 1 <= count <= query_length or start + count > self.max_len:
                raise InputError(
                    "row end", start + count, f"start >= 0, 1..{query_length} tokens, at most {self.max_len} positions"
                )
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        run, device = range(slots[0], slots[0] + len(slots)), self.keys[0].device
        self._width = max(ends)
        self._rows = slice(run.start, run.stop) if list(slots) == list(run) else torch.tensor(slots, device=device)
        query_at = torch.tensor(
            [
                [*range(start, end), *[self.max_len] * (query_length - count)]
                for start, end, count in zip(starts, ends, counts, strict=True)
            ],
            device=device,
        )
        self._write_at = (self._head_at[self._rows][:, None] + query_at[:, :, None]).flatten()
        if query_length == 1 and min(ends) == self._width:
            return None
        hidden = (torch.arange(self._width, device=device) > query_at[:, :, None])[:, None]
        return torch.zeros_like(hidden, dtype=self.keys[0].dtype).masked_fill_(hidden, -torch.inf)

    def update(  # type: ignore[override]
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scatter (B, kv_heads, q, head_dim) where `place` said; return the rows' keys and values up to that width."""
        return self._write(self.keys[layer_idx], key_states), self._write(self.values[layer_idx], value_states)

    def _write(self, held: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        held.view(-1, held.shape[-1]).index_copy_(0, self._write_at, states.transpose(1, 2).flatten(0, 2))
        if isinstance(self._rows, slice):
            return held[self._rows, :, : self._width]
        return held[:, :, : self._width].index_select(0, self._rows)

    def scrub(self, slot: int) -> None:
        """Zero one slot.

        Needed only after non-finite numbers were written: a masked NaN value still spoils a weighted sum.
        """
        for tensor in (*self.keys, *self.values):
            tensor[slot].zero_()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions the last placed pass can see (the library asks; rows keep their own lengths)."""
        return self._width

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return self.max_len
