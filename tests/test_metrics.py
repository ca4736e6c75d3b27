"""Acceptance figures by hand-computed values."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_runtime.errors import InputError
from cascade_runtime.metrics import EdgeCounters, Histogram, edge_counters, merge_edges

BLOCKS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)).map(lambda p: (max(p), min(p))), max_size=30)


def counted(edge: str, blocks: list[tuple[int, int]]) -> EdgeCounters:
    counters = EdgeCounters(edge)
    for drafted, accepted in blocks:
        counters.observe(drafted, accepted)
    return counters


def test_three_blocks_give_the_figures_computed_by_hand() -> None:
    counters = counted("light-mid", [(4, 2), (4, 4), (2, 0)])
    counters.observe(0, 0)  # a pass without drafts is none
    assert counters.num_drafts == 3
    assert counters.num_draft_tokens == 10
    assert counters.num_accepted_tokens == 6
    assert counters.num_draft_tokens_per_pos == [3, 3, 2, 2]
    assert counters.num_accepted_tokens_per_pos == [2, 2, 1, 1]
    assert counters.num_tested_tokens_per_pos == [3, 2, 2, 1]
    assert counters.acceptance_rate == 0.6
    assert counters.mean_acceptance_length == 3.0  # (2 + 4 + 0 accepted + 3 of the verifier's own) / 3
    assert counters.acceptance_rate_per_pos == [2 / 3, 2 / 3, 1 / 3, 1 / 3]
    assert counters.acceptance_hazard_per_pos == [1 / 3, 0.0, 1 / 2, 0.0]


def test_a_block_that_ends_the_answer_brings_no_token_of_the_verifier() -> None:
    counters = EdgeCounters("mid-heavy")
    counters.observe(3, 3, bonus=0)
    assert counters.mean_acceptance_length == 3.0


def test_a_position_never_tested_has_no_hazard() -> None:
    counters = counted("mid-heavy", [(3, 0)])
    assert counters.acceptance_hazard_per_pos[0] == 1.0
    assert all(math.isnan(hazard) for hazard in counters.acceptance_hazard_per_pos[1:])
    assert counters.to_dict()["acceptance_hazard_per_pos"] == [1.0, None, None]
    assert math.isnan(EdgeCounters("e").acceptance_rate)


@pytest.mark.parametrize("bad", [(2, 3, 1), (2, -1, 1), (2, 1, -1)])
def test_impossible_blocks_are_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(InputError):
        EdgeCounters("e").observe(*bad)


@settings(max_examples=50, deadline=None)
@given(BLOCKS, BLOCKS)
def test_merging_is_counting_everything_in_one_place(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    merged = counted("e", first).merge(counted("e", second))
    assert merged == counted("e", first + second)
    assert merge_edges([counted("e", first), counted("f", second), counted("e", second)]) == {
        "e": merged,
        "f": counted("f", second),
    }


@settings(max_examples=50, deadline=None)
@given(BLOCKS)
def test_the_hazard_is_one_minus_the_chance_to_go_on(blocks: list[tuple[int, int]]) -> None:
    counters = counted("e", blocks)
    for position, hazard in enumerate(counters.acceptance_hazard_per_pos):
        tested = [a for d, a in blocks if d > position and a >= position]
        if tested:
            assert hazard == sum(a == position for a in tested) / len(tested)
        else:
            assert math.isnan(hazard)


@settings(max_examples=50, deadline=None)
@given(BLOCKS)
def test_counters_survive_json_under_the_names_of_vllm(blocks: list[tuple[int, int]]) -> None:
    counters = counted("light-mid", blocks)
    snapshot = json.loads(json.dumps(counters.to_dict(), allow_nan=False))
    assert edge_counters(snapshot) == counters
    assert snapshot["edge"] == "light-mid"
    for name in ("num_drafts", "num_draft_tokens", "num_accepted_tokens", "num_accepted_tokens_per_pos"):
        assert snapshot[f"spec_decode_{name}"] == getattr(counters, name)
    with pytest.raises(InputError):
        edge_counters({"edge": "light-mid"})


def test_counters_of_different_edges_do_not_mix() -> None:
    with pytest.raises(InputError):
        EdgeCounters("a-b").merge(EdgeCounters("b-c"))


def test_a_histogram_counts_inclusive_buckets_and_interpolates() -> None:
    histogram = Histogram("ttft_ms", [10, 20, 40])
    for value in (1, 10, 15, 30, 41):
        histogram.observe(value)
    assert histogram.counts == [2, 1, 1, 1]
    assert (histogram.count, histogram.total) == (5, 97)
    assert histogram.quantile(0.2) == 5.0
    assert histogram.quantile(0.6) == 20.0
    assert histogram.quantile(1.0) == math.inf
    assert math.isnan(Histogram("x", [1]).quantile(0.5))
    assert histogram.merge(histogram).counts == [4, 2, 2, 2]
    assert histogram.to_dict()["sum"] == 97
    with pytest.raises(InputError):
        histogram.merge(Histogram("ttft_ms", [10, 20]))
    with pytest.raises(InputError):
        Histogram("x", [2, 1])
