"""Drafters that are no use: the adaptive pipeline beside the same target alone. It must not be slower."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.pipeline.run import drive, local_ray, ratio, requests, scenes_without_models, turn_about
from cascade_runtime.api import GenerateRequest
from cascade_runtime.config import Recipe, StepProfile, load_recipe
from cluster.launch import Pipeline, launch

TARGET_MS = 20.0
_QUESTIONS = 8  # of a stream: as many passes as lie between two trials of useless drafts, so that a run has about one
KINDS = {"always wrong": (1.0, 0.0), "ten times slower": (10 * TARGET_MS, 0.8), "dead": (1.0, 0.8)}


def useless(args: argparse.Namespace) -> dict[str, Any]:
    """Never slower than the target alone, or by how much."""
    out: dict[str, float] = {}
    print("\nuseless: adaptive over alone, medians")
    with local_ray():
        for kind, (step_ms, agreement) in KINDS.items():
            with launch(_two_emulated(step_ms, agreement)) as pipeline:
                if kind == "dead":
                    import ray

                    ray.kill(pipeline.stages["light"].actor)
                _beside_alone(kind, pipeline, scenes_without_models, args, out)
        with tempfile.TemporaryDirectory() as folder, launch(_random_drafter(Path(folder))) as pipeline:
            _beside_alone("random weights, real models", pipeline, lambda n: requests(n, args.max_tokens), args, out)
    return {"useless_drafters": out, "worst_vs_alone": min(out.values())}


def _beside_alone(
    kind: str,
    pipeline: Pipeline,
    make: Callable[[int], list[GenerateRequest]],
    args: argparse.Namespace,
    out: dict[str, float],
) -> None:
    for streams in (1, 16) if args.quick else (1, 4, 16):
        work = make(_QUESTIONS * streams)
        alone = [replace(request, speculate=False) for request in work]
        runs = turn_about(
            {"with": lambda: drive(pipeline, work, streams), "alone": lambda: drive(pipeline, alone, streams)},  # noqa: B023
            args.rounds,
        )
        out[f"{kind}, {streams}"] = round(ratio(runs, "with", "alone"), 3)
        print(f"  {kind}, {streams} streams: {out[f'{kind}, {streams}']}", flush=True)


def _two_emulated(step_ms: float, agreement: float) -> Recipe:
    """A drafter of so many ms a step in front of the target."""
    recipe = load_recipe("benchmarks/recipes/emulated_5_25_100.toml", ["supervision.restarts=0"])  # dead stays dead
    light, _, heavy = recipe.stages
    assert recipe.emulation is not None
    assert isinstance(light.profile, StepProfile) and isinstance(heavy.profile, StepProfile)
    return replace(
        recipe,
        cascade=replace(recipe.cascade, levels=("light", "heavy"), num_draft_tokens=(4,)),
        stages=(
            replace(light, profile=replace(light.profile, base_ms=step_ms)),
            replace(heavy, profile=replace(heavy.profile, base_ms=TARGET_MS, prefill_ms=TARGET_MS)),
        ),
        emulation=replace(recipe.emulation, agreement=(agreement,)),
    )


def _random_drafter(folder: Path) -> Recipe:
    """light_heavy with a light of the bundled shape and random weights."""
    from cascade_runtime.models.bundled import family_path
    from cascade_runtime.models.family import build_model, read_model, save_model

    recipe = load_recipe("light_heavy", ["cascade.slots=16"])
    _, tokenizer = read_model(family_path("heavy"))
    save_model(build_model("light", tokenizer), tokenizer, folder)
    return replace(recipe, stages=(replace(recipe.stages[0], checkpoint=str(folder)), recipe.stages[1]))
