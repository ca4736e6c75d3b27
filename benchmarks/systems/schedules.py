"""Schedules of others as recipes: each a pipeline of actors on this machine, beside the target alone in such actors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.pipeline.run import local_ray
from benchmarks.schedules import dsi_lookahead
from benchmarks.systems.one_process import figures, head, show
from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, load_recipe
from cluster.launch import Pipeline, launch

MEASURES = "pipespec_two_levels"  # tells what a step of each model takes
_DEADLINE_S = 600.0


def compare_schedules(paths: Sequence[Path], requests: Sequence[GenerateRequest], rounds: int) -> dict[str, Any]:
    """Every schedule's row, one stream. One pipeline is there at a time, and its target alone answers in turn with it:
    the weights of nine beside each other would crowd a machine that runs one.
    """
    recipes = {path.stem: load_recipe(path) for path in paths}
    with local_ray():
        with launch(recipes[MEASURES]) as pipeline:
            ratio = _ratio(pipeline, requests)
        head(f"actors on Ray, one stream, temperature 0, {len(requests)} questions, {rounds} rounds")
        print(f"a pass of heavy takes {ratio:.1f} of light's: so much PEARL and DSI draft, SSD and Duo at most 16")
        rows: dict[str, Any] = {}
        for name, recipe in recipes.items():
            if name in {"pearl", "dsi_one_server", "ssd", "duodecoding"}:
                tokens = dsi_lookahead(ratio, 1) if name == "dsi_one_server" else round(ratio)
                recipe = _block(recipe, max(2, tokens))
            rows[name] = _row(recipe, requests, rounds)
            show(name, rows[name])
    return rows


def _row(recipe: Recipe, requests: Sequence[GenerateRequest], rounds: int) -> dict[str, Any]:
    quiet = [replace(request, speculate=False) for request in requests]
    told, alone, ratios = list[Answer](), list[Answer](), list[float]()
    with launch(recipe) as pipeline:
        for round_ in range(rounds + 1):  # the first to warm up
            alone, alone_s = _ask(pipeline, quiet)
            told, seconds = _ask(pipeline, requests)
            _check_whole(pipeline)
            if round_:
                ratios.append(alone_s / seconds)
    return figures(told, alone, ratios) | {"promised": "exact"}


def _check_whole(pipeline: Pipeline) -> None:
    """Raise `SystemExit` where a stage was lost or started anew: what was measured is not what the recipe does."""
    watched = pipeline.supervisor
    if watched is not None and (watched.recoveries or watched.down):
        raise SystemExit(f"{pipeline.recipe.name}: down {watched.down}, started anew {watched.recoveries}")


def _ask(pipeline: Pipeline, requests: Sequence[GenerateRequest]) -> tuple[list[Answer], float]:
    start, answers = time.perf_counter(), list[Answer]()
    for request in requests:
        answers.append(pipeline.controller.result(pipeline.controller.start("generate", request, None), _DEADLINE_S))
    return answers, time.perf_counter() - start


def _ratio(pipeline: Pipeline, requests: Sequence[GenerateRequest]) -> float:
    """A pass of the target over one of the drafter, as they take beside each other."""
    _ask(pipeline, requests)
    before = pipeline.stats()
    _ask(pipeline, requests)
    after = pipeline.stats()

    def pass_s(name: str) -> float:
        return (after[name]["busy_s"] - before[name]["busy_s"]) / (after[name]["passes"] - before[name]["passes"])

    levels = pipeline.recipe.cascade.levels
    return pass_s(levels[-1]) / pass_s(levels[0])


def _block(recipe: Recipe, tokens: int) -> Recipe:
    if recipe.tree is not None:
        depth = min(tokens, 16)  # a chain's; three of them are 48 nodes
        nodes = depth * (recipe.tree.width if recipe.tree.kind == "duo" else 1)
        return replace(recipe, tree=replace(recipe.tree, depth=depth, nodes=nodes))
    return replace(recipe, cascade=replace(recipe.cascade, num_draft_tokens=(min(tokens, 32),)))
