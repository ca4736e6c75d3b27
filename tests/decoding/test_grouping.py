"""Rows that attend together are padded to the longest: who is together is what costs least."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_runtime.decoding.grouping import CALL, attending

Rows = st.lists(st.integers(1, 200), min_size=1, max_size=6)


def grouped(counts: list[int], slots: list[int]) -> list[list[int]]:
    order, sizes = attending(counts, slots)
    assert sorted(order) == list(range(len(counts)))
    rows = iter(order)
    return [list(itertools.islice(rows, size)) for size in sizes]


def cost(groups: list[list[int]], counts: list[int]) -> float:
    return sum(CALL + len(group) * max(counts[i] for i in group) for group in groups)


@settings(max_examples=60, deadline=None)
@given(Rows, st.randoms())
def test_no_other_grouping_costs_less_and_slots_ascend(counts: list[int], random) -> None:
    slots = random.sample(range(20), len(counts))
    groups = grouped(counts, slots)
    every = itertools.product(range(len(counts)), repeat=len(counts))
    least = min(cost([[i for i, g in enumerate(names) if g == name] for name in set(names)], counts) for names in every)
    assert cost(groups, counts) <= max(least, sum(counts) + 2 * CALL)  # so little padding is not worth a look
    if len(groups) > 1:
        assert cost(groups, counts) == least
    assert all([slots[i] for i in group] == sorted(slots[i] for i in group) for group in groups)


def test_a_prompt_does_not_pad_the_steps_of_others_and_equals_stay_together() -> None:
    assert sorted(map(sorted, grouped([1, 64, 1, 2], [3, 0, 1, 2]))) == [[0, 2, 3], [1]]
    assert grouped([3] * 9, list(range(9))) == [list(range(9))]
    assert grouped([4, 1, 2], [7, 3, 5]) == [[1, 2, 0]]
