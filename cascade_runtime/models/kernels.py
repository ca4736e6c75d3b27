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
computes, bit for bit, what eight passes of one token would have, in bfloat16 too.

Lengths and slots are read from device memory, so that one captured launch serves every later pass of its shape. Shapes:
B rows of T tokens each, N = B T, H heads, K heads for keys and values, d head size, D hidden size. Sums are float32,
results rounded to the tensors' type. Triton comes with PyTorch's CUDA builds; nothing on a CPU imports this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from cascade_runtime.models.linear import Linear
from cascade_runtime.models.norm import RmsNorm
from cascade_runtime.models.slot_cache import SlotCache

MAX_TOKENS = 128  # of a pass: what one program holds
MAX_QUERIES = 128  # of one key head: what one program holds
_KEYS, _PART = 64, 128  # keys looked at in one step, and by one program
_CUT = 128  # inputs: a product is cut at multiples of this
_SHARED_BYTES = 110_000  # of a program: two fit a multiprocessor
_VARY = ("count", "tokens")  # numbers that no kernel is compiled anew for


@dataclass(frozen=True)
class Places:
    """Where the rows of a pass live, on the device. slots, starts, counts: (B,); a row with count 0 is padding.
    positions: (N,), T for every row; tokens beyond a row's count are padding.
    """

    slots: torch.Tensor
    starts: torch.Tensor
    counts: torch.Tensor
    positions: torch.Tensor

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
        return inputs if self.parts == 1 else triton.cdiv(triton.cdiv(inputs, self.parts), _CUT) * _CUT

    def constants(self, inputs: int, tokens: int, *, size: int, gated: bool = False) -> dict[str, Any]:
        """What a kernel is compiled for, with so many tokens of `size` bytes a number."""
        held = max(16, triton.next_power_of_2(tokens))
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
    parts = triton.cdiv(x.shape[1], blocks.share(x.shape[1]))
    out = torch.empty(parts, len(x), outputs, dtype=torch.float32, device=x.device)
    return _multiplied(x, linear, out, blocks, gated=False)


def _multiplied(x: torch.Tensor, linear: Linear, out: torch.Tensor, blocks: Blocks, *, gated: bool) -> torch.Tensor:
    (parts, count, outputs), inputs = out.shape, x.shape[1]
    _product[(triton.cdiv(outputs, blocks.outputs), parts)](
        *(x, linear.weight, x if linear.bias is None else linear.bias, out),
        *(count, outputs, inputs, blocks.share(inputs)),
        BIASED=linear.bias is not None,
        GATED=gated,
        **blocks.constants(inputs, count, size=x.element_size(), gated=gated),
    )
    return out


@triton.jit(do_not_specialize=_VARY)
def _product(
    x,
    weight,
    bias,
    out,
    count,
    outputs,
    inputs,
    share,
    BIASED: tl.constexpr,
    GATED: tl.constexpr,
    EVEN: tl.constexpr,
    OUT: tl.constexpr,
    TOKENS: tl.constexpr,
    IN: tl.constexpr,
):
    output, part = tl.program_id(0) * OUT + tl.arange(0, OUT), tl.program_id(1)
    inside, token = tl.minimum(output, outputs - 1), tl.arange(0, TOKENS)
    first = part * share
    last = tl.minimum(first + share, inputs)
    found, other = _multiply(x, weight, inside, count, outputs, inputs, first, last, GATED, EVEN, OUT, TOKENS, IN)
    if BIASED:
        found += tl.where(part == 0, tl.load(bias + inside).to(tl.float32), 0.0)[:, None]
    if GATED:
        if BIASED:
            other += tl.load(bias + outputs + inside).to(tl.float32)[:, None]
        found = other * found / (1.0 + tl.exp(-found))
    at = part * count * outputs + token[None, :] * outputs + output[:, None]
    tl.store(out + at, found.to(out.dtype.element_ty), mask=(token < count)[None, :] & (output < outputs)[:, None])


@triton.jit
def _multiply(
    x,
    weight,
    output,
    count,
    outputs,
    inputs,
    first,
    last,
    GATED: tl.constexpr,
    EVEN: tl.constexpr,
    OUT: tl.constexpr,
    TOKENS: tl.constexpr,
    IN: tl.constexpr,
):
    """Rows `output` of the weight, and those `outputs` further on, times inputs first to last of all tokens; float32
    (OUT, TOKENS) each.
    """
    token, step = tl.arange(0, TOKENS), tl.arange(0, IN)
    found = tl.zeros((OUT, TOKENS), tl.float32)
    other = tl.zeros((OUT, TOKENS), tl.float32)
    rows = weight + output[:, None].to(tl.int64) * inputs + step[None, :]
    given = x + token[None, :] * inputs + step[:, None]
    for at in range(first, last, IN):
        here = (at + step < last) | EVEN
        fed = tl.load(given + at, mask=(token < count)[None, :] & here[:, None], other=0.0)
        found = tl.dot(tl.load(rows + at, mask=here[None, :], other=0.0), fed, found, input_precision="ieee")
        if GATED:
            others = tl.load(rows + (tl.cast(outputs, tl.int64) * inputs + at), mask=here[None, :], other=0.0)
            other = tl.dot(others, fed, other, input_precision="ieee")
    return found, other


