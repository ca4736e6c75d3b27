"""A decoder block for a few tokens on a GPU, as eight Triton kernels: what follows a product is part of it.

    normed             x / sqrt(mean(x^2) + eps) * weight  (Zhang and Sennrich 2019, eq. 4)
    product            x @ W.T + bias, gated or with a residual where asked for
    query_key_value    a product, rotary turn, keys and values straight into their slots (Su et al. 2021, eq. 34)
    Attention          over slots where they lie, in parts that run at once and are then put together
                       (Dao et al. 2023, "Flash-Decoding")

A pass of few tokens is bound by reading weights and keys once, so every kernel streams them through and holds all
tokens of the pass.

**A token's numbers do not depend on what else is in the pass.** Each sum is taken in an order that depends on sizes
alone: products in steps of `_IN`, attention in parts of `_PART` keys at fixed places. So a pass that verifies eight
drafts computes, bit for bit, what eight passes of one token would have, in bfloat16 too.

Lengths and slots are read from device memory, so that one captured launch serves every later pass of its shape. Shapes:
B rows of T tokens each, N = B T, H heads, K heads for keys and values, d head size, D hidden size. Sums are float32,
results rounded to the tensors' type. Triton comes with PyTorch's CUDA builds; nothing on a CPU imports this file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from cascade_runtime.models.linear import Linear
from cascade_runtime.models.norm import RmsNorm
from cascade_runtime.models.slot_cache import SlotCache

MAX_TOKENS = 128  # of a pass: what one program holds
MAX_QUERIES = 128  # of one key head: what one program holds
_IN = 128  # inputs of a product that are multiplied in one step
_KEYS, _PART = 64, 128  # keys looked at in one step, and by one program
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


def _launch(outputs: int, count: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and block sizes of a product with so many outputs for so many tokens."""
    tile = 64 if outputs >= 1 << 14 else 16
    tokens = max(16, triton.next_power_of_2(count))
    stages = 5 if tokens <= 32 else 3
    return (triton.cdiv(outputs, tile),), {
        "OUT": tile,
        "TOKENS": tokens,
        "IN": _IN,
        "num_warps": 4,
        "num_stages": stages,
    }


def normed(x: torch.Tensor, norm: RmsNorm) -> torch.Tensor:
    """The norm of each token of x (N, D)."""
    out, block = torch.empty_like(x), triton.next_power_of_2(x.shape[1])
    warps = min(16, max(1, block // 512))
    _normed[(len(x),)](x, norm.weight, out, x.shape[1], norm.epsilon, BLOCK=block, num_warps=warps)
    return out


@triton.jit
def _normed(x, weight, out, size, epsilon, BLOCK: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, BLOCK)
    here = at < size
    value = tl.load(x + row * size + at, mask=here, other=0.0).to(tl.float32)
    factor = tl.load(weight + at, mask=here, other=0.0).to(tl.float32)
    value = value / tl.sqrt(tl.sum(value * value) / size + epsilon) * factor
    tl.store(out + row * size + at, value.to(out.dtype.element_ty), mask=here)


def product(
    x: torch.Tensor,
    linear: Linear,
    *,
    residual: torch.Tensor | None = None,
    gated: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """x @ W.T + bias + residual for x (N, in) -> (N, out), of `dtype` or that of x.

    gated: W is a gate's weights and then as many others, and the result silu(gate) * other, (N, out / 2).
    """
    weight, outputs = linear.weight, linear.weight.shape[0] // (2 if gated else 1)
    out = torch.empty(len(x), outputs, dtype=dtype or x.dtype, device=x.device)
    grid, blocks = _launch(outputs, len(x))
    _product[grid](
        *(
            x,
            weight,
            _given(linear.bias, x),
            _given(residual, x),
            out,
        ),
        *(len(x), outputs, x.shape[1]),
        BIASED=linear.bias is not None,
        ADDS=residual is not None,
        GATED=gated,
        EVEN=x.shape[1] % _IN == 0,
        **blocks,
    )
    return out


def query_key_value(
    x: torch.Tensor, linear: Linear, turns: torch.Tensor, places: Places, cache: SlotCache, layer: int
) -> torch.Tensor:
    """Rotated queries (N, H d) of x; rotated keys, and values, of real tokens are written to the rows' slots.

    W: queries, keys and values, (H + 2 K) d, pairs that are rotated together side by side. turns: (positions, d / 2, 2)
    float32, cosine and sine.
    """
    outputs, queries = linear.weight.shape[0], cache.heads * cache.head_dim
    out = torch.empty(len(x), queries, dtype=x.dtype, device=x.device)
    grid, blocks = _launch(outputs, len(x))
    _query_key_value[grid](
        *(x, linear.weight, _given(linear.bias, x), turns, out, cache.held[layer]),
        *(places.positions, places.slots, places.starts, places.counts),
        *(len(x), outputs, x.shape[1], places.tokens, cache.max_len),
        *(queries, queries + cache.kv_heads * cache.head_dim, cache.head_dim),
        BIASED=linear.bias is not None,
        EVEN=x.shape[1] % _IN == 0,
        **blocks,
    )
    return out


def _given(tensor: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    return other if tensor is None else tensor  # a kernel takes a pointer even where it does not look


@triton.jit
def _multiply(
    x, weight, output, count, inputs, EVEN: tl.constexpr, OUT: tl.constexpr, TOKENS: tl.constexpr, IN: tl.constexpr
):
    """(OUT, TOKENS) float32: rows `output` of the weight times all tokens."""
    token, step = tl.arange(0, TOKENS), tl.arange(0, IN)
    found = tl.zeros((OUT, TOKENS), tl.float32)
    rows = weight + output[:, None].to(tl.int64) * inputs + step[None, :]
    given = x + token[None, :] * inputs + step[:, None]
    for first in range(0, inputs, IN):
        here = (first + step < inputs) | EVEN
        w = tl.load(rows + first, mask=here[None, :], other=0.0)
        fed = tl.load(given + first, mask=(token < count)[None, :] & here[:, None], other=0.0)
        found = tl.dot(w, fed, found, input_precision="ieee")
    return found


@triton.jit(do_not_specialize=_VARY)
def _product(
    x,
    weight,
    bias,
    residual,
    out,
    count,
    outputs,
    inputs,
    BIASED: tl.constexpr,
    ADDS: tl.constexpr,
    GATED: tl.constexpr,
    EVEN: tl.constexpr,
    OUT: tl.constexpr,
    TOKENS: tl.constexpr,
    IN: tl.constexpr,
):
    output = tl.program_id(0) * OUT + tl.arange(0, OUT)
    inside = tl.minimum(output, outputs - 1)
    found = _multiply(x, weight, inside, count, inputs, EVEN, OUT, TOKENS, IN)
    if BIASED:
        found += tl.load(bias + inside).to(tl.float32)[:, None]
    if GATED:
        other = _multiply(x, weight, outputs + inside, count, inputs, EVEN, OUT, TOKENS, IN)
        if BIASED:
            other += tl.load(bias + outputs + inside).to(tl.float32)[:, None]
        found = other * found / (1.0 + tl.exp(-found))
    token = tl.arange(0, TOKENS)
    at = token[None, :] * outputs + output[:, None]
    here = (token < count)[None, :] & (output < outputs)[:, None]
    if ADDS:
        found += tl.load(residual + at, mask=here, other=0.0).to(tl.float32)
    tl.store(out + at, found.to(out.dtype.element_ty), mask=here)


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
    found = _multiply(x, weight, inside, count, inputs, EVEN, OUT, TOKENS, IN)
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
