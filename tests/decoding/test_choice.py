"""The sampler: exact by enumeration, exact in distribution, the same everywhere, and wrong variants are seen to be
wrong.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.choice import NOT_FINITE, choose, gumbel_noise, process_logits, uniform_noise

LOGITS = [1.2, 0.1, -0.7, 0.6, -3.0]
DRAWS = 200_000


def law(logits: list[float], params: SamplingParams) -> list[float]:
    """softmax(process(logits)) written out: the probabilities a user asks for."""
    weights = [math.exp(value / params.temperature) for value in logits]
    order = sorted(range(len(logits)), key=lambda i: -weights[i])
    if params.top_k:
        order = order[: params.top_k]
    total = sum(weights[i] for i in order)
    kept, mass = [], 0.0
    for i in order:
        if mass >= params.top_p:
            break
        kept.append(i)
        mass += weights[i] / total
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(logits))]


def chi_square(counts: list[int], expected: list[float]) -> float:
    total = sum(counts)
    return sum((c - total * e) ** 2 / (total * e) for c, e in zip(counts, expected, strict=True) if e)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.6, 0.01])
def test_the_processed_law_is_the_enumerated_one(temperature: float, top_k: int, top_p: float) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    for permuted in itertools.permutations(LOGITS):
        got = torch.softmax(process_logits(torch.tensor([permuted], dtype=torch.float64), params)[0], 0).tolist()
        assert got == pytest.approx(law(list(permuted), params), abs=1e-12)


def test_gumbel_max_draws_from_the_law() -> None:
    """Chi-square with 4 (2) degrees of freedom at p = 1e-6; deterministic, since seeds are counted."""
    for params, limit in ((SamplingParams(temperature=0.8), 33.4), (SamplingParams(temperature=0.8, top_k=3), 27.7)):
        expected = law(LOGITS, params)
        rows = torch.tensor(LOGITS).expand(DRAWS, -1)
        each = [SamplingParams(temperature=0.8, top_k=params.top_k, seed=seed) for seed in range(DRAWS)]
        counts = torch.bincount(torch.tensor(choose(rows, each, [7] * DRAWS)), minlength=5).tolist()
        assert all(count == 0 for count, e in zip(counts, expected, strict=True) if e == 0)
        assert chi_square(counts, expected) < limit
        assert chi_square(counts, law(LOGITS, SamplingParams(temperature=0.85))) > 100  # the test can fail


def test_noise_is_independent_over_positions_and_seeds() -> None:
    by_position = uniform_noise([3] * DRAWS, range(DRAWS), 2)
    by_seed = uniform_noise(range(DRAWS), [3] * DRAWS, 2)
    for noise in (by_position, by_seed):
        assert noise.min() > 0 and noise.max() < 1
        cells = (noise[:, 0] * 8).long() * 8 + (noise[:, 1] * 8).long()
        assert chi_square(torch.bincount(cells, minlength=64).tolist(), [1 / 64] * 64) < 130  # 63 df, p = 1e-6
        cells = (noise[:-1, 0] * 8).long() * 8 + (noise[1:, 0] * 8).long()
        assert chi_square(torch.bincount(cells, minlength=64).tolist(), [1 / 64] * 64) < 130


def test_noise_is_the_written_down_hash() -> None:
    """splitmix64 in plain integers, as any other implementation would write it."""

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    for seed, position in ((0, 0), (1, 5), (2**64 - 1, 4095)):
        key = mix(mix(seed) ^ position)
        expected = [((mix(mix(token ^ key)) >> 12) + 0.5) / 2**52 for token in range(6)]
        assert uniform_noise([seed], [position], 6)[0].tolist() == expected


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=12),
    st.integers(0, 2**64 - 1),
    st.integers(0, 5000),
    st.floats(0.05, 4),
)
def test_a_choice_does_not_depend_on_its_batch(
    logits: list[float], seed: int, position: int, temperature: float
) -> None:
    params = SamplingParams(temperature=temperature, seed=seed)
    row = torch.tensor(logits)
    alone = choose(row[None], [params], [position])[0]
    others = [SamplingParams(), SamplingParams(temperature=1.0, seed=9)]
    batch = choose(torch.stack([row, row.flip(0), row]), [others[0], others[1], params], [0, 3, position])
    assert batch[2] == alone
    noise = gumbel_noise([seed], [position], len(logits))[0]
    assert alone == int(torch.argmax(row.double() / temperature + noise))


def test_temperature_zero_is_argmax_with_the_lowest_id_on_ties() -> None:
    assert choose(torch.tensor([[0.0, 2.0, 2.0], [5.0, 2.0, 2.0]]), [SamplingParams()] * 2, [0, 0]) == [1, 0]


def test_shared_noise_agrees_far_more_often_than_private_noise() -> None:
    """Two close models: shared noise near the ratio test's rate (1 - total variation), private noise near sum p q."""
    p, q = torch.tensor(LOGITS), torch.tensor([1.0, 0.3, -0.9, 0.5, -2.0])
    n = 20_000

    def draws(logits: torch.Tensor, first_seed: int) -> torch.Tensor:
        each = [SamplingParams(temperature=1.0, seed=first_seed + i) for i in range(n)]
        return torch.tensor(choose(logits.expand(n, -1), each, [0] * n))

    overlap = float(torch.minimum(p.softmax(0), q.softmax(0)).sum())
    shared = float((draws(p, 0) == draws(q, 0)).float().mean())
    private = float((draws(p, 0) == draws(q, n)).float().mean())
    assert shared <= overlap + 0.01 and shared > overlap - 0.05
    assert private == pytest.approx(float((p.softmax(0) * q.softmax(0)).sum()), abs=0.02)


def test_unusable_logits_are_reported_and_harm_no_other_row() -> None:
    nan, inf = math.nan, math.inf
    bad = [[nan, 1.0], [1.0, nan], [inf, nan], [-inf, nan], [inf, 1.0], [-inf, -inf]]
    rows = torch.tensor([*bad, [-inf, 1.0], [2.0, 1.0]])
    for params in (SamplingParams(), SamplingParams(temperature=1.0, seed=1)):
        chosen = choose(rows, [params] * len(rows), [0] * len(rows))
        assert chosen[:-2] == [NOT_FINITE] * len(bad) and chosen[-2] == 1 and chosen[-1] in (0, 1)
