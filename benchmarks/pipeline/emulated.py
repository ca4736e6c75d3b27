"""Devices of 5, 25 and 100 ms a pass, and the simulator beside them. No model runs: timed waits and made-up tokens."""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from typing import Any

from benchmarks.pipeline.run import Run, drive, local_ray, ratio, scenes_without_models, show, turn_about
from cascade_runtime.config import Recipe, StepProfile, load_recipe
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.simulation.measured import MeasuredPolicy, MeasuredRun, MeasuredStage
from cluster.launch import launch

RECIPE = "benchmarks/recipes/emulated_5_25_100.toml"


def emulated(args: argparse.Namespace) -> dict[str, Any]:
    """5, 25 and 100 ms."""
    recipe = load_recipe(RECIPE, args.set)
    work = scenes_without_models(32 if args.quick else 64)
    print(f"\nemulated: {recipe.name}, 16 streams, {len(work)} questions, agreement {recipe.emulation.agreement}")  # type: ignore[union-attr]
    with local_ray(), launch(recipe) as pipeline:
        runs = turn_about({"16 streams": lambda: drive(pipeline, work, 16)}, args.rounds)
        alone = [replace(request, speculate=False) for request in work[:4]]
        one = turn_about(
            {"1 stream": lambda: drive(pipeline, work[:4], 1), "1 stream, alone": lambda: drive(pipeline, alone, 1)}, 1
        )
    for name, each in (runs | one).items():
        show(name, each)
    median = runs["16 streams"]
    return {
        "bottleneck_efficiency": round(statistics.median(max(run.busy_s.values()) / run.wall_s for run in median), 3),
        "latency_hidden": round(statistics.median(run.hidden for run in median), 3),
        "coordination_overhead": round(statistics.median(run.coordination for run in median), 4),
        "emulated_one_stream_vs_alone": round(ratio(one, "1 stream", "1 stream, alone"), 3),
    }


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Emulated devices at 1, 4 and 16 streams, written down for `python -m benchmarks.simulator --validate FILE`."""
    recipe = load_recipe(RECIPE, args.set)
    assert recipe.emulation is not None
    stages = tuple(replace(stage, profile=replace(stage.profile, prefill_ms=0.0)) for stage in recipe.stages)  # type: ignore[type-var]
    recipe = replace(recipe, stages=stages)
    runs: list[MeasuredRun] = []
    print("\nmeasured: simulated over measured tokens per second, emulated devices")
    ratios = []
    for streams, count in ((1, 12), (4, 24), (16, 64)) if args.quick else ((1, 24), (4, 48), (16, 128)):
        with local_ray(), launch(recipe) as pipeline:
            drive(pipeline, scenes_without_models(count // 2), streams)
            run = drive(pipeline, scenes_without_models(count), streams)
        one = _written(recipe, run, streams, count, warm_up=count // 2)
        runs.append(one)
        ratios.append(one.simulated().tokens_per_s / one.tokens_per_s)
        print(f"  {streams} streams: {one.tokens_per_s:.1f} tokens/s, simulated {ratios[-1]:.3f} of it", flush=True)
    if args.measured is not None:
        args.measured.write_text(json.dumps({"runs": [run.to_dict() for run in runs]}))
    return {"simulator_worst_error": round(max(abs(ratio - 1) for ratio in ratios), 3)}


def _written(recipe: Recipe, run: Run, streams: int, count: int, *, warm_up: int) -> MeasuredRun:
    assert recipe.emulation is not None
    stages = []
    for stage in recipe.stages:
        assert isinstance(stage.profile, StepProfile)
        name, passes = stage.name, max(1.0, run.passes[stage.name])
        cost = StepCost(run.busy_s[name] / passes)
        stages.append(MeasuredStage(name, cost, overhead_s=(run.awake_s[name] - run.busy_s[name]) / passes))
    return MeasuredRun(
        name=f"{streams} streams",
        streams=streams,
        requests=count,
        tokens=64,
        tokens_per_s=run.tokens_per_s,
        stages=tuple(stages),
        agreement=recipe.emulation.agreement,
        policy=MeasuredPolicy(recipe.policy.mode, recipe.cascade.num_draft_tokens),
        upstream_s=recipe.deadlines.upstream_s,
        window=recipe.cascade.window,
        warm_up=warm_up,
    )
