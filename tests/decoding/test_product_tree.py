"""Trees hold the nodes that are worth most, parents before children, each worth the product along its path."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from toy_heads import paths

from cascade_runtime.decoding.trees import Tree
from cascade_runtime.decoding.trees.product import product_tree


def random_choices(depth: int, width: int, seed: int) -> list[list[tuple[int, float]]]:
    rng = random.Random(seed)
    out = []
    for _ in range(depth):
        weights = [rng.random() for _ in range(width)]
        made = [(token, math.log(weight / sum(weights))) for token, weight in enumerate(weights)]
        out.append(sorted(made, key=lambda each: -each[1]))
    return out


@pytest.mark.parametrize("budget", [1, 4, 11, 40, 200])
def test_a_product_tree_is_the_best_of_all_paths(budget: int) -> None:
    choices = random_choices(3, 5, seed=budget)
    worth = {
        tuple(token for token, _ in path): sum(value for _, value in path)
        for depth in (1, 2, 3)
        for path in itertools.product(*choices[:depth])
    }
    best = sorted(worth, key=lambda path: -worth[path])[:budget]
    found = paths(product_tree(choices, budget, ends=()))
    assert set(found) == set(best)
    assert all(found[path] == pytest.approx(worth[path]) for path in best)


def test_nothing_follows_an_end() -> None:
    choices = random_choices(3, 4, seed=3)
    found = paths(product_tree(choices, 1000, ends={2}))
    assert len(found) == (3 * 3 * 4) + (3 * 4) + 4
    assert not [path for path in found if 2 in path[:-1]]


def test_a_chain_is_a_product_tree_of_single_choices() -> None:
    tree = product_tree([each[:1] for each in random_choices(4, 4, seed=5)], 10, ends=())
    assert tree.parents == [-1, 0, 1, 2]


def test_the_best_nodes_of_a_tree_are_a_tree() -> None:
    tree, rng = Tree(), random.Random(1)
    for node in range(60):
        tree.add(node, rng.randrange(-1, node), math.log(rng.choice([0.2, 0.5, 0.5, 1.0])))
    for budget in (0, 1, 7, 30, 60, 90):
        kept = tree.best(budget)
        everything = paths(tree)
        assert paths(kept).keys() <= everything.keys()
        assert sorted(kept.values) == pytest.approx(sorted(sorted(tree.values)[::-1][:budget]))
        assert tree.worst_of(budget) == (pytest.approx(min(kept.values)) if 0 < budget <= 60 else -math.inf)