def added(hidden: torch.Tensor, parts: torch.Tensor | None, norm: RmsNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """(hidden + all parts of a product, the norm of that), both (N, D)."""
    normed, block = torch.empty_like(hidden), triton.next_power_of_2(hidden.shape[1])
    out = hidden if parts is None else torch.empty_like(hidden)
    _added[(len(hidden),)](
        *(hidden, hidden if parts is None else parts, norm.weight, out, normed, len(hidden), hidden.shape[1]),
        norm.epsilon,
        PARTS=0 if parts is None else len(parts),
        BLOCK=block,
        num_warps=min(16, max(1, block // 256)),
    )
    return out, normed


@triton.jit(do_not_specialize=_VARY)
def _added(hidden, sums, weight, out, normed, count, size, epsilon, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    here = at < size
    kind = normed.dtype.element_ty
    factor = tl.load(weight + at, mask=here, other=0.0).to(tl.float32)
    value = tl.load(hidden + row * size + at, mask=here, other=0.0).to(tl.float32)
    if PARTS > 0:
        found = tl.load(sums + row * size + at, mask=here, other=0.0)
        for part in tl.static_range(1, PARTS):
            found += tl.load(sums + (part * count + row) * size + at, mask=here, other=0.0)
        rounded = (value + found).to(kind)
        tl.store(out + row * size + at, rounded, mask=here)
        value = rounded.to(tl.float32)
    value = value / tl.sqrt(tl.sum(value * value) / size + epsilon) * factor
    tl.store(normed + row * size + at, value.to(kind), mask=here)


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
    _query_key_value[(triton.cdiv(outputs, blocks.outputs),)](
        *(x, linear.weight, x if linear.bias is None else linear.bias, turns, out, cache.held[layer]),
        *(places.positions, places.slots, places.starts, places.counts),
        *(len(x), outputs, x.shape[1], places.tokens, cache.max_len),
        *(queries, queries + cache.kv_heads * cache.head_dim, cache.head_dim),
        BIASED=linear.bias is not None,
        **blocks.constants(x.shape[1], len(x), size=x.element_size()),
    )
    return out


@triton.jit(do_not_specialize=_VARY)
def _query_key_value(
    x,
    weight,
    bias,
    turns,
    out,
    held,
    positions,
    slots,
    starts,
    counts,
    count,
    outputs,
    inputs,
    tokens,
    max_len,
    queries,
    rotated,
    size,
    BIASED: tl.constexpr,
    EVEN: tl.constexpr,
    OUT: tl.constexpr,
    TOKENS: tl.constexpr,
    IN: tl.constexpr,
):
    output = tl.program_id(0) * OUT + tl.arange(0, OUT)
    inside = tl.minimum(output, outputs - 1)
    found, _ = _multiply(x, weight, inside, count, outputs, inputs, 0, inputs, False, EVEN, OUT, TOKENS, IN)
    if BIASED:
        found += tl.load(bias + inside).to(tl.float32)[:, None]
    token = tl.arange(0, TOKENS)
    real = token < count
    even, odd = tl.split(tl.permute(tl.reshape(found, (OUT // 2, 2, TOKENS)), (0, 2, 1)))
    first = tl.program_id(0) * OUT + 2 * tl.arange(0, OUT // 2)
    turn = turns + tl.load(positions + token, mask=real, other=0)[None, :] * size + (first % size)[:, None]
    turned = real[None, :] & (first < rotated)[:, None]
    cosine = tl.load(turn, mask=turned, other=1.0)
    sine = tl.load(turn + 1, mask=turned, other=0.0)
    even, odd = even * cosine - odd * sine, odd * cosine + even * sine
    kind = out.dtype.element_ty
    at = token[None, :] * queries + first[:, None]
    asks = real[None, :] & (first < queries)[:, None]
    tl.store(out + at, even.to(kind), mask=asks)
    tl.store(out + at + 1, odd.to(kind), mask=asks)
    row, offset = token // tokens, token % tokens
    kept = real & (offset < tl.load(counts + row, mask=real, other=0))
    place = tl.load(slots + row, mask=kept, other=0) * max_len + tl.load(starts + row, mask=kept, other=0) + offset
    at = place[None, :] * (outputs - queries) + (first - queries)[:, None]
    kept = kept[None, :] & ((first >= queries) & (first < outputs))[:, None]
    tl.store(held + at, even.to(kind), mask=kept)
    tl.store(held + at + 1, odd.to(kind), mask=kept)


class Attention:
    """Attention of passes of B rows and T tokens: its launches and the memory it works in, used for all layers."""

    def __init__(self, cache: SlotCache, rows: int, tokens: int) -> None:
        self._shared = cache.heads // cache.kv_heads
        self._queries = max(16, triton.next_power_of_2(tokens * self._shared))
        self._parts = triton.cdiv(cache.max_len, _PART)
        shape = (rows, cache.kv_heads, self._parts, self._queries)
        device = cache.held[0].device
        self._sums = torch.empty(*shape, cache.head_dim, device=device)
        self._norms = torch.empty(*shape, 2, device=device)  # the largest score, and the sum of exponentials

    def __call__(self, queries: torch.Tensor, places: Places, cache: SlotCache, layer: int) -> torch.Tensor:
        """What each token attends to, (N, H d); padding tokens give numbers without meaning."""
        size, out = cache.head_dim, torch.empty_like(queries)
        sizes = {"SHARED": self._shared, "SIZE": size, "BLOCK": triton.next_power_of_2(size), "QUERIES": self._queries}
        _attend[(len(places.slots), cache.kv_heads, self._parts)](
            *(queries, cache.held[layer], self._sums, self._norms, places.slots, places.starts, places.counts),
            *(places.tokens, cache.max_len, cache.kv_heads, self._parts, size**-0.5),
            **sizes,
            KEYS=_KEYS,
            PART=_PART,
            num_warps=4 if self._queries <= 64 else 8,
        )
        _put_together[(len(queries), cache.heads)](
            *(self._sums, self._norms, out, places.starts, places.counts, places.tokens, cache.kv_heads, self._parts),
            **sizes,
            PART=_PART,
            PARTS=triton.next_power_of_2(self._parts),
            num_warps=2,
        )
        return out


@triton.jit(do_not_specialize=_VARY)
def _attend(
    queries,
    held,
    sums,
    norms,
    slots,
    starts,
    counts,
    tokens,
    max_len,
    kv_heads,
    parts,
    scale,
    SHARED: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PART: tl.constexpr,
):
    row, key_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start, count = tl.load(starts + row), tl.load(counts + row)
    first = part * PART
    last = tl.minimum(first + PART, start + count)
    if count == 0 or first >= last:
        return
    query, number = tl.arange(0, QUERIES), tl.arange(0, BLOCK)
    token, here = query // SHARED, number < SIZE
    asked = queries + ((row * tokens + token) * kv_heads * SHARED + key_head * SHARED + query % SHARED) * SIZE
    asked = tl.load(asked[:, None] + number[None, :], mask=(token < tokens)[:, None] & here[None, :], other=0.0)
    sees = start + token
    best = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    found = tl.zeros((QUERIES, BLOCK), tl.float32)
    slot = held + tl.load(slots + row) * max_len * 2 * kv_heads * SIZE + key_head * SIZE
    for at in range(first, last, KEYS):
        position = at + tl.arange(0, KEYS)
        real = (position < last)[:, None] & here[None, :]
        place = slot + position[:, None] * (2 * kv_heads * SIZE) + number[None, :]
        keys = tl.load(place, mask=real, other=0.0)
        values = tl.load(place + kv_heads * SIZE, mask=real, other=0.0)
        scores = tl.dot(asked, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where((position[None, :] <= sees[:, None]) & (position < last)[None, :], scores, float("-inf"))
        highest = tl.maximum(best, tl.max(scores, 1))
        base = tl.where(highest == float("-inf"), 0.0, highest)
        weights, shrink = tl.exp(scores - base[:, None]), tl.exp(best - base)
        found = found * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        total = total * shrink + tl.sum(weights, 1)
        best = highest
    at = ((row * kv_heads + key_head) * parts + part) * QUERIES + query
    used = token < tokens
    tl.store(sums + at[:, None] * SIZE + number[None, :], found, mask=used[:, None] & here[None, :])
    tl.store(norms + 2 * at, best, mask=used)
    tl.store(norms + 2 * at + 1, total, mask=used)


@triton.jit(do_not_specialize=_VARY)
def _put_together(
    sums,
    norms,
    out,
    starts,
    counts,
    tokens,
    kv_heads,
    parts,
    SHARED: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    QUERIES: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
):
    token, head = tl.program_id(0), tl.program_id(1)
    part, number = tl.arange(0, PARTS), tl.arange(0, BLOCK)
    here, row, offset = number < SIZE, token // tokens, token % tokens
    seen = tl.where(offset < tl.load(counts + row), tl.load(starts + row) + offset + 1, 0)
    filled = part * PART < seen
    at = ((row * kv_heads + head // SHARED) * parts + part) * QUERIES + offset * SHARED + head % SHARED
    best = tl.load(norms + 2 * at, mask=filled, other=float("-inf"))
    total = tl.load(norms + 2 * at + 1, mask=filled, other=0.0)
    highest = tl.max(best)
    weight = tl.exp(best - tl.where(highest == float("-inf"), 0.0, highest))
    whole = tl.sum(weight * total)
    found = tl.load(sums + at[:, None] * SIZE + number[None, :], mask=filled[:, None] & here[None, :], other=0.0)
    found = tl.sum(found * weight[:, None], 0) / tl.where(whole > 0, whole, 1.0)
    place = out + (token * kv_heads * SHARED + head) * SIZE + number
    tl.store(place, found.to(out.dtype.element_ty), mask=here)
