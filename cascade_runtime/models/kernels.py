"""A decoder block for a few tokens on a GPU, as eight Triton kernels: what follows a product is part of it.

    query_key_value    a product, rotary turn, keys and values straight into their slots (Su et al. 2021, eq. 34)
    Attention          over slots where they lie, in parts that run at once and are then put together
                       (Dao et al. 2023, "Flash-Decoding")
    product            x @ W.T + bias, gated where asked for
    sums               a product in parts that run at once,
    added              which this adds to the residual, with the norm of it (Zhang and Sennrich 2019, eq. 4)

A pass of few tokens is bound by reading weights and keys once, so every kernel streams them through and holds all
tokens of the pass.

**A token's numbers do not depend on what else is in the pass.** The order of each sum depends on sizes alone: products
are cut by their shape, attention into parts of `_PART` keys at fixed places. So a pass that verifies eight drafts
computes, bit for bit, what eight passes of one token would have, in bfloat16 too. (A node of a tree lies elsewhere in
its slot than it would in a chain; its sums are cut elsewhere.)

Lengths and slots are read from device memory, so that one captured launch serves every later pass of its shape. Shapes:
B rows of T tokens each, N = B T, H heads, K heads for keys and values, d head size, D hidden size. Sums are float32,
results rounded to the tensors' type. Triton comes with PyTorch's CUDA builds; nothing on a CPU imports this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from cascade_runtime.models import device_code
from cascade_runtime.models.linear import Linear
from cascade_runtime.models.norm import RmsNorm
from cascade_runtime.models.slot_cache import SlotCache

_DEVICE: Any = device_code  # a kernel is called with its grid and with options that are no parameters of it

MAX_TOKENS = 128  # of a pass: what one program holds
_QUERIES = 128  # of one key head: what one program holds
_KEYS, _PART = 64, 128  # keys looked at in one step, and by one program
_CUT = 128  # inputs: a product is cut at multiples of this
_SHARED_BYTES = 110_000  # of a program: two fit a multiprocessor


def _power_of_2(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _ceil(number: int, step: int) -> int:
    return -(-number // step)


@dataclass(frozen=True)
class Places:
    """Where the rows of a pass live, on the device. slots, starts, counts: (B,); a row with count 0 is padding.
    positions: (N,), T for every row; tokens beyond a row's count are padding. origins (B,), sees (N,): what nodes of a
    tree see, as `Branches` has it; the origin of a chain is beyond its slot.
    """

    slots: torch.Tensor
    starts: torch.Tensor
    counts: torch.Tensor
    positions: torch.Tensor
    origins: torch.Tensor
    sees: torch.Tensor

    @property
    def tokens(self) -> int:
        """T."""
        return len(self.positions) // len(self.slots)


@dataclass(frozen=True)
class Blocks:
    """How a product is spread over programs: outputs of each, inputs in a step, parts of the inputs, warps, steps in
    flight. `python -m benchmarks.gpu.tune` shows what others would bring.
    """

    outputs: int
    inputs: int
    parts: int
    warps: int
    stages: int

    @classmethod
    def of(cls, outputs: int, inputs: int, *, gated: bool = False, cut: bool = False) -> Blocks:
        """By the shape of the weight alone."""
        if cut:
            return cls(64, 128, max(1, min(8, (1 << 15) // outputs, inputs // _CUT)), 4, 4)
        if outputs < 1 << 13 and not gated:
            return cls(16, 128, 1, 2, 6)
        if gated:
            return cls(32, 128, 1, 2, 4 if outputs < 1 << 13 else 2)
        return cls(32, 128, 1, 2, 4) if outputs < 1 << 14 else cls(64, 128, 1, 4, 3)

    def share(self, inputs: int) -> int:
        """Inputs of a part."""
        return inputs if self.parts == 1 else _ceil(_ceil(inputs, self.parts), _CUT) * _CUT

    def constants(self, inputs: int, tokens: int, *, size: int, gated: bool = False) -> dict[str, Any]:
        """What a kernel is compiled for, with so many tokens of `size` bytes a number."""
        held = max(16, _power_of_2(tokens))
        width, step = (self.outputs * (2 if gated else 1) + held) * size, self.inputs
        while step > 64 and 3 * width * step > _SHARED_BYTES:
            step //= 2
        stages = max(2, min(self.stages, _SHARED_BYTES // (width * step)))
        sizes = {"OUT": self.outputs, "IN": step, "TOKENS": held, "EVEN": inputs % step == 0}
        return sizes | {"num_warps": self.warps, "num_stages": stages}


def product(
    x: torch.Tensor,
    linear: Linear,
    *,
    gated: bool = False,
    dtype: torch.dtype | None = None,
    blocks: Blocks | None = None,
) -> torch.Tensor:
    """x @ W.T + bias for x (N, in) -> (N, out), of `dtype` or that of x.

    gated: W is a gate's weights and then as many others, and the result silu(gate) * other, (N, out / 2).
    """
    outputs = linear.weight.shape[0] // (2 if gated else 1)
    out = torch.empty(1, len(x), outputs, dtype=dtype or x.dtype, device=x.device)
    return _multiplied(x, linear, out, blocks or Blocks.of(outputs, x.shape[1], gated=gated), gated=gated)[0]


def sums(x: torch.Tensor, linear: Linear, blocks: Blocks | None = None) -> torch.Tensor:
    """x @ W.T + bias in parts that are still to be added, float32 (parts, N, out)."""
    outputs = linear.weight.shape[0]
    blocks = blocks or Blocks.of(outputs, x.shape[1], cut=True)
    parts = _ceil(x.shape[1], blocks.share(x.shape[1]))
    out = torch.empty(parts, len(x), outputs, dtype=torch.float32, device=x.device)
    return _multiplied(x, linear, out, blocks, gated=False)


def _multiplied(x: torch.Tensor, linear: Linear, out: torch.Tensor, blocks: Blocks, *, gated: bool) -> torch.Tensor:
    (parts, count, outputs), inputs = out.shape, x.shape[1]
    _DEVICE.product[(_ceil(outputs, blocks.outputs), parts)](
        *(x, linear.weight, x if linear.bias is None else linear.bias, out),
        *(count, outputs, inputs, blocks.share(inputs)),
        BIASED=linear.bias is not None,
        GATED=gated,
        **blocks.constants(inputs, count, size=x.element_size(), gated=gated),
    )
    return out


def added(hidden: torch.Tensor, parts: torch.Tensor | None, norm: RmsNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """(hidden + all parts of a product, the norm of that), both (N, D)."""
    normed, block = torch.empty_like(hidden), _power_of_2(hidden.shape[1])
    out = hidden if parts is None else torch.empty_like(hidden)
    _DEVICE.added[(len(hidden),)](
        *(hidden, hidden if parts is None else parts, norm.weight, out, normed, len(hidden), hidden.shape[1]),
        norm.epsilon,
        PARTS=0 if parts is None else len(parts),
        BLOCK=block,
        num_warps=min(16, max(1, block // 256)),
    )
    return out, normed


def query_key_value(
    x: torch.Tensor, linear: Linear, turns: torch.Tensor, places: Places, cache: SlotCache, layer: int
) -> torch.Tensor:
    """Rotated queries (N, H d) of x; rotated keys, and values, of real tokens are written to the rows' slots.

    W: queries, keys and values, (H + 2 K) d, pairs that are rotated together side by side. turns: (positions, d / 2, 2)
    float32, cosine and sine.
    """
    outputs, queries = linear.weight.shape[0], cache.heads * cache.head_dim
    out = torch.empty(len(x), queries, dtype=x.dtype, device=x.device)
    blocks = Blocks.of(outputs, x.shape[1])
    _DEVICE.query_key_value[(_ceil(outputs, blocks.outputs),)](
        *(x, linear.weight, x if linear.bias is None else linear.bias, turns, out, cache.held[layer]),
        *(places.positions, places.slots, places.starts, places.counts),
        *(len(x), outputs, x.shape[1], places.tokens, cache.max_len),
        *(queries, queries + cache.kv_heads * cache.head_dim, cache.head_dim),
        BIASED=linear.bias is not None,
        **blocks.constants(x.shape[1], len(x), size=x.element_size()),
    )
    return out


class Attention:
    """Attention of passes of B rows and T tokens: its launches. What parts find lies in memory that passes share."""

    def __init__(self, cache: SlotCache, rows: int, tokens: int) -> None:
        self._shared = cache.heads // cache.kv_heads
        self._queries = min(_QUERIES, max(16, _power_of_2(tokens * self._shared)))
        self._blocks = _ceil(tokens * self._shared, self._queries)
        self._parts = _ceil(cache.max_len, _PART)
        self._shape = (rows, cache.kv_heads, self._parts, self._blocks * self._queries)

    def __call__(self, queries: torch.Tensor, places: Places, cache: SlotCache, layer: int) -> torch.Tensor:
        """What each token attends to, (N, H d); padding tokens give numbers without meaning."""
        size, out = cache.head_dim, torch.empty_like(queries)
        parts = torch.empty(*self._shape, size, dtype=torch.float32, device=queries.device)
        norms = torch.empty(*self._shape, 2, dtype=torch.float32, device=queries.device)  # largest score, sum of exps
        sizes = {"SHARED": self._shared, "SIZE": size, "BLOCK": _power_of_2(size), "TOTAL": self._shape[-1]}
        _DEVICE.attend[(len(places.slots), cache.kv_heads, self._parts * self._blocks)](
            *(queries, cache.held[layer], parts, norms, places.slots, places.starts, places.counts),
            *(places.origins, places.sees),
            *(places.tokens, cache.max_len, cache.kv_heads, self._parts, size**-0.5),
            **sizes,
            QUERIES=self._queries,
            KEYS=_KEYS,
            PART=_PART,
            num_warps=4 if self._queries <= 64 else 8,
        )
        _DEVICE.put_together[(len(queries), cache.heads)](
            *(parts, norms, out, places.starts, places.counts, places.tokens, cache.kv_heads, self._parts),
            **sizes,
            PART=_PART,
            PARTS=_power_of_2(self._parts),
            num_warps=2,
        )
        return out
