"""Toy pipelines of threads whose stages have several replicas, and what tests of them look at."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from threaded_pipeline import threaded_pipeline
from toy_family import toy_events, toy_recipe

from cascade_runtime.api import GenerateRequest
from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.engine import Engine
from cluster.supervision.supervisor import Supervisor


def recipe_of(family: Path, counts: tuple[int, ...], **tables: Any) -> Recipe:
    """counts: replicas of encoder, adapter and the levels."""
    quick = {"backoff_s": 0.01, "silent_s": 0.6, "restarts": 1000}
    patient = {"start_s": 300.0, "upstream_s": 0.5}
    kinds = ["noisy", "identical"][-(len(counts) - 3) :] if len(counts) > 3 else []
    recipe = toy_recipe(family, kinds, [2, 3][: len(kinds)], supervision=quick, deadlines=patient, **tables)
    assert recipe.encoder and recipe.adapter
    encoder, adapter, *levels = counts
    return replace(
        recipe,
        encoder=replace(recipe.encoder, replicas=encoder),
        adapter=replace(recipe.adapter, replicas=adapter),
        stages=tuple(replace(stage, replicas=count) for stage, count in zip(recipe.stages, levels, strict=True)),
    )


def requests(count: int, tokens: int = 40) -> list[GenerateRequest]:
    return [
        GenerateRequest(
            events=toy_events(seed % 3),
            question="What moves?",
            request_id=f"r{seed}",
            sampling=SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0.8 * (seed % 2), seed=seed),
        )
        for seed in range(count)
    ]


def expected(family: Path, asked: list[GenerateRequest]) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in Engine.load(toy_recipe(family, [])).generate(asked)]  # type: ignore[union-attr]


@contextmanager
def supervised(recipe: Recipe) -> Iterator[Any]:
    with threaded_pipeline(recipe) as controller:
        controller.supervisor = Supervisor(recipe, controller.crew.handles, controller.crew)
        try:
            yield controller
        finally:
            controller.supervisor.stop()


def until(condition: Any, timeout_s: float = 30.0) -> bool:
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def slowed(stage: Any, seconds: float) -> None:
    """Each of its passes takes so much longer."""
    extend = stage.level.decoder.extend

    def slow(extensions: Any) -> Any:
        time.sleep(seconds)
        return extend(extensions)

    stage.level.decoder.extend = slow


def whole(controller: Any) -> bool:
    return all(controller.supervisor._watch.whole(name) for name in controller.crew.handles)


def all_free(controller: Any) -> bool:
    stats = [controller.crew.handles[name].stage.stats() for name in controller.recipe.level_members]
    return all(each["free_slots"] == each["slots"] and not each["active_rows"] for each in stats)
