"""Trees of drafts: what grows, what is kept, what is accepted; and a cascade with trees says what its target says."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from toy_family import KINDS, toy_recipe, toy_requests, write_toy_family

from cascade_runtime.api import Answer
from cascade_runtime.config import SamplingParams, TreeConfig, load_recipe
from cascade_runtime.decoding.choice import choose
from cascade_runtime.decoding.trees import Eagle2, OptTree, Static, Talon, Tree
from cascade_runtime.decoding.trees.grower import likeliest
from cascade_runtime.engine import Engine
from cascade_runtime.errors import ConfigError

STATIC = TreeConfig(kind="static", widths=[3, 2], depth=4, nodes=20)
EAGLE = TreeConfig(kind="eagle2", width=3, depth=4, nodes=14)
OPT = TreeConfig(kind="opt", width=3, depth=6, nodes=14, threshold=0.1)
TALON = TreeConfig(kind="talon", width=3, depth=6, nodes=14, threshold=0.3)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return write_toy_family(tmp_path_factory.mktemp("toy"))


def grown(shape, steps, *, room=99):
    """The tree that a shape grows where every node's children have these probabilities, named by their rank."""
    tree, layer, depth = Tree(), [-1], 0
    while layer and depth < room:
        grows, layer = shape.grows(tree, layer, depth), []
        for node, width in grows:
            layer += [tree.add(rank, node, math.log(p)) for rank, p in enumerate(steps[:width])]
        depth += 1
    return shape.kept(tree)


# -- what grows ------------------------------------------------------------------------------------------------------


def test_a_static_tree_is_a_chain_with_siblings():
    tree = grown(Static((3, 2), depth=4, nodes=20), [0.6, 0.3, 0.1])
    assert tree.tokens == [0, 1, 2, 0, 1, 0, 0]
    assert tree.parents == [-1, -1, -1, 0, 0, 3, 5]
    assert tree.depths == [0, 0, 0, 1, 1, 2, 3]
    assert grown(Static((1,), depth=5, nodes=20), [0.6]).parents == [-1, 0, 1, 2, 3]


def test_eagle2_keeps_the_most_probable_paths():
    tree = grown(Eagle2(width=2, depth=3, nodes=5), [0.6, 0.4])
    paths = sorted(math.exp(value) for value in tree.values)
    # of .6 .4 | .36 .24 .24 .16 | .216 .144 .144 .096: the two likeliest of each layer grew
    assert [round(each, 3) for each in paths] == [0.216, 0.24, 0.36, 0.4, 0.6] or [round(e, 3) for e in paths] == [
        *(0.24, 0.24, 0.36, 0.4, 0.6)
    ]
    assert all(parent < node for node, parent in enumerate(tree.parents))


def test_opt_stops_when_a_layer_is_not_worth_it():
    steps = [0.5, 0.2]  # a layer adds .7 + .49 + .. of the one before as long as the nodes last
    deep = grown(OptTree(width=2, depth=9, nodes=50, threshold=0.05), steps)
    shallow = grown(OptTree(width=2, depth=9, nodes=50, threshold=0.4), steps)
    assert max(shallow.depths) == 2 < max(deep.depths) < 8  # .7, .49 > .4; the third, .33, is the last that is grown
    assert max(grown(OptTree(width=2, depth=9, nodes=1, threshold=0.05), steps).depths) == 0


def test_talon_grows_what_is_nearly_as_probable_as_the_best_of_its_layer_until_the_budget_is_spent():
    even = grown(Talon(width=2, depth=9, nodes=7, gate=0.5), [0.5, 0.3])
    # .5 .3 | .25 .15 .15 (of .25 .15 .15 .09): all but one are at least half of the best | and two of .125 ..
    assert [round(math.exp(value), 3) for value in sorted(even.values, reverse=True)] == [
        *(0.5, 0.3, 0.25, 0.15, 0.15, 0.125, 0.075)
    ]
    assert even.depths == [0, 0, 1, 1, 1, 2, 2]
    sure = grown(Talon(width=2, depth=9, nodes=7, gate=0.5), [0.9, 0.1])
    assert (sure.tokens, sure.depths) == ([0] * 7, list(range(7)))  # one path, as long as the budget
    assert max(grown(Talon(width=2, depth=3, nodes=7, gate=0.5), [0.9, 0.1]).depths) == 2


def test_the_best_nodes_hang_together_and_add_up():
    tree = Tree.of([5, 6, 7, 8], [-1, 0, -1, 2], [math.log(p) for p in (0.5, 0.2, 0.4, 0.9)])
    kept = tree.best(3)
    assert (kept.tokens, kept.parents) == ([5, 7, 8], [-1, -1, 1])
    assert [round(math.exp(value), 3) for value in kept.values] == [0.5, 0.4, 0.36]


