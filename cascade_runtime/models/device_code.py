"""Device code of `kernels.py`, whose functions launch it and say what each parameter is."""

from __future__ import annotations

import triton
import triton.language as tl

_VARY = ("count", "tokens")  # numbers that no kernel is compiled anew for


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


@triton.jit(do_not_specialize=_VARY)
def product(
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


@triton.jit(do_not_specialize=_VARY)
def added(hidden, sums, weight, out, normed, count, size, epsilon, PARTS: tl.constexpr, BLOCK: tl.constexpr):
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


@triton.jit(do_not_specialize=_VARY)
def query_key_value(
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


@triton.jit(do_not_specialize=_VARY)
def attend(
    queries,
    held,
    sums,
    norms,
    slots,
    starts,
    counts,
    origins,
    sees,
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
    TOTAL: tl.constexpr,
):
    row, key_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2) % parts
    start, count = tl.load(starts + row), tl.load(counts + row)
    first = part * PART
    last = tl.minimum(first + PART, start + count)
    if count == 0 or first >= last:
        return
    query, number = tl.program_id(2) // parts * QUERIES + tl.arange(0, QUERIES), tl.arange(0, BLOCK)
    token, here = query // SHARED, number < SIZE
    asked = queries + ((row * tokens + token) * kv_heads * SHARED + key_head * SHARED + query % SHARED) * SIZE
    asked = tl.load(asked[:, None] + number[None, :], mask=(token < tokens)[:, None] & here[None, :], other=0.0)
    origin = tl.load(origins + row)
    branch = tl.load(sees + row * tokens + token, mask=token < tokens, other=0)
    upto = start + token
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
        beyond = position - origin
        above = (branch[:, None] >> tl.minimum(tl.maximum(beyond, 0), 63)[None, :]) & 1
        seen = (position[None, :] <= upto[:, None]) & ((beyond < 0)[None, :] | (upto < origin)[:, None] | (above == 1))
        scores = tl.where(seen & (position < last)[None, :], scores, float("-inf"))
        highest = tl.maximum(best, tl.max(scores, 1))
        base = tl.where(highest == float("-inf"), 0.0, highest)
        weights, shrink = tl.exp(scores - base[:, None]), tl.exp(best - base)
        found = found * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        total = total * shrink + tl.sum(weights, 1)
        best = highest
    at = ((row * kv_heads + key_head) * parts + part) * TOTAL + query
    used = token < tokens
    tl.store(sums + at[:, None] * SIZE + number[None, :], found, mask=used[:, None] & here[None, :])
    tl.store(norms + 2 * at, best, mask=used)
    tl.store(norms + 2 * at + 1, total, mask=used)


@triton.jit(do_not_specialize=_VARY)
def put_together(
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
    PART: tl.constexpr,
    TOTAL: tl.constexpr,
    PARTS: tl.constexpr,
):
    token, head = tl.program_id(0), tl.program_id(1)
    part, number = tl.arange(0, PARTS), tl.arange(0, BLOCK)
    here, row, offset = number < SIZE, token // tokens, token % tokens
    seen = tl.where(offset < tl.load(counts + row), tl.load(starts + row) + offset + 1, 0)
    filled = part * PART < seen
    at = ((row * kv_heads + head // SHARED) * parts + part) * TOTAL + offset * SHARED + head % SHARED
    best = tl.load(norms + 2 * at, mask=filled, other=float("-inf"))
    total = tl.load(norms + 2 * at + 1, mask=filled, other=0.0)
    highest = tl.max(best)
    weight = tl.exp(best - tl.where(highest == float("-inf"), 0.0, highest))
    whole = tl.sum(weight * total)
    found = tl.load(sums + at[:, None] * SIZE + number[None, :], mask=filled[:, None] & here[None, :], other=0.0)
    found = tl.sum(found * weight[:, None], 0) / tl.where(whole > 0, whole, 1.0)
    place = out + (token * kv_heads * SHARED + head) * SIZE + number
    tl.store(place, found.to(out.dtype.element_ty), mask=here)
