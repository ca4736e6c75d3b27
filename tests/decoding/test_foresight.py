"""What is drafted for an outcome before it comes is what would have been drafted after it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from toy_heads import END, GREEDY, new_decoder, toy_prompt, toy_target

from cascade_runtime.config import SamplingParams, TreeConfig
from cascade_runtime.decoding.row import Extension
from cascade_runtime.decoding.trees import Duo, Foresight, Grower, Tree, shape_of
from cascade_runtime.decoding.trees.grower import Growing
from cascade_runtime.errors import ConfigError

SAMPLED = SamplingParams(temperature=0.9, seed=4, max_tokens=60)
CHAIN = TreeConfig(kind="static", widths=[1], depth=3, nodes=3, outcomes=9)
DUO = TreeConfig(kind="duo", width=3, depth=3, nodes=9, outcomes=1)
WIDE = TreeConfig(kind="eagle2", width=2, depth=2, nodes=5, outcomes=6)


@pytest.fixture(scope="module")
def language():
    return toy_target()


def drafter(language, config: TreeConfig):
    decoder = new_decoder(language)
    grower = Grower(decoder, shape_of(config), (END,))
    return decoder, grower, Foresight(grower, decoder, config.outcomes)


def all_of(foresight: Foresight) -> int:
    passes = 0
    while foresight.pass_ahead():
        passes += 1
    return passes


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("config", [CHAIN, DUO, WIDE], ids=lambda config: config.kind)
def test_a_foreseen_tree_is_the_one_that_would_be_grown(language, config, sampling) -> None:
    rng, hits, misses, lengths = random.Random(2), 0, 0, set()
    decoder, grower, foresight = drafter(language, config)
    plain, other, _ = drafter(language, config)
    rows = [decoder.admit(toy_prompt(seed), sampling) for seed in range(2)]
    fresh = [plain.admit(toy_prompt(seed), sampling) for seed in range(2)]
    prefixes: list[list[int]] = [[3], [5, 7]]
    trees: list[Tree | None] = [None, None]
    for _ in range(30):
        for at, (row, prefix) in enumerate(zip(rows, prefixes, strict=True)):
            if trees[at] is None:
                (trees[at],) = grower.grow([row], [prefix], [9])
            (wanted,) = other.grow([fresh[at]], [prefix], [9])
            assert (trees[at].tokens, trees[at].parents) == (wanted.tokens, wanted.parents)
            assert trees[at].values == pytest.approx(wanted.values, abs=1e-3)
            foresight.planted(at, row, prefix, trees[at], 9)
        all_of(foresight)
        for at, prefix in enumerate(prefixes):  # the verdict: a few of the path, and a token that may be any
            path = foresight._waiting[at].path
            kept = rng.randrange(len(path) + 1)
            outcomes = foresight._waiting[at].outcomes
            big = foresight._waiting[at].big.tree
            likely = [big.tokens[each.root] for each in outcomes if big.depths[each.root] == kept]
            own = rng.choice(likely) if likely and rng.random() < 0.7 else rng.randrange(22)
            prefix += [*path[:kept], own]
            if own == END or END in path[:kept]:
                prefix.remove(END)
            begun = foresight.came_true(at, prefix, 9)
            fed = decoder.tokens_fed
            trees[at] = None if begun is None else grower.finish([begun])[0]
            assert decoder.tokens_fed == fed  # nothing was left to do
            hits, misses = hits + (trees[at] is not None), misses + (trees[at] is None)
            lengths.add(kept)
            if len(prefix) > 50:
                del prefix[3:]
                trees[at] = None
    assert hits > 3 and misses > 3 and len(lengths) > 2
    assert (foresight.hits, foresight.misses) == (hits, misses)


def test_outcomes_are_the_likeliest_other_tokens_after_each_kept_draft(language) -> None:
    decoder, grower, foresight = drafter(language, CHAIN)
    row = decoder.admit(toy_prompt(0), GREEDY)
    (tree,) = grower.grow([row], [[3, 8]], [9])
    foresight.planted(1, row, [3, 8], tree, 9)
    assert foresight.pass_ahead() == [1]
    plain = new_decoder(language)
    logits = plain.look([Extension(plain.admit(toy_prompt(0), GREEDY), [3, 8], tree.tokens)])[0]
    wanted = set[tuple[int, ...]]()
    for k, count in enumerate(foresight.fan_out(3)):
        likely = [token for token in logits[k].topk(12).indices.tolist() if [token] != tree.tokens[k : k + 1]]
        wanted |= {(*tree.tokens[:k], token) for token in likely[:count]}
    big, found = foresight._waiting[1].big.tree, set[tuple[int, ...]]()
    for each in foresight._waiting[1].outcomes:
        node, path = each.root, list[int]()
        while node >= 0:
            path.insert(0, big.tokens[node])
            node = big.parents[node]
        found.add(tuple(path))
    assert found == wanted and len(found) == CHAIN.outcomes


def test_outcomes_are_shared_out_as_theorem_12_says(language) -> None:
    foresight = drafter(language, replace(CHAIN, outcomes=32))[2]
    foresight._kept, foresight._tested = 64.0, 100.0  # a = .64, r = 1: .8 ** k, the last / .6
    weights = [1.0, 0.8, 0.64, 0.512 / 0.6]
    wanted = [32 * each / sum(weights) for each in weights]
    assert all(abs(count - share) < 1 for count, share in zip(foresight.fan_out(3), wanted, strict=True))
    assert sum(foresight.fan_out(3)) == 32
    foresight._kept = 95.0
    assert foresight.fan_out(3)[3] > 2 * foresight.fan_out(3)[0]
    one = drafter(language, replace(CHAIN, outcomes=1))[2]
    assert all(one.fan_out(drafted) == [0] * drafted + [1] for drafted in (3, 8, 16))
    one._learn([1, 2, 3], [1])  # the verdict came before the tree: the second draft was not tested
    assert one._kept / one._tested > 0.8
    for said, share in (([1, 2, 3, 9], 1.0), ([1, 7], 0.5), ([7], 0.0)):
        before = one._kept / one._tested
        one._learn([1, 2, 3], said)
        assert (one._kept / one._tested > before) == (share > before)


def test_what_was_not_foreseen_is_not_there(language) -> None:
    decoder, grower, foresight = drafter(language, CHAIN)
    row = decoder.admit(toy_prompt(0), GREEDY)
    (tree,) = grower.grow([row], [[3]], [9])
    foresight.planted(1, row, [3], tree, 9)
    assert foresight.came_true(1, [3, *tree.tokens, 2], 9) is None  # nobody has had time to look
    assert foresight.came_true(1, [3, *tree.tokens, 2], 9) is None and not foresight.pass_ahead()
    foresight.planted(1, row, [3], tree, 9)
    all_of(foresight)
    assert foresight.came_true(1, [4, *tree.tokens, 2], 9) is None  # another answer
    foresight.planted(1, row, [3], tree, 9)
    all_of(foresight)
    assert foresight.came_true(1, [3], 9) is None  # no more than before
    foresight.planted(1, row, [3], tree, 9)
    foresight.forget(1)
    assert not foresight.pass_ahead()
    foresight.planted(1, row, [3], tree, 9)
    decoder.release(row)
    assert not foresight.pass_ahead()


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("config", [replace(CHAIN, depth=6, nodes=6), DUO, WIDE], ids=lambda config: config.kind)
@pytest.mark.parametrize("window", [None, 2], ids=["free", "tight"])
def test_what_has_begun_grows_on_from_there(language, config, sampling, window) -> None:
    """Also where the drafter was not allowed to look further ahead: by a verdict it is."""
    fed = list[int]()
    for passes in range(1, 9):
        decoder, grower, foresight = drafter(language, config)
        row = decoder.admit(toy_prompt(3), sampling)
        (tree,) = grower.grow([row], [[3]], [30])
        foresight.planted(1, row, [3], tree, 30 if window is None else 1 + max(tree.depths) + 1 + window)
        for _ in range(passes):
            foresight.pass_ahead()
        path, big = foresight._waiting[1].path, foresight._waiting[1].big.tree
        said = next(
            big.tokens[each.root] for each in foresight._waiting[1].outcomes if big.depths[each.root] == len(path)
        )
        prefix = [3, *path, said]
        begun, before = foresight.came_true(1, prefix, 30), decoder.tokens_fed
        assert (begun is None) == (passes == 1)
        (found,) = grower.finish([begun]) if begun else grower.grow([row], [prefix], [30])
        fed.append(decoder.tokens_fed - before)
        plain, other, _ = drafter(language, config)
        (wanted,) = other.grow([plain.admit(toy_prompt(3), sampling)], [prefix], [30])
        assert (found.tokens, found.parents) == (wanted.tokens, wanted.parents)
        (shorter,) = grower.finish([Growing(row, prefix, 1, found, (), config.depth)])
        assert max(shorter.depths) == 0
    assert fed[0] > fed[1] and sorted(fed, reverse=True) == fed
    assert (fed[-1] == 0) == (window is None or window >= config.depth)


def test_an_outcome_for_which_a_slot_has_no_room_waits(language) -> None:
    decoder, grower, foresight = drafter(language, replace(CHAIN, outcomes=30))
    row = decoder.admit(toy_prompt(0), GREEDY)
    prefix = [1 + i % 20 for i in range(decoder.cache.max_len - len(row.prompt) - 8)]
    (tree,) = grower.grow([row], [prefix], [9])
    foresight.planted(1, row, prefix, tree, 9)
    all_of(foresight)
    outcomes = foresight._waiting[1].outcomes
    assert any(each.tree.tokens for each in outcomes)
    assert [each.layer for each in outcomes if not each.tree.tokens] == [[-1]] * sum(
        not each.tree.tokens for each in outcomes
    )
    assert not foresight.pass_ahead() and row.held <= decoder.cache.max_len


def test_foresight_ends_where_the_slot_or_the_answer_does(language) -> None:
    decoder, grower, foresight = drafter(language, CHAIN)
    row = decoder.admit(toy_prompt(0), GREEDY)
    prefix = [1 + i % 20 for i in range(decoder.cache.max_len - len(row.prompt) - 8)]
    (tree,) = grower.grow([row], [prefix], [9])
    foresight.planted(1, row, prefix, tree, 9)
    all_of(foresight)
    assert row.held <= decoder.cache.max_len
    short = decoder.admit(toy_prompt(1), GREEDY)
    (tree,) = grower.grow([short], [[3]], [3])
    foresight.planted(2, short, [3], tree, 3)
    all_of(foresight)
    big = foresight._waiting[2].big.tree
    assert max(big.depths) <= 3  # an outcome, and drafts within what the answer may still grow by


def test_chains_side_by_side_are_those_that_two_tokens_leave_open() -> None:
    shape, tree = Duo(width=3, depth=3), Tree()
    assert shape.grows(tree, [-1], 0) == [(-1, 3)]
    for step in (-0.5, -1.2, -2.5):
        tree.add(len(tree), -1, step)
    assert shape.grows(tree, [0, 1, 2], 1) == [(0, 1), (1, 1), (2, 1)]
    for node, step in enumerate((-1.0, -0.1, -0.1)):
        tree.add(10, node, step)  # p_11 p_21 = exp(-1.5): the third chain, exp(-2.5), is less probable
    assert shape.grows(tree, [3, 4, 5], 2) == [(3, 1), (4, 1)]
    for node in (3, 4):
        tree.add(11, node, -0.1)
    assert shape.grows(tree, [6, 7], 3) == []
    assert shape.kept(tree).tokens == [0, 1, 10, 10, 11, 11] and shape.kept(tree).parents == [-1, -1, 0, 1, 2, 3]
    alone = Tree.of([4], [-1])
    assert shape.kept(alone).tokens == [4]


def test_settings_that_do_not_fit_are_refused_by_name() -> None:
    for change, field in (
        ({"kind": "duo", "width": 4, "depth": 8, "nodes": 24}, "tree.nodes"),
        ({"kind": "opt", "outcomes": 33}, "tree.outcomes"),
        ({"kind": "sampled", "widths": [2], "depth": 2, "outcomes": 1}, "tree.outcomes"),
    ):
        with pytest.raises(ConfigError, match=field):
            TreeConfig(**change)
