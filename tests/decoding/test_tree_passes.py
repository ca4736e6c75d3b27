"""A pass along a tree says at every node what a chain along its path says, whatever was accepted of trees before."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_runtime.config import SamplingParams, load_recipe
from cascade_runtime.decoding.level import Level
from cascade_runtime.decoding.row import Extension, PromptEmbeds
from cascade_runtime.errors import InputError

PARAMS = SamplingParams(max_tokens=120, temperature=0.7, seed=5)


@pytest.fixture(scope="module")
def light() -> Level:
    torch.set_num_threads(1)
    recipe = load_recipe("three_level")
    return Level.load(recipe.stage("light"), recipe.cascade)


def prompts(level: Level, count: int) -> list[PromptEmbeds]:
    torch.manual_seed(count)
    lengths = [20 + 9 * i for i in range(count)]
    return [PromptEmbeds(torch.randn(n, level.model.language.hidden_size), torch.arange(n), n) for n in lengths]


def path(node: int, parents: list[int]) -> list[int]:
    """The nodes from the prefix to this one."""
    return [] if node < 0 else [*path(parents[node], parents), node]


def tree(draws: random.Random, most: int) -> tuple[list[int], list[int]]:
    count = draws.randint(0, most)
    return [draws.randrange(8, 60) for _ in range(count)], [draws.randrange(-1, i) for i in range(count)]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6))
def test_every_node_says_what_its_path_says(light: Level, seed: int) -> None:
    draws, decoder = random.Random(seed), light.decoder
    rows = [[decoder.admit(prompt, PARAMS) for _ in range(2)] for prompt in prompts(light, 2)]
    answers: list[list[int]] = [[], []]
    try:
        for _ in range(5):
            asked = [0, 1] if draws.random() < 0.5 else [draws.randint(0, 1)]
            trees = [tree(draws, 9) for _ in asked]
            told = decoder.extend(
                [Extension(rows[i][0], answers[i], t, parents=p) for i, (t, p) in zip(asked, trees, strict=True)]
            )
            for i, (tokens, parents), choices in zip(asked, trees, told, strict=True):
                for node in range(-1, len(tokens)):
                    along = [tokens[at] for at in path(node, parents)]
                    (chain,) = decoder.extend([Extension(rows[i][1], answers[i], along)])
                    assert chain[-1] == choices[1 + node]
                taken = draws.randint(-1, len(tokens) - 1)  # as if this path had been accepted
                answers[i] += [tokens[at] for at in path(taken, parents)] + [choices[1 + taken]] * draws.randint(0, 1)
    finally:
        for row in (row for pair in rows for row in pair):
            decoder.release(row)


def test_an_accepted_path_is_not_computed_again(light: Level) -> None:
    decoder = light.decoder
    row = decoder.admit(prompts(light, 1)[0], PARAMS)
    decoder.extend([Extension(row, [])])
    decoder.extend([Extension(row, [7], [10, 11, 12, 13, 14], parents=[-1, -1, 1, 2, 2])])
    fed = decoder.tokens_fed
    decoder.extend([Extension(row, [7, 11, 12, 14, 20], [21])])  # nodes 1, 2 and 4 lie in the cache
    assert decoder.tokens_fed - fed == 2
    assert row.tokens == [7, 11, 12, 14, 20, 21] and row.above is None
    decoder.release(row)


def test_a_tree_grows_by_its_new_leaves(light: Level) -> None:
    decoder = light.decoder
    row, again = (decoder.admit(prompts(light, 1)[0], PARAMS) for _ in range(2))
    decoder.extend([Extension(row, [7])])
    fed = decoder.tokens_fed
    decoder.extend([Extension(row, [7], [10, 11], parents=[-1, -1], asked=2)])
    (leaves,) = decoder.look([Extension(row, [7], [10, 11, 12, 13], parents=[-1, -1, 1, 1], asked=2)])
    assert decoder.tokens_fed - fed == 4
    (whole,) = decoder.look([Extension(again, [7], [10, 11, 12, 13], parents=[-1, -1, 1, 1])])
    assert whole.shape[0] == 5 and torch.allclose(leaves, whole[3:], atol=1e-4)
    for one in (row, again):
        decoder.release(one)


@pytest.mark.parametrize(("parents", "asked"), [([-1, 1], None), ([-2, 0], None), ([-1], None), ([-1, 0], 4)])
def test_what_is_no_tree_is_refused(light: Level, parents: list[int], asked: int | None) -> None:
    row = light.decoder.admit(prompts(light, 1)[0], PARAMS)
    with pytest.raises(InputError, match="parents" if asked is None else "asked"):
        light.decoder.extend([Extension(row, [7], [10, 11], parents=parents, asked=asked)])
    light.decoder.release(row)


def test_a_tree_does_not_see_beside_itself(light: Level) -> None:
    """Siblings, whatever they are, change nothing."""
    decoder = light.decoder
    rows = [decoder.admit(prompts(light, 1)[0], PARAMS) for _ in range(2)]
    one, other = decoder.look(
        [Extension(row, [7], [token, 11, 12], parents=[-1, -1, 1]) for row, token in zip(rows, (10, 50), strict=True)]
    )
    assert torch.allclose(one[2:], other[2:], atol=1e-5) and not torch.allclose(one[1], other[1], atol=1e-2)
    for row in rows:
        decoder.release(row)
