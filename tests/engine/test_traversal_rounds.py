"""Traversal as a recipe: the target's tokens at temperature 0, its law above, and refused where it cannot run."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_family import toy_events, toy_recipe, toy_requests, write_toy_family

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, SamplingParams, load_recipe
from cascade_runtime.decoding.acceptance.law import laws
from cascade_runtime.decoding.row import Extension
from cascade_runtime.decoding.trees import Product, Tree, sampler
from cascade_runtime.engine import Engine
from cascade_runtime.errors import ConfigError

TREE = {"kind": "sampled", "widths": [3, 2], "depth": 4, "nodes": 21}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


def traversal(family: Path, light: str, **tree: object) -> Recipe:
    table = {**TREE, **tree}
    return toy_recipe(family, [light], cascade={"acceptance": "traversal"}, event_branch=False, tree=table)


def test_every_node_of_a_layer_grows_as_wide() -> None:
    shape = Product((2, 2), depth=3)
    assert shape.grows(Tree(), [-1], 0) == [(-1, 2)] and shape.grows(Tree(), [0, 1], 1) == [(0, 2), (1, 2)]
    assert shape.grows(Tree(), [2, 3], 2) == [(2, 1), (3, 1)] and shape.grows(Tree(), [4], 3) == []


@pytest.mark.parametrize("light", ["identical", "noisy", "random"])
def test_at_temperature_0_the_targets_own_tokens_come_out(family: Path, light: str) -> None:
    asked = [replace(each, sampling=replace(each.sampling, temperature=0.0)) for each in toy_requests(6)]
    alone = Engine.load(toy_recipe(family, [], event_branch=False)).generate(asked)
    engine = Engine.load(traversal(family, light))
    answers = engine.generate(asked)
    assert [a.token_ids for a in answers] == [a.token_ids for a in alone]  # type: ignore[union-attr]
    assert all(level.decoder.free_slots == 4 for level in engine.levels)
    if light == "identical":  # four of a path and one of its own in each pass
        assert all(a.target_passes == -(-len(a.token_ids) // 5) for a in answers if isinstance(a, Answer))


def test_a_drafter_of_broken_numbers_is_left_out(family: Path) -> None:
    engine, asked = Engine.load(traversal(family, "noisy")), toy_requests(3)[:1]
    with torch.no_grad():
        engine.levels[0].model.language.norm._weight.fill_(float("nan"))
    assert [a.token_ids for a in engine.generate(asked)] == [  # type: ignore[union-attr]
        a.token_ids
        for a in Engine.load(toy_recipe(family, [], event_branch=False)).generate(asked)  # type: ignore[union-attr]
    ]
    assert all(level.decoder.free_slots == 4 for level in engine.levels)


def divergence(engine: Engine, count: int) -> tuple[float, float]:
    """How far the second and third tokens of many answers are from the target's law, as chi-squared over its degrees of
    freedom: about 1 where they have it; and tokens per pass.
    """
    sampling = SamplingParams(temperature=0.8, top_k=3, max_tokens=3, ignore_eos=True)
    events = toy_events(0, count=300)
    seen = engine.front_end.see(events)
    engine.front_end.see = lambda *_, **__: seen  # type: ignore[method-assign]
    asked = [
        GenerateRequest(events=events, question="What?", sampling=replace(sampling, seed=seed)) for seed in range(count)
    ]  # fmt: skip
    answers = [each for each in engine.generate(asked) if isinstance(each, Answer)]
    assert len(answers) == count
    said = Counter(prefix for each in answers for prefix in (each.token_ids[:1], each.token_ids[:2], each.token_ids))
    target = engine.levels[-1]
    row = target.admit("What?", seen.for_target, sampling)
    score, freedom = 0.0, 0
    for prefix in [(), *(each for each in said if len(each) < 3)]:
        total = said[prefix] if prefix else count
        if total < 30:
            continue
        (logits,) = target.decoder.look([Extension(row, prefix)])
        law = laws(logits, sampling)[0].chances
        likely = [int(token) for token in law.nonzero().flatten() if total * float(law[token]) >= 5]
        assert all(law[each[-1]] > 0 for each in said if each[:-1] == prefix)
        score += sum((said[*prefix, t] - total * float(law[t])) ** 2 / (total * float(law[t])) for t in likely)
        freedom += max(0, len(likely) - 1)
    target.decoder.release(row)
    return score / freedom, sum(len(each.token_ids) for each in answers) / sum(each.target_passes for each in answers)


def test_above_temperature_0_answers_have_the_targets_law(family: Path) -> None:
    score, per_pass = divergence(Engine.load(traversal(family, "noisy")), 240)
    assert score < 2.5  # more by chance with one choice of seeds in a thousand; these are fixed
    assert per_pass > 1.1


def test_children_that_are_not_drawn_afresh_bias_it(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise at every node: negative control of the test above."""
    monkeypatch.setattr(sampler, "children_key", lambda seed, base: 7)
    assert divergence(Engine.load(traversal(family, "noisy")), 160)[0] > 3


@pytest.mark.parametrize(
    ("recipe", "changes", "says"),
    [
        ("light_heavy", ["cascade.acceptance=traversal"], "sampled"),
        ("light_heavy", ["tree.kind=sampled", "tree.widths=[2]"], "traversal between two levels"),
        ("light_heavy", ["cascade.acceptance=ratio", "tree.kind=sampled", "tree.widths=[2]"], "trees are drafted"),
        ("three_level", ["cascade.acceptance=traversal", "tree.kind=sampled", "tree.widths=[2]"], "two levels"),
        (
            "light_heavy",
            ["cascade.acceptance=traversal", "tree.kind=sampled"],
            r"widths.*24 nodes in all.*these are",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(recipe: str, changes: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_recipe(recipe, changes)
    sound = load_recipe("light_heavy", ["cascade.acceptance=traversal", "tree.kind=sampled", "tree.widths=[2]"])
    with pytest.raises(ConfigError, match="lost or late"):
        sound.check_runs_apart()
