"""The rules of acceptance as recipes: exact where they say so, marked where they are lossy, refused where they cannot
run.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_family import toy_recipe, toy_requests, write_toy_family

from actors.controller import Controller
from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import load_recipe, recipe_from_dict
from cascade_runtime.config.acceptance import RULES, FuzzyConfig, RatioConfig
from cascade_runtime.engine import Engine
from cascade_runtime.errors import ConfigError
from cluster.launch import launch

REQUESTS = 16
LOSSY = [name for name in RULES if name.startswith("lossy")]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


def engine(family: Path, rule: str, drafters: list[str], **acceptance: object) -> Engine:
    recipe = toy_recipe(family, drafters, cascade={"acceptance": rule}, event_branch=False, acceptance=acceptance)
    return Engine.load(recipe)


def requests(*, greedy: bool) -> list[GenerateRequest]:
    made = toy_requests(REQUESTS * 2)
    return [request for request in made if (request.sampling.temperature == 0) == greedy][:REQUESTS]


def said(engine: Engine, asked: list[GenerateRequest]) -> list[Answer]:
    answers = engine.generate(asked)
    assert all(isinstance(answer, Answer) for answer in answers), answers
    return answers  # type: ignore[return-value]


def tokens(answers: list[Answer]) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in answers]


@pytest.fixture(scope="module")
def greedy(family: Path) -> list[tuple[int, ...]]:
    return tokens(said(engine(family, "shared_noise", []), requests(greedy=True)))


@pytest.mark.parametrize("rule", ["ratio", "lossy_typical"])
@pytest.mark.parametrize("drafters", [["noisy"], ["random", "noisy"]])
def test_at_temperature_0_the_targets_own_tokens_come_out(
    family: Path, greedy: list[tuple[int, ...]], rule: str, drafters: list[str]
) -> None:
    answers = said(engine(family, rule, drafters), requests(greedy=True))
    assert tokens(answers) == greedy
    edges = [edge for answer in answers for edge in answer.edges]
    assert 0 < sum(e.num_accepted_tokens for e in edges) < sum(e.num_draft_tokens for e in edges)


def test_a_drafter_without_laws_of_its_own_claims_certainty(family: Path, greedy: list[tuple[int, ...]]) -> None:
    recipe = toy_recipe(family, ["noisy"], cascade={"acceptance": "ratio"}, event_branch=False)
    lookup = replace(recipe.stages[0], drafter="lookup")
    cascade = Engine.load(replace(recipe, stages=(lookup, recipe.stages[1])))
    assert tokens(said(cascade, requests(greedy=True))) == greedy
    again = said(cascade, requests(greedy=True))  # now it knows what was answered
    assert tokens(again) == greedy and sum(answer.edges[0].num_accepted_tokens for answer in again) > 20


def test_sampled_answers_do_not_depend_on_their_batch_and_differ_from_shared_noise(family: Path) -> None:
    cascade = engine(family, "ratio", ["random", "noisy"])
    asked = requests(greedy=False)[:8]
    together = tokens(said(cascade, asked))
    assert together == [said(cascade, [request])[0].token_ids for request in reversed(asked)][::-1]
    alone = tokens(said(cascade, [replace(request, speculate=False) for request in asked]))
    assert together != alone == tokens(said(engine(family, "shared_noise", []), asked))


def test_a_drafter_that_breaks_is_done_without(family: Path, greedy: list[tuple[int, ...]]) -> None:
    cascade = engine(family, "ratio", ["noisy", "identical"])
    with torch.no_grad():
        cascade.levels[0].model.language.norm._weight.fill_(float("nan"))
    assert tokens(said(cascade, requests(greedy=True))) == greedy


def test_an_identical_drafter_is_always_accepted(family: Path) -> None:
    for rule, per_pass in (("ratio", 4), ("lossy_cascade_opt", 3)):  # a cascade's law ends with its drafts
        for answer in said(engine(family, rule, ["identical"]), requests(greedy=False)):
            assert answer.edges[0].num_accepted_tokens == answer.edges[0].num_draft_tokens
            assert answer.target_passes == -(-len(answer.token_ids) // per_pass)


@pytest.mark.parametrize("rule", LOSSY)
def test_lossy_answers_say_so_wherever_they_are_shown(family: Path, rule: str) -> None:
    cascade = engine(family, rule, ["noisy"])
    asked = requests(greedy=False)[:4]
    for answer in said(cascade, asked):
        assert any(note.startswith("lossy") and rule in note for note in answer.notes)
        assert [edge.edge for edge in answer.edges] == [f"level0-target ({rule})"]
    for answer in said(cascade, [replace(request, speculate=False) for request in asked]):
        assert not answer.notes  # nobody drafted: the target's own


def test_only_lossy_answers_are_marked(family: Path) -> None:
    for answer in said(engine(family, "ratio", ["noisy"]), requests(greedy=False)):
        assert not answer.notes and [edge.edge for edge in answer.edges] == ["level0-target"]


def test_a_cascade_that_never_defers_gives_the_drafters_answer(family: Path, greedy: list[tuple[int, ...]]) -> None:
    cascade = engine(family, "lossy_cascade_chow", ["noisy"], alpha=1)
    answers = tokens(said(cascade, requests(greedy=True)))
    recipe = toy_recipe(family, [], event_branch=False)
    drafter = Engine.load(replace(recipe, stages=(replace(cascade.recipe.stages[0], name="target"),)))
    assert answers != greedy and answers == tokens(said(drafter, requests(greedy=True)))


def test_fuzzy_thresholds_belong_to_their_edges(family: Path) -> None:
    answers = said(engine(family, "lossy_fuzzy", ["random", "noisy"], tau=[100, 0]), requests(greedy=False))
    first, last = (
        sum(answer.edges[k].num_accepted_tokens for answer in answers)
        / sum(answer.edges[k].num_draft_tokens for answer in answers)
        for k in (0, 1)
    )
    assert first == 1.0 and last < 0.7


@pytest.mark.parametrize("rule", ["ratio", "lossy_typical"])
def test_pipelines_refuse_rules_that_weigh_laws(family: Path, rule: str) -> None:
    recipe = toy_recipe(family, ["noisy"], cascade={"acceptance": rule})
    nothing: Any = None
    for start in (lambda: Controller(recipe, nothing), lambda: launch(recipe)):
        with pytest.raises(ConfigError, match="lost or late") as error:
            start()
        assert error.value.field == "cascade.acceptance"


def test_parameters_are_those_of_the_rule(family: Path) -> None:
    def recipe(rule: str, **acceptance: object) -> Any:
        return toy_recipe(family, ["noisy", "noisy"], cascade={"acceptance": rule}, acceptance=acceptance).acceptance

    assert recipe("lossy_fuzzy", tau=[0.1, 2]) == FuzzyConfig(tau=(0.1, 2))
    assert FuzzyConfig(tau=0.5).per_edge(2) == (0.5, 0.5)
    assert recipe("ratio", leniency=2.0) == RatioConfig(leniency=2.0)
    for rule, settings, field in (
        ("loose", {}, "cascade.acceptance"),
        ("shared_noise", {"alpha": 0.1}, "acceptance.alpha"),
        ("ratio", {"tau": 1}, "acceptance.tau"),
        ("ratio", {"leniency": 0.5}, "acceptance.leniency"),
        ("lossy_fuzzy", {"tau": [1, 2, 3]}, "acceptance.tau"),
        ("lossy_fuzzy", {"tau": "near"}, "acceptance.tau"),
        ("lossy_typical", {"epsilon": 2}, "acceptance.epsilon"),
        ("lossy_cascade_opt", {"alpha": -1}, "acceptance.alpha"),
    ):
        with pytest.raises(ConfigError) as error:
            recipe(rule, **settings)
        assert error.value.field == field
    with pytest.raises(ConfigError, match="where trees are drafted"):
        toy_recipe(family, ["noisy"], cascade={"acceptance": "ratio"}, tree={"kind": "opt"})
    with pytest.raises(ConfigError, match="RatioConfig"):
        replace(toy_recipe(family, ["noisy"], cascade={"acceptance": "ratio"}), acceptance=FuzzyConfig())


def test_emulated_devices_have_no_laws_to_weigh() -> None:
    from emulated import emulated_table

    table = emulated_table(["light"], {"agreement": [0.7]}, acceptance="ratio")
    with pytest.raises(ConfigError, match="no laws"):
        recipe_from_dict(table)


def test_every_rule_has_a_recipe_that_says_whether_it_is_lossy() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "recipes" / "systems"
    files = {path.stem.removeprefix("rule_"): path for path in folder.glob("rule_*.toml")}
    assert {*files, "shared_noise"} == set(RULES)
    for rule, path in files.items():
        assert load_recipe(path).cascade.acceptance == rule
        assert ("LOSSY" in path.read_text()) == rule.startswith("lossy")
    lenient = load_recipe(folder / "cs_drafting_lenient.toml").acceptance
    assert isinstance(lenient, RatioConfig) and lenient.leniency > 1
