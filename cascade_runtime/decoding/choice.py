"""What a model chooses next, as a pure function of its logits, the request's seed and the position.

`choose` returns argmax(process(logits) + G(seed, position)): `process` divides by the temperature and removes what
top-k and top-p remove; G is Gumbel noise from a counter-based hash of (seed, position, token id). The Gumbel-max
trick makes this an exact draw from softmax(process(logits)) (Gumbel 1954; Maddison et al. 2014, eq. 2), and because
every model of a cascade shares G, a drafter chooses what its verifier will choose almost as often as the ratio test
would accept, with no probabilities on the wire. Temperature 0 is plain argmax, no noise.

The hash is integer arithmetic (splitmix64), so the noise is the same bits on every device and in every process.
`position` counts tokens of the answer, never of the prompt: prompts differ in length between models of one cascade.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from cascade_runtime.config import SamplingParams

NOT_FINITE = -1
"""Returned instead of a token where the logits hold NaN or +inf, or nothing but -inf."""

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64 (torch shifts arithmetically)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _splitmix64(x: torch.Tensor) -> torch.Tensor:
    """Finaliser of splitmix64 (Steele et al. 2014) over int64 taken modulo 2**64."""
    x = x + _signed(_GOLDEN)
    x = (x ^ _shift(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift(x, 27)) * _signed(_MIX_2)
    return x ^ _shift(x, 31)


def derived_seed(seed: int, purpose: int) -> int:
    """The seed of another stream of noise for the same request, one per purpose (an integer from 1 on)."""
    first = _splitmix64(torch.tensor(_signed(seed)))
    return int(_splitmix64(first ^ _signed(purpose << 32)))  # no position of an answer is as large


def uniform_noise(
    seeds: Sequence[int], positions: Sequence[int], vocab_size: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Uniform noise in (0, 1), float64 (N, V), row i a function of (seeds[i], positions[i], token id) alone."""
    seed = torch.tensor([_signed(seed) for seed in seeds], dtype=torch.int64, device=device)
    key = _splitmix64(_splitmix64(seed) ^ torch.tensor(positions, dtype=torch.int64, device=device))
    tokens = torch.arange(vocab_size, device=device)
    bits = _splitmix64(_splitmix64(tokens ^ key[:, None]))
    return (_shift(bits, 12).double() + 0.5) * 2.0**-52


def gumbel_noise(
    seeds: Sequence[int], positions: Sequence[int], vocab_size: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Standard Gumbel noise G(seed, position), float64 (N, V)."""
    return -torch.log(-torch.log(uniform_noise(seeds, positions, vocab_size, device)))


def process_logits(logits_NV: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Temperature, then top-k, then top-p, as vLLM orders them: float64 (N, V), -inf where a token is removed.

    Ties at the k-th value are all kept. top-p keeps the fewest most probable tokens whose probabilities reach top_p.
    """
    scores = logits_NV.double() / params.temperature
    if 0 < params.top_k < scores.shape[-1]:
        least = torch.topk(scores, params.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if params.top_p < 1.0:
        ordered, order = torch.sort(scores, dim=-1, descending=True, stable=True)
        mass = torch.softmax(ordered, -1)
        before = torch.cumsum(mass, -1) - mass
        ordered = ordered.masked_fill(before >= params.top_p, -torch.inf)
        scores = torch.empty_like(scores).scatter_(-1, order, ordered)
    return scores


def choose(logits_NV: torch.Tensor, params: Sequence[SamplingParams], positions: Sequence[int]) -> list[int]:
    """One token per row of logits (N, V): row i is position `positions[i]` of an answer sampled with `params[i]`.

    A row whose logits are not usable numbers gives `NOT_FINITE`; the other rows are unaffected.
    """
    best, argmax = logits_NV.max(-1)  # one reduction says both: a NaN anywhere in a row is that row's maximum
    chosen: list[int] = argmax.tolist()
    groups: dict[tuple[float, int, float], list[int]] = {}
    for row, (wants, value) in enumerate(zip(params, best.tolist(), strict=True)):
        if not math.isfinite(value):
            chosen[row] = NOT_FINITE
        elif wants.temperature > 0:
            groups.setdefault((wants.temperature, wants.top_k, wants.top_p), []).append(row)
    for rows in groups.values():
        index = torch.tensor(rows, device=logits_NV.device)
        scores = process_logits(logits_NV[index], params[rows[0]])
        seeds, at = [params[row].seed for row in rows], [positions[row] for row in rows]
        scores = scores + gumbel_noise(seeds, at, scores.shape[-1], scores.device)
        for row, token in zip(rows, scores.argmax(-1).tolist(), strict=True):
            chosen[row] = token
    return chosen
