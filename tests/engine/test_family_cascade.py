"""The trained family as it ships: what it says does not depend on who drafts, and it is worth drafting for it."""

from __future__ import annotations

import pytest

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, SamplingParams, load_recipe
from cascade_runtime.engine import Engine
from cascade_runtime.training.scenes import simulate_scene

QUESTIONS = ("What are the key elements in this scene?", "Which way is it moving?", "How fast is the motion?")


def requests() -> list[GenerateRequest]:
    """Greedy and sampled questions about scenes that training never drew."""
    made = []
    for index in range(6):
        sampling = SamplingParams(max_tokens=80, temperature=(0.0, 0.0, 1.0)[index % 3], seed=index)
        scene = simulate_scene(9_000_000 + index)
        made.append(GenerateRequest(events=scene.events, question=QUESTIONS[index % 3], sampling=sampling))
    return made


def answers(recipe: Recipe) -> list[Answer]:
    given = Engine.load(recipe).generate(requests())
    assert all(isinstance(answer, Answer) for answer in given), given
    return given  # type: ignore[return-value]


@pytest.fixture(scope="module")
def alone() -> list[Answer]:
    return answers(load_recipe("heavy"))


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("light_heavy", []),
        ("three_level", []),
        ("three_level", ["cascade.num_draft_tokens=[2, 3]"]),
        ("three_level", ['cascade.mode="aligned"', "gate.accept=1.0"]),  # the gate refuses all: dense again
    ],
)
def test_the_cascade_says_what_heavy_says(alone: list[Answer], name: str, overrides: list[str]) -> None:
    together = answers(load_recipe(name, overrides))
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    edges = [edge for answer in together for edge in answer.edges]
    accepted, drafted = sum(e.num_accepted_tokens for e in edges), sum(e.num_draft_tokens for e in edges)
    assert 0 < accepted < drafted
    passes, tokens = sum(a.target_passes for a in together), sum(len(a.token_ids) for a in together)
    assert passes < tokens / 1.5  # it is worth it: deterministic, since weights, scenes and seeds are


def test_answers_are_sentences_that_end(alone: list[Answer]) -> None:
    for answer in alone:
        assert answer.finish_reason == "stop" and answer.text.endswith(".")
        assert 10 <= len(answer.token_ids) <= 80 and " " in answer.text
    assert len({answer.text for answer in alone}) == len(alone)
