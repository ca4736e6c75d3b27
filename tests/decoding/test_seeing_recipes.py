"""The recipes of drafters that see less run on the bundled family and give its target's own answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import SamplingParams, load_recipe
from cascade_runtime.decoding.level import Level
from cascade_runtime.engine import Engine
from cascade_runtime.training.scenes import simulate_scene

FOLDER = Path(__file__).parents[2] / "benchmarks" / "recipes" / "seeing"
VISUAL = {  # what light sees of 33, which of it, and how much that is
    "blind": ("text", {0}),
    "elastic": ("elastic", {3, 9, 12}),
    "event_density": ("events:25%", {9}),
    "pooled": ("pool:4", {9}),
    "specvlm_pruning": ("attention:10%", {5}),
    "uniform": ("uniform:25%", {9}),
}
REQUEST = GenerateRequest(
    events=simulate_scene(seed=7_000_003).events,
    question="What are the key elements in this scene?",
    sampling=SamplingParams(max_tokens=64),
)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(load_recipe(FOLDER / "event_density.toml"))


@pytest.fixture(scope="module")
def alone(engine: Engine) -> Answer:
    (answer,) = engine.generate([replace(REQUEST, speculate=False)])
    assert isinstance(answer, Answer)
    return answer


def test_these_are_all() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == VISUAL.keys()


@pytest.mark.parametrize("name", VISUAL)
def test_light_sees_what_the_recipe_says_and_heavy_answers_as_ever(engine: Engine, alone: Answer, name: str) -> None:
    recipe = load_recipe(FOLDER / f"{name}.toml")
    assert (recipe.name, recipe.stages[0].sees) == (name, VISUAL[name][0])
    level = Level.load(recipe.stages[0], recipe.cascade)
    engine.levels[0] = level
    (answer,) = engine.generate([REQUEST])
    assert isinstance(answer, Answer) and not answer.notes
    assert answer.token_ids == alone.token_ids
    assert answer.target_passes < alone.target_passes
    features = engine.front_end.see(REQUEST.events).features[0]  # type: ignore[arg-type]
    assert features is not None
    text = len(level.model.prompts.build(REQUEST.question, num_visual=0, frames=2).input_ids)
    assert len(level.prompt(REQUEST.question, features)) - text in VISUAL[name][1]
