"""The real stages, channels and controller around emulated devices: the engine's tokens, and nothing that hides it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from emulated import emulated_table, write_answers
from threaded_pipeline import threaded_pipeline
from toy_family import toy_events

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, SamplingParams, recipe_from_dict
from cascade_runtime.engine import Engine
from cascade_runtime.errors import ConfigError

DRAFTERS = ("light", "mid")


def requests(count: int = 16) -> list[GenerateRequest]:
    """Greedy and sampled, short and long, with a stop string here and there."""
    return [
        GenerateRequest(
            events=toy_events(i % 5),
            question=f"What moves, {i % 4}?",
            sampling=SamplingParams(
                temperature=0.7 * (i % 2), seed=i, max_tokens=6 + 2 * i, stop=(" 13",) if i % 8 == 3 else ()
            ),
        )
        for i in range(count)
    ]


def ask_all(controller: Any) -> list[Answer]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(controller.generate, requests()))


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[..., Recipe]:
    """A three-level recipe by its kind of drafters."""

    def make(kind: str, **cascade: Any) -> Recipe:
        if kind == "agreement":
            emulation: dict[str, Any] = {"agreement": [0.7, 0.8]}
        else:
            path = write_answers(tmp_path / "answers.json", DRAFTERS)
            emulation = {"drafters": kind, "answers": str(path)}
        return recipe_from_dict(emulated_table(DRAFTERS, emulation, **cascade))

    return make


@pytest.mark.parametrize("kind", ["agreement", "ngram", "recorded"])
@pytest.mark.parametrize("mode", ["strict", "aligned"])
def test_the_pipeline_says_what_the_engine_says_and_what_the_target_alone_says(
    recipe_of: Callable[..., Recipe], kind: str, mode: str
) -> None:
    recipe = recipe_of(kind, mode=mode)
    engine = Engine.load(recipe).generate(requests())
    alone = Engine.load(recipe).generate([replace(request, speculate=False) for request in requests()])
    with threaded_pipeline(recipe) as controller:
        answers = ask_all(controller)
        stats = [stage.stats() for stage in controller.language]
    assert [a.token_ids for a in answers] == [a.token_ids for a in engine] == [a.token_ids for a in alone]  # type: ignore[union-attr]
    assert len({answer.token_ids for answer in answers}) > 4  # questions are told apart
    edges = [edge for answer in answers for edge in answer.edges]
    assert sum(e.num_draft_tokens for e in edges) > sum(e.num_accepted_tokens for e in edges) > 0
    drafted = [edge for answer in engine for edge in answer.edges]  # type: ignore[union-attr]
    assert sum(e.num_draft_tokens for e in drafted) > sum(e.num_accepted_tokens for e in drafted) > 0
    assert all(stat["emulated"] and stat["passes"] for stat in stats)


def test_recorded_answers_are_the_recorded_ones(recipe_of: Callable[..., Recipe]) -> None:
    from cascade_runtime.emulation.answers import read_answers

    recipe = recipe_of("recorded")
    assert recipe.emulation is not None
    recorded = {(*said, 2) for said in read_answers(recipe.emulation.answers, ["target"]).target}
    long = [replace(request, sampling=SamplingParams(max_tokens=40)) for request in requests()]
    answers = Engine.load(recipe).generate(long)
    assert {answer.token_ids for answer in answers} <= recorded  # type: ignore[union-attr]
    assert {answer.finish_reason for answer in answers} == {"stop"}  # type: ignore[union-attr]


def test_every_answer_says_that_it_was_emulated(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of("agreement")
    (mark,) = recipe.marks
    assert mark.startswith("emulated, no model ran: light on emulated, mid on emulated, target on emulated")
    (answer,) = Engine.load(recipe).generate(requests(1))
    assert isinstance(answer, Answer) and answer.notes[0] == mark
    with threaded_pipeline(recipe) as controller:
        assert controller.generate(requests(1)[0]).notes == (mark,)
        infos = [stage.info() for stage in controller.language]
    assert [(info["device"], info["weight_bytes"], info["kv_bytes"]) for info in infos] == [("emulated", 0, 0)] * 3


def test_one_level_without_an_event_branch_is_a_cascade_too() -> None:
    table = emulated_table([], {"agreement": []})
    del table["encoder"], table["adapter"]
    recipe = recipe_from_dict(table)
    (expected,) = Engine.load(recipe).generate(requests(1))
    with threaded_pipeline(recipe) as controller:
        answer = controller.generate(requests(1)[0])
    assert answer.token_ids == expected.token_ids and len(answer.token_ids) == 6  # type: ignore[union-attr]


def test_a_file_that_is_not_there_is_refused_when_the_stages_are_made(tmp_path: Path) -> None:
    emulation = {"drafters": "ngram", "answers": str(tmp_path / "none.json")}
    recipe = recipe_from_dict(emulated_table(DRAFTERS, emulation))
    with pytest.raises(ConfigError, match=r"none\.json"):
        Engine.load(recipe)
