"""The small operations between a decoder's products on a GPU, as Triton kernels: one launch each instead of several.

    add_norm           x + delta, and its RMS norm                      (Zhang and Sennrich 2019, eq. 4)
    rotate_and_write   rotary turn of queries and keys; keys and values into their slots    (Su et al. 2021, eq. 34)
    attend             attention over slots where they lie, in parts that run at once and are then put together
                       (Dao et al. 2023, "Flash-Decoding")
    gate               silu(gate) * up

Lengths and slots are read from device memory, so that one captured launch serves every later pass of its shape. Shapes:
B rows of T tokens each, N = B T, H heads, K heads for keys and values, d head size, D hidden size. Arithmetic is
float32, rounded to the tensors' type. Triton comes with PyTorch's CUDA builds; nothing on a CPU imports this file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from cascade_runtime.models.slot_cache import SlotCache

MAX_QUERIES = 128  # of one key head, that a program holds at once
_KEYS = 64  # that it looks at in one step
_PROGRAMS = 512  # that keep all of a GPU busy


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


def add_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + delta, its RMS norm), both (N, D)."""
    size, normed = x.shape[1], torch.empty_like(x)
    added = x if delta is None else torch.empty_like(x)
    block = triton.next_power_of_2(size)
    warps = min(16, max(1, block // 512))
    _add_norm[(len(x),)](
        *(x, x if delta is None else delta, weight, added, normed, size, epsilon),
        ADDS=delta is not None,
        BLOCK=block,
        num_warps=warps,
    )
    return added, normed


@triton.jit
def _add_norm(x, delta, weight, added, normed, size, epsilon, ADDS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    here = at < size
    value = tl.load(x + row * size + at, mask=here, other=0.0).to(tl.float32)
    if ADDS:
        value += tl.load(delta + row * size + at, mask=here, other=0.0).to(tl.float32)
        rounded = value.to(added.dtype.element_ty)
        tl.store(added + row * size + at, rounded, mask=here)
        value = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value) / size + epsilon)
    value = value * scale * tl.load(weight + at, mask=here, other=0.0).to(tl.float32)
    tl.store(normed + row * size + at, value.to(normed.dtype.element_ty), mask=here)


def gate(pair: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up for gate and up side by side, (N, 2 I) -> (N, I)."""
    size = pair.shape[1] // 2
    out = torch.empty(len(pair), size, dtype=pair.dtype, device=pair.device)
    _gate[(len(pair), triton.cdiv(size, 1024))](pair, out, size, BLOCK=1024)
    return out


@triton.jit
def _gate(pair, out, size, BLOCK: tl.constexpr):
    row, at = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = at < size
    opening = tl.load(pair + row * 2 * size + at, mask=here, other=0.0).to(tl.float32)
    value = tl.load(pair + row * 2 * size + size + at, mask=here, other=0.0).to(tl.float32)
    value = value * opening / (1.0 + tl.exp(-opening))
    tl.store(out + row * size + at, value.to(out.dtype.element_ty), mask=here)


def rotate_and_write(mixed: torch.Tensor, turns: torch.Tensor, places: Places, cache: SlotCache, layer: int) -> None:
    """Rotate queries in place; rotate keys and write them and the values to the rows' slots.

    mixed: (N, (H + 2 K) d), pairs to be rotated side by side. turns: (positions, d / 2, 2) float32, cosine and sine.
    """
    half = cache.head_dim // 2
    _rotate_and_write[(len(mixed), cache.heads + 2 * cache.kv_heads)](
        *(mixed, turns, places.positions, cache.held[layer], places.slots, places.starts, places.counts),
        *(places.tokens, cache.max_len, cache.heads, cache.kv_heads),
        HALF=half,
        BLOCK=triton.next_power_of_2(half),
        num_warps=1,
    )


@triton.jit
def _rotate_and_write(
    mixed,
    turns,
    positions,
    held,
    slots,
    starts,
    counts,
    tokens,
    max_len,
    heads,
    kv_heads,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token, head = tl.program_id(0), tl.program_id(1)
    row, offset = token // tokens, token % tokens
    at = tl.arange(0, BLOCK)
    here = at < HALF
    source = mixed + (token * (heads + 2 * kv_heads) + head) * 2 * HALF + 2 * at
    even = tl.load(source, mask=here, other=0.0).to(tl.float32)
    odd = tl.load(source + 1, mask=here, other=0.0).to(tl.float32)
    if head < heads + kv_heads:
        turn = turns + tl.load(positions + token) * 2 * HALF + 2 * at
        cosine, sine = tl.load(turn, mask=here, other=0.0), tl.load(turn + 1, mask=here, other=0.0)
        even, odd = even * cosine - odd * sine, odd * cosine + even * sine
    kind = mixed.dtype.element_ty
    if head < heads:
        tl.store(source, even.to(kind), mask=here)
        tl.store(source + 1, odd.to(kind), mask=here)
    elif offset < tl.load(counts + row):
        place = tl.load(slots + row) * max_len + tl.load(starts + row) + offset
        target = held + (place * 2 * kv_heads + head - heads) * 2 * HALF + 2 * at
        tl.store(target, even.to(kind), mask=here)
        tl.store(target + 1, odd.to(kind), mask=here)


class Attention:
    """Attention of passes of B rows and T tokens: its launch and the memory it works in, used for all layers."""

    def __init__(self, cache: SlotCache, rows: int, tokens: int) -> None:
        self._shared = cache.heads // cache.kv_heads
        self._queries = max(16, triton.next_power_of_2(tokens * self._shared))
        self._parts = min(64, max(1, triton.next_power_of_2(_PROGRAMS // (rows * cache.kv_heads))))
        shape = (rows, cache.kv_heads, self._parts, self._queries)
        device = cache.held[0].device
        self._sums = torch.empty(*shape, cache.head_dim, device=device)
        self._norms = torch.empty(*shape, 2, device=device)  # the largest score, and the sum of exponentials

    def __call__(self, mixed: torch.Tensor, places: Places, cache: SlotCache, layer: int) -> torch.Tensor:
        """What each token attends to, (N, H d); padding tokens give numbers without meaning."""
        size, block = cache.head_dim, triton.next_power_of_2(cache.head_dim)
        rows, out = (
            len(places.slots),
            torch.empty(len(mixed), cache.heads * size, dtype=mixed.dtype, device=mixed.device),
        )
        _attend[(rows, cache.kv_heads, self._parts)](
            *(mixed, cache.held[layer], self._sums, self._norms, places.slots, places.starts, places.counts),
            *(places.tokens, cache.max_len, cache.kv_heads, size**-0.5),
            SHARED=self._shared,
            SIZE=size,
            BLOCK=block,
            QUERIES=self._queries,
            KEYS=_KEYS,
            PARTS=self._parts,
            num_warps=4 if self._queries <= 64 else 8,
        )
        _put_together[(len(mixed), cache.heads)](
            *(self._sums, self._norms, out, places.tokens, cache.kv_heads),
            SHARED=self._shared,
            SIZE=size,
            BLOCK=block,
            QUERIES=self._queries,
            PARTS=self._parts,
            num_warps=2,
        )
        return out


@triton.jit
def _attend(
    mixed,
    held,
    sums,
    norms,
    slots,
    starts,
    counts,
    tokens,
    max_len,
    kv_heads,
    scale,
    SHARED: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PARTS: tl.constexpr,
):
    row, key_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start, count = tl.load(starts + row), tl.load(counts + row)
    end = tl.where(count > 0, start + count, 0)
    share = tl.cdiv(tl.cdiv(end, PARTS), KEYS) * KEYS
    first = part * share
    last = tl.minimum(first + share, end)
    query, number = tl.arange(0, QUERIES), tl.arange(0, BLOCK)
    token, here = query // SHARED, number < SIZE
    heads = SHARED * kv_heads
    asked = mixed + ((row * tokens + token) * (heads + 2 * kv_heads) + key_head * SHARED + query % SHARED) * SIZE
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
        scores = tl.dot(asked, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where((position[None, :] <= sees[:, None]) & (position < last)[None, :], scores, float("-inf"))
        highest = tl.maximum(best, tl.max(scores, 1))
        base = tl.where(highest == float("-inf"), 0.0, highest)
        weights, shrink = tl.exp(scores - base[:, None]), tl.exp(best - base)
        values = tl.load(place + kv_heads * SIZE, mask=real, other=0.0)
        found = found * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        total = total * shrink + tl.sum(weights, 1)
        best = highest
    at = ((row * kv_heads + key_head) * PARTS + part) * QUERIES + query
    tl.store(sums + at[:, None] * SIZE + number[None, :], found, mask=here[None, :])
    tl.store(norms + 2 * at, best)
    tl.store(norms + 2 * at + 1, total)


@triton.jit
def _put_together(
    sums,
    norms,
    out,
    tokens,
    kv_heads,
    SHARED: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    QUERIES: tl.constexpr,
    PARTS: tl.constexpr,
):
    token, head = tl.program_id(0), tl.program_id(1)
    part, number = tl.arange(0, PARTS), tl.arange(0, BLOCK)
    here = number < SIZE
    query = token % tokens * SHARED + head % SHARED
    at = ((token // tokens * kv_heads + head // SHARED) * PARTS + part) * QUERIES + query
    best, total = tl.load(norms + 2 * at), tl.load(norms + 2 * at + 1)
    highest = tl.max(best)
    weight = tl.exp(best - tl.where(highest == float("-inf"), 0.0, highest))
    whole = tl.sum(weight * total)
    found = tl.load(sums + at[:, None] * SIZE + number[None, :], mask=here[None, :], other=0.0)
    found = tl.sum(found * weight[:, None], 0) / tl.where(whole > 0, whole, 1.0)
    place = out + (token * kv_heads * SHARED + head) * SIZE + number
    tl.store(place, found.to(out.dtype.element_ty), mask=here)