def test_a_verifier_follows_its_own_choices():
    tree = Tree.of([5, 6, 5, 8, 9], [-1, -1, 1, 2, 2])
    assert tree.follow([6, 0, 5, 9, 0, 0]) == [1, 2, 4]
    assert tree.follow([6, 0, 7, 9, 0, 0]) == [1]
    assert tree.follow([7, 0, 0, 0, 0, 0]) == []
    assert Tree().follow([3]) == []


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=0.9, seed=4, top_k=5)])
def test_the_first_child_is_what_the_drafter_says_and_the_others_follow_with_the_same_noise(params):
    torch.manual_seed(0)
    logits = torch.randn(40)
    pairs = likeliest(logits, params, 7, 4)
    assert [pairs[0][0]] == choose(logits[None], [params], [7])
    assert [value for _, value in pairs] == sorted((value for _, value in pairs), reverse=True)
    assert sum(math.exp(value) for _, value in pairs) < 1
    without = logits.clone()
    without[pairs[0][0]] = -1e9  # what it would say if it could not say the first
    assert [pairs[1][0]] == choose(without[None], [replace(params, top_k=params.top_k and 4)], [7])
    assert likeliest(torch.full((40,), torch.nan), params, 7, 4) == []


# -- a cascade -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", [STATIC, EAGLE, OPT, TALON], ids=lambda tree: tree.kind)
@pytest.mark.parametrize("light", KINDS[1:])
def test_a_cascade_with_trees_says_what_its_target_says(family, light, tree):
    requests = toy_requests(12)
    alone = Engine.load(toy_recipe(family, [])).generate(requests)
    two = Engine.load(replace(toy_recipe(family, [light]), tree=tree))
    three = Engine.load(replace(toy_recipe(family, [light, "noisy"]), tree=tree))
    for engine in (two, three):
        answers = engine.generate(requests)
        assert [a.token_ids for a in answers] == [a.token_ids for a in alone]
        assert all(level.decoder.free_slots == 4 for level in engine.levels)
    if light == "identical" and tree.kind == "static":
        assert all(a.edges[0].num_accepted_tokens == a.edges[0].num_draft_tokens for a in two.generate(requests))


def test_siblings_are_accepted_where_the_first_is_wrong(family):
    """The same drafter, as deep: a tree takes fewer passes of the target than a chain, greedy and sampled."""
    requests = [r for r in toy_requests(24) if not r.sampling.stop]
    chain = replace(toy_recipe(family, ["noisy"]), tree=TreeConfig(kind="static", widths=[1], depth=4))
    bushy = replace(chain, tree=replace(EAGLE, width=4, nodes=24))
    for temperature in (0.0, 1.0):
        asked = [replace(r, sampling=replace(r.sampling, temperature=temperature)) for r in requests]
        answers = [Engine.load(recipe).generate(asked) for recipe in (chain, bushy)]
        passes = [sum(a.target_passes for a in each if isinstance(a, Answer)) for each in answers]
        assert passes[1] < 0.9 * passes[0]


def test_a_drafter_of_broken_numbers_is_left_out(family):
    engine = Engine.load(replace(toy_recipe(family, ["noisy"]), tree=EAGLE))
    alone = Engine.load(toy_recipe(family, [])).generate(toy_requests(6))
    with torch.no_grad():
        engine.levels[0].model.language.norm._weight.fill_(float("nan"))
    assert [a.token_ids for a in engine.generate(toy_requests(6))] == [a.token_ids for a in alone]
    assert engine.levels[0].decoder.free_slots == 4


# -- what is refused -------------------------------------------------------------------------------------------------


def test_trees_are_for_models_in_front_of_others():
    with pytest.raises(ConfigError, match=r"tree.*lightest of several"):
        load_recipe("heavy", ["tree.kind=eagle2"])
    with pytest.raises(ConfigError, match=r"tree.*lightest of several"):
        load_recipe("lookup_heavy", ["tree.kind=eagle2"])
    with pytest.raises(ConfigError, match=r"tree\.kind.*static, eagle2, opt"):
        load_recipe("light_heavy", ["tree.kind=bush"])
    with pytest.raises(ConfigError, match=r"tree\.nodes"):
        load_recipe("light_heavy", ["tree.kind=opt", "tree.nodes=64"])
    with pytest.raises(ConfigError, match=r"tree\.widths"):
        load_recipe("light_heavy", ["tree.kind=static", "tree.widths=[0]"])
