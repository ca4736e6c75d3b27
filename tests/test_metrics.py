"""Acceptance figures by hand-computed values."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_runtime.errors import InputError
from cascade_runtime.metrics import EdgeCounters, merge_edges, prometheus_text

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


def test_counters_are_plain_json_under_the_names_of_vllm() -> None:
    counters = counted("light-mid", [(3, 1), (2, 2)])
    assert json.loads(json.dumps(counters.to_dict(), allow_nan=False)) == {
        "edge": "light-mid",
        "spec_decode_num_drafts": 2,
        "spec_decode_num_draft_tokens": 5,
        "spec_decode_num_accepted_tokens": 3,
        "spec_decode_num_bonus_tokens": 2,
        "spec_decode_num_draft_tokens_per_pos": [2, 2, 1],
        "spec_decode_num_accepted_tokens_per_pos": [2, 1, 0],
        "spec_decode_num_tested_tokens_per_pos": [2, 2, 0],
        "acceptance_rate": 0.6,
        "mean_acceptance_length": 2.5,
        "acceptance_rate_per_pos": [1.0, 0.5, 0.0],
        "acceptance_hazard_per_pos": [0.0, 0.5, None],
    }


def test_counters_of_different_edges_do_not_mix() -> None:
    with pytest.raises(InputError):
        EdgeCounters("a-b").merge(EdgeCounters("b-c"))


def stage_stats(edge: EdgeCounters, **changes: object) -> dict:
    decision = {"min_drafts": 4, "window": 16, "speculate": True, "relay": False, "reason": 'most "tokens"\\s'}
    return {
        "passes": 12,
        "tokens_fed": 34_567_891,
        "busy_s": 1.25,
        "awake_s": 1.5,
        "refused_messages": 0,
        "active_rows": 2,
        "free_slots": 6,
        "edge": edge.to_dict(),
        "decision": decision | {"tokens_per_s": 210.5, "tokens_per_s_alone": 0.0},
        **changes,
    }


def test_replicas_of_a_stage_count_together_where_an_edge_is_counted() -> None:
    controller = {"running": 0, "waiting": 0, "cancelled": 0, "draining": False}
    edges = {"heavy": counted("light-heavy", [(3, 1), (2, 2)]), "heavy.2": counted("light-heavy", [(4, 4)])}
    stages = {name: stage_stats(EdgeCounters("light")) for name in ("light", "light.2")}
    stages |= {name: stage_stats(edge) for name, edge in edges.items()}
    lines = prometheus_text({"controller": controller, **stages}).splitlines()
    for line in (
        'vllm:spec_decode_num_drafts_total{edge="light-heavy"} 3',
        'vllm:spec_decode_num_accepted_tokens_total{edge="light-heavy"} 7',
        'cascade:stage_busy_seconds_total{stage="heavy.2"} 1.25',
    ):
        assert lines.count(line) == 1, line
    names = [line.partition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(set(names)) == len(names) and not any('edge="light"' in name for name in names)


def test_prometheus_text_keeps_the_names_of_vllm_and_adds_the_edge() -> None:
    controller = {"running": 3, "waiting": 1, "cancelled": 2, "draining": False}
    edge = counted("light-mid", [(3, 1), (2, 2)])
    text = prometheus_text(
        {"controller": controller, "light": stage_stats(EdgeCounters("light")), "mid": stage_stats(edge)}
    )
    lines = text.splitlines()
    for line in (
        "vllm:num_requests_running 3",
        "vllm:num_requests_waiting 1",
        "cascade:num_requests_cancelled_total 2",
        'vllm:spec_decode_num_drafts_total{edge="light-mid"} 2',
        'vllm:spec_decode_num_draft_tokens_total{edge="light-mid"} 5',
        'vllm:spec_decode_num_accepted_tokens_total{edge="light-mid"} 3',
        'vllm:spec_decode_num_accepted_tokens_per_pos_total{edge="light-mid",position="1"} 1',
        'cascade:spec_decode_num_tested_tokens_per_pos_total{edge="light-mid",position="2"} 0',
        'cascade:stage_tokens_fed_total{stage="mid"} 34567891',
        'cascade:stage_busy_seconds_total{stage="mid"} 1.25',
        'cascade:policy_min_drafts{stage="mid"} 4',
        'cascade:policy_window{stage="light"} 16',
        'cascade:policy_speculate{stage="mid"} 1',
        'cascade:policy_relay{stage="mid"} 0',
        r'cascade:policy_info{stage="mid",reason="most \"tokens\"\\s"} 1',
        "# TYPE vllm:spec_decode_num_drafts_total counter",
        "# TYPE cascade:stage_active_rows gauge",
    ):
        assert lines.count(line) == 1, line
    assert 'edge="light"' not in text  # nobody drafts for the first stage
    assert text.endswith("\n") and len({line for line in lines if line.startswith("#")}) == sum(
        line.startswith("#") for line in lines
    )
