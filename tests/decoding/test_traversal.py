"""Leaf-to-root verification of trees, by enumeration: every tree that the drafter could have sampled, every coin."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from exact_laws import VOCAB, Answers, Fork, chain, outcomes, random_law, total_variation

from cascade_runtime.decoding.acceptance import traversal
from cascade_runtime.decoding.acceptance.ratio import ratio_test
from cascade_runtime.decoding.acceptance.traversal import traverse
from cascade_runtime.errors import InputError

SHAPES = {
    "none": [],
    "chain": [-1, 0, 1],
    "two": [-1, -1],
    "all": [-1, -1, -1],
    "broad": [-1, -1, 0, 0, 1],
    "deep": [-1, 0, 0, -1, 3],
    "uneven": [-1, 0, -1, 1],
}


def answers(parents: Sequence[int], seed: int) -> tuple[Answers, Answers, float]:
    """The law of answers one token longer than the tree is deep, the target's, and the mean length that is kept."""
    depths = [0]
    for parent in parents:
        depths.append(depths[parent + 1] + 1)
    length, fork = max(depths) + 1, Fork()

    def run() -> tuple[int, ...]:
        tokens: list[int] = []
        paths: list[tuple[int, ...]] = [()]  # from the prefix to each node; the prefix first
        for parent in parents:  # children without replacement, in order
            law = random_law(seed, 0, paths[parent + 1]).clone()
            law[[tokens[i] for i in range(len(tokens)) if parents[i] == parent]] = 0.0
            tokens.append(fork.other(law / law.sum()))
            paths.append((*paths[parent + 1], tokens[-1]))
        q, p = ([random_law(seed, level, path) for path in paths] for level in (0, 1))
        kept = traverse(tokens, parents, q, p, fork.keeps, fork.other)
        return (*(tokens[node] for node in kept.nodes), kept.token)

    found: Answers = {}
    said = outcomes(run, fork)
    for answer, chance in said.items():  # what follows is the target's own
        rest = chain(lambda more, answer=answer: random_law(seed, 1, (*answer, *more)), length - len(answer))
        for more, weight in rest.items():
            found[answer + more] = found.get(answer + more, 0.0) + chance * weight
    mean = sum(chance * (len(answer) - 1) for answer, chance in said.items())
    return found, chain(lambda prefix: random_law(seed, 1, prefix), length), mean


@pytest.mark.parametrize("shape", SHAPES)
def test_whatever_the_tree_the_answer_has_the_targets_law(shape: str) -> None:
    for seed in range(1 if len(SHAPES[shape]) == 5 else 3):
        got, wanted, kept = answers(SHAPES[shape], seed)
        assert total_variation(got, wanted) < 1e-12
        assert 0 < kept < 3 or not SHAPES[shape]


def test_dividing_by_the_drafters_mass_that_is_left_is_seen_to_be_biased(monkeypatch: pytest.MonkeyPatch) -> None:
    right = traversal.refused

    def wrong(alpha: float, p: torch.Tensor, q: torch.Tensor, token: int) -> tuple[float, torch.Tensor, torch.Tensor]:
        _, law, left = right(alpha, p, q, token)
        mass = float((alpha * p - q).clamp(min=0.0).sum())
        return min(1.0, mass / float(1.0 - q[token])), law, left

    monkeypatch.setattr(traversal, "refused", wrong)
    biases = [total_variation(*answers(SHAPES["two"], seed)[:2]) for seed in range(12)]
    assert sum(biases) / len(biases) > 0.005 and max(biases) > 0.05


def test_a_path_tested_as_a_whole_keeps_more_than_token_by_token() -> None:
    """A chain of two against the ratio test, which stops at the first refusal."""
    gains = []
    for seed in range(8):
        one = random_law(seed, 0, ()), random_law(seed, 1, ())
        expected = 0.0
        for token in range(VOCAB):
            keep = float(one[0][token] * ratio_test(*one).keep[token])
            q, p = random_law(seed, 0, (token,)), random_law(seed, 1, (token,))
            expected += keep * (1.0 + float(torch.minimum(q, p).sum()))
        gains.append(answers([-1, 0], seed)[2] - expected)
    assert min(gains) > -1e-12 and max(gains) > 0.01


def test_children_that_were_not_sampled_without_replacement_are_refused() -> None:
    q = [torch.tensor([0.5, 0.5, 0.0]).double()] * 3
    for tokens in ([2, 0], [0, 0]):
        with pytest.raises(InputError, match="without replacement"):
            traverse(tokens, [-1, -1], q, [*q[:2], q[0]], lambda *_: False, lambda law, node: int(law.argmax()))
