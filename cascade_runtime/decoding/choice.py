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


def uniform_noise(seed: int, position: int, vocab_size: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Uniform noise in (0, 1), float64 (vocab_size,), a function of (seed, position, token id) alone."""
    key = _splitmix64(_splitmix64(torch.tensor(_signed(seed), device=device)) ^ position)
    bits = _splitmix64(_splitmix64(torch.arange(vocab_size, device=device) ^ key))
    return (_shift(bits, 12).double() + 0.5) * 2.0**-52


def gumbel_noise(seed: int, position: int, vocab_size: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Standard Gumbel noise G(seed, position), float64 (vocab_size,)."""
    return -torch.log(-torch.log(uniform_noise(seed, position, vocab_size, device)))


def process_logits(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Temperature, then top-k, then top-p, as vLLM orders them: float64 (V,), -inf where a token is removed.

    Ties at the k-th value are all kept. top-p keeps the fewest most probable tokens whose probabilities reach top_p.
    """
    scores = logits.double() / params.temperature
    if 0 < params.top_k < scores.numel():
        least = torch.topk(scores, params.top_k).values[-1]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if params.top_p < 1.0:
        ordered, order = torch.sort(scores, descending=True, stable=True)
        mass = torch.softmax(ordered, 0)
        before = torch.cumsum(mass, 0) - mass
        scores = scores.index_fill(0, order[before >= params.top_p], -torch.inf)
    return scores


def choose(logits_NV: torch.Tensor, params: Sequence[SamplingParams], positions: Sequence[int]) -> list[int]:
    """One token per row of logits (N, V): row i is position `positions[i]` of an answer sampled with `params[i]`.

    A row whose logits are not usable numbers gives `NOT_FINITE`; the other rows are unaffected.
    """
    finite = (logits_NV.amax(-1).isfinite() & ~logits_NV.isnan().any(-1)).tolist()
    greedy = logits_NV.argmax(-1).tolist()
    chosen: list[int] = []
    for row, (ok, wants, position) in enumerate(zip(finite, params, positions, strict=True)):
        if not ok:
            chosen.append(NOT_FINITE)
        elif wants.temperature == 0.0:
            chosen.append(greedy[row])
        else:
            scores = process_logits(logits_NV[row], wants)
            noise = gumbel_noise(wants.seed, position, scores.numel(), scores.device)
            chosen.append(int(torch.argmax(scores + noise)))
    return chosen
