"""Rows that share a pass are padded to the longest: who runs together is what costs least."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_runtime.decoding.decoder import _alike


def cost(groups: list[list[int]], counts: list[int], pass_tokens: float) -> float:
    return sum(pass_tokens + len(group) * max(counts[i] for i in group) for group in groups)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=6), st.sampled_from([0.5, 8.0, 24.0, 500.0]))
def test_no_other_grouping_costs_less(counts: list[int], pass_tokens: float) -> None:
    groups = _alike(counts, pass_tokens)
    assert sorted(itertools.chain(*groups)) == list(range(len(counts)))
    every = itertools.product(range(len(counts)), repeat=len(counts))
    least = min(
        cost([[i for i, g in enumerate(names) if g == name] for name in set(names)], counts, pass_tokens)
        for names in every
    )
    assert abs(cost(groups, counts, pass_tokens) - least) < 1e-9


def test_a_prompt_does_not_pad_the_steps_of_others_and_equals_stay_together() -> None:
    assert sorted(map(sorted, _alike([1, 64, 1, 2], 24.0))) == [[0, 2, 3], [1]]
    assert _alike([3] * 9, 24.0) == [list(range(9))]
    assert _alike([], 24.0) == []
