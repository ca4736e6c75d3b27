"""Trees between stages: what a verifier keeps of one, what is left of one that comes late, and who waits for what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade_runtime.config import TreeConfig, load_recipe
from cascade_runtime.errors import ConfigError
from cascade_runtime.messages import MAX_TREE_DEPTH, MAX_TREE_NODES, DraftBlock, Grant, Verdict, encode
from cascade_runtime.scheduling import branching
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.scheduling.from_recipe import patience_s, policy_from_recipe
from cascade_runtime.scheduling.rounds import Rounds
from cascade_runtime.scheduling.stage_scheduler import StageScheduler
from cascade_runtime.scheduling.standing import Standing
from cascade_runtime.scheduling.work import Grown, Work

#        10 -- 12 -- 14
#       /   \- 13
# prefix
#       \ 11 -- 15
TOKENS, PARENTS = (10, 11, 12, 13, 15, 14), (-1, -1, 0, 0, 1, 2)


def standing(**changes: Any) -> Standing:
    given: dict[str, Any] = {"stage": 1, "limit": 40, "vocab_size": 100, "ends": frozenset({99}), "window": 16}
    return Standing(request=1, epoch=0, **(given | changes))


def tree(
    base: int = 0, ack: int = 0, tokens: tuple[int, ...] = TOKENS, parents: tuple[int, ...] = PARENTS
) -> DraftBlock:
    return DraftBlock(1, 0, base, tokens, (1,) * len(tokens), ack, True, parents=parents)


# -- branches --------------------------------------------------------------------------------------------------------

trees = st.integers(0, 20).flatmap(
    lambda count: st.tuples(
        st.tuples(*(st.integers(0, 3) for _ in range(count))),
        st.tuples(*(st.integers(-1, i - 1) for i in range(count))),
    )
)


def path_to(node: int, tokens: Any, parents: Any) -> tuple[int, ...]:
    return () if node < 0 else (*path_to(parents[node], tokens, parents), tokens[node])


@given(trees, st.lists(st.integers(0, 3), max_size=6))
def test_walking_and_what_lies_below_is_what_the_paths_say(tree: Any, path: list[int]) -> None:
    tokens, parents = tree
    paths = [path_to(node, tokens, parents) for node in range(len(tokens))]
    assert branching.depths(parents) == [len(each) - 1 for each in paths]
    root = branching.walk(tokens, parents, path)
    if root is None:
        first = branching.child(tokens, parents, -1, path[0])
        assert first is None or branching.walk(tokens[:], parents, path[:1]) == first
        return
    assert (paths[root] if root >= 0 else ()) == tuple(path)
    nodes = branching.below(parents, root)
    kept, above = [tokens[node] for node in nodes], branching.among(parents, nodes)
    assert [(*path, *path_to(at, kept, above)) for at in range(len(nodes))] == [paths[node] for node in nodes]
    assert all(-1 <= parent < at for at, parent in enumerate(above))
    hanging = [node for node in range(len(tokens)) if node > root and _hangs(node, root, parents)]
    assert nodes == hanging


def _hangs(node: int, root: int, parents: Any) -> bool:
    while node >= 0:
        node = parents[node]
        if node == root:
            return True
    return False


@given(trees, st.data())
def test_what_is_followed_is_what_the_choices_say(tree: Any, data: st.DataObject) -> None:
    tokens, parents = tree
    choices = data.draw(st.lists(st.integers(0, 3), min_size=len(tokens) + 1, max_size=len(tokens) + 1))
    path = branching.follow(tokens, parents, choices)
    above = -1
    for node in path:
        assert parents[node] == above and tokens[node] == choices[above + 1]
        above = node
    assert branching.child(tokens, parents, above, choices[above + 1]) is None


def test_shallow_first_and_among() -> None:
    assert branching.shallow(PARENTS, 2, 9) == [0, 1, 2, 3, 4] and branching.shallow(PARENTS, 1, 9) == [0, 1]
    assert branching.shallow(PARENTS, 9, 3) == [0, 1, 2] and branching.shallow(PARENTS, 9, -1) == []
    assert branching.first_path(PARENTS) == [0, 2, 5] and branching.first_path(()) == []
    assert branching.among(PARENTS, [0, 3]) == [-1, 0]


# -- a verifier ------------------------------------------------------------------------------------------------------


def test_a_pass_keeps_the_path_that_agrees_and_adds_the_own_choice() -> None:
    row = standing()
    assert row.on_drafts(tree())
    work = row.work(63)
    assert work == Work((), TOKENS, (1,) * 6, PARENTS) and work.depth == 3
    settled = row.settle(work, [10, 12, 0, 55, 0, 0, 0])  # after the prefix 10, after node 0 12, after node 2 55
    assert settled is not None and (settled.drafted, settled.accepted, settled.added) == (3, 2, (10, 12, 55))
    assert row.prefix == [10, 12, 55] and row.stages == [0b11, 0b11, 0b10] and row.hints == []
    assert row.verdict() == Verdict(1, 0, 1, 0, (10, 12, 55), (0b11, 0b11, 0b10))
    assert row.drafts() == DraftBlock(1, 0, 0, (10, 12, 55), (0b11, 0b11, 0b10), 0)  # on to the next: a chain


def test_an_end_of_sequence_inside_a_tree_ends_the_answer() -> None:
    row = standing(window=None)
    row.on_drafts(tree(tokens=(10, 99, 12, 13), parents=(-1, 0, 1, 0)))
    settled = row.settle(row.work(63), [10, 99, 12, 0, 0])
    assert settled is not None and settled.added == (10, 99) and settled.accepted == 2 and row.blocked


@pytest.mark.parametrize(
    ("changes", "tokens", "parents"),
    [
        ({"limit": 3}, (10, 11, 12, 13, 15), (-1, -1, 0, 0, 1)),  # the third is the verifier's own
        ({"limit": 2}, (10, 11), (-1, -1)),
        ({"limit": 1}, (), ()),
        ({"slot": 4}, (10, 11, 12, 13), (-1, -1, 0, 0)),
        ({"slot": 0}, (), ()),
    ],
)
def test_a_tree_is_cut_to_what_the_answer_and_the_slot_have_room_for(changes: Any, tokens: Any, parents: Any) -> None:
    row = standing(**changes)
    row.on_drafts(tree())
    assert (row.work(63).drafts, row.work(63).parents) == (tokens, parents)
    assert row.work(0).drafts == ()


def test_of_a_tree_that_comes_late_what_lies_ahead_is_kept() -> None:
    row = standing(window=None)
    for token in (5, 10):  # it ran on, while the tree that hangs on 5 was grown
        row.settle(row.work(0), [token])
    assert row.on_drafts(tree(base=1))
    assert (row.hints, row.hint_parents, row.hint_stages) == ([12, 13, 14], [-1, -1, 0], [1, 1, 1])
    row.settle(row.work(63), [77, 0, 0, 0])
    assert not row.on_drafts(tree(base=1)) and row.hints == []  # it says nothing of 77
    assert not row.on_drafts(tree(base=4))  # beyond what is known
    assert not row.on_drafts(tree(base=3, tokens=(10, 100), parents=(-1, 0)))  # no such token


def test_a_tree_on_a_prefix_that_was_overruled_is_dropped() -> None:
    row = standing()
    row.settle(row.work(0), [5])
    assert row.verdict() is not None
    row.on_drafts(tree(base=1, ack=1))
    row.on_verdict(Verdict(1, 0, 1, 0, (6,), (4,)))  # downstream says 6
    assert row.hints == [] and row.prefix == [6]
    assert not row.on_drafts(tree(base=1, ack=1))
    assert row.verdict() is not None and row.on_drafts(tree(base=1, ack=2))


def test_what_downstream_adds_is_walked_along() -> None:
    row = standing()
    row.on_drafts(tree())
    assert not row.on_verdict(Verdict(1, 0, 1, 0, (10, 12), (4, 4)))
    assert (row.hints, row.hint_parents) == ([14], [-1])
    row.on_verdict(Verdict(1, 0, 2, 2, (15,), (4,)))
    assert (row.hints, row.hint_parents) == ([], None)


def test_relayed_is_the_path_of_first_children() -> None:
    row = standing()
    row.on_drafts(tree())
    assert row.relay() == 3 and row.prefix == [10, 12, 14] and row.stages == [1, 1, 1] and row.hints == []


def test_a_chain_replaces_a_tree_and_a_tree_a_chain() -> None:
    row = standing()
    row.on_drafts(tree())
    assert row.on_drafts(DraftBlock(1, 0, 0, (10,), (1,), 0)) and (row.hints, row.hint_parents) == ([10], None)
    assert row.on_drafts(tree()) and row.hint_parents == list(PARENTS)


# -- who grows it ----------------------------------------------------------------------------------------------------


def test_a_drafter_of_trees_says_one_and_waits_for_a_verdict_that_says_more() -> None:
    row = standing(stage=0)
    assert not row.blocked and row.drafts() is None
    row.plant(Grown(TOKENS, PARENTS))
    assert row.blocked and row.drafts(4, (7, 3)) == replace(tree(), pace_us=7, work_us=3) and row.drafts() is None
    row.on_verdict(Verdict(1, 0, 1, 0, (), (), grant=Grant(16)))  # nothing new: the same, for that verdict
    assert row.blocked and row.drafts() == tree(ack=1) and row.drafts() is None
    assert row.repeat_drafts() == tree(ack=1)
    row.on_verdict(Verdict(1, 0, 2, 0, (10, 77), (3, 2)))
    assert not row.blocked and row.prefix == [10, 77] and row.planted is None
    row.plant(Grown((1,), (-1,)))
    assert row.drafts() == tree(base=2, ack=2, tokens=(1,), parents=(-1,))


def test_an_empty_tree_is_said_too_so_that_nobody_waits() -> None:
    light, row = standing(stage=0), standing(window=None)
    row.verdict()
    light.on_verdict(row.repeat_verdict())
    light.plant(Grown((), ()))
    block = light.drafts()
    assert block == tree(ack=2, tokens=(), parents=())
    assert not row.on_drafts(block) and row.upstream_waits


def test_a_row_waits_for_its_tree_as_long_as_its_layers_may_take_and_takes_all_of_it() -> None:
    recipe = replace(load_recipe("light_heavy"), tree=TreeConfig(kind="opt", depth=6))
    assert patience_s(recipe, 1) == pytest.approx(6 * recipe.deadlines.upstream_s)
    assert patience_s(recipe, 0) == patience_s(load_recipe("light_heavy"), 1) == recipe.deadlines.upstream_s
    scheduler = StageScheduler(1, 2, policy_from_recipe(recipe, 1, StepCost(0.01, 0.0, 0.0)), 0.3)
    row = scheduler.admit(standing(window=None), 0.0)
    (prefill,) = scheduler.next_batch(0.0)
    list(scheduler.settle([prefill], [[5]], 0.01))
    assert scheduler.next_batch(0.2) == [] and scheduler.wake_at(0.2, 5.0) == pytest.approx(0.31)
    scheduler.on_drafts(tree(base=1), 0.2)
    (task,) = scheduler.next_batch(0.2)
    assert task.work.parents == PARENTS
    (settled,) = scheduler.settle([task], [[11, 0, 15, 0, 0, 8, 0]], 0.3)
    assert settled.added == (11, 15, 8) and row.restarted == 0.3
    assert scheduler.next_batch(0.5) == [] and [each.row for each in scheduler.next_batch(0.61)] == [row]


def test_the_wire_and_the_recipes_allow_the_same_trees() -> None:
    TreeConfig(kind="opt", nodes=MAX_TREE_NODES, depth=MAX_TREE_DEPTH)
    for name, value in (("nodes", MAX_TREE_NODES + 1), ("depth", MAX_TREE_DEPTH + 1)):
        with pytest.raises(ConfigError, match=name):
            TreeConfig(kind="opt", **{name: value})  # type: ignore[arg-type]


def test_chains_cost_the_bytes_they_always_did() -> None:
    chain = DraftBlock(7, 0, 1, (17, 4), (1, 1), 3)
    assert (
        encode(chain).hex()
        == "01000000000000000700000000000000030000000100000002000000000000000000000011000000040000000101"
    )
    assert len(encode(replace(chain, parents=(-1, 0)))) == len(encode(chain)) + 2


# -- whether it is worth it ------------------------------------------------------------------------------------------


def measured(with_trees: float, alone: float, passes: int) -> tuple[Rounds, list[bool]]:
    """A policy to which a row's token costs so many seconds with trees and without; what it wanted, pass by pass."""
    policy, wanted = Rounds(measures=True), list[bool]()
    for _ in range(passes):
        policy.observe_pace(3 * with_trees if policy.drafting else alone, 3 if policy.drafting else 1)
        policy.passed()
        wanted.append(policy.drafting)
    return policy, wanted


def test_trees_that_bring_less_than_decoding_alone_are_left_and_tried_again() -> None:
    policy, wanted = measured(0.02, 0.01, 2_000)
    assert not policy.decision.speculate and policy.decision.tokens_per_s_alone == pytest.approx(100)
    assert 0 < sum(wanted[200:]) < 0.1 * len(wanted[200:])  # tried, and seldom
    assert policy.grant(None) == Grant(0) and policy.need(None) == policy.limit(None) == 0  # type: ignore[arg-type]


def test_trees_that_bring_more_are_kept_and_being_alone_is_tried_ever_less() -> None:
    policy, wanted = measured(0.01, 0.02, 4_000)
    assert policy.decision.speculate and policy.decision.tokens_per_s == pytest.approx(100)
    assert 0 < 4_000 - sum(wanted) < 0.05 * 4_000
    assert wanted[3_000:].count(False) <= wanted[:1_000].count(False)


def test_a_fixed_policy_tries_nothing() -> None:
    policy = Rounds()
    for _ in range(500):
        policy.observe_pace(1.0, 1)
        policy.passed()
        assert policy.drafting
