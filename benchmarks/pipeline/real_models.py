"""The bundled family: the adaptive pipeline beside the same actors in lock step, at 16 streams and at one."""

from __future__ import annotations

import argparse
import os
import statistics
from typing import Any

from benchmarks.pipeline.run import drive, local_ray, ratio, requests, show, turn_about, with_policy
from cascade_runtime.config import load_recipe
from cluster.launch import launch

BLOCKS = (2, 4, 8, 12, 16)


def lockstep(args: argparse.Namespace) -> dict[str, Any]:
    """Real models, 16 streams."""
    recipe = load_recipe(args.recipe, ["cascade.slots=16", *args.set])
    work = requests(48 if args.quick else 96, args.max_tokens)  # the last answers, at fewer streams, weigh little
    print(f"\nlockstep: {recipe.name}, 16 streams, {len(work)} questions")
    with (
        local_ray(),
        launch(with_policy(recipe, "adaptive")) as adaptive,
        launch(with_policy(recipe, "lock_step")) as lock,
    ):
        runs = turn_about(
            {
                "pipelined": lambda: drive(adaptive, work, 16),
                "lock step": lambda: drive(lock, work, 16, batches=True),
                "lock step, rows join": lambda: drive(lock, work, 16),
            },
            args.rounds,
        )
        decisions = {name: adaptive.stats()[name]["decision"] for name in recipe.cascade.levels[1:]}
    for name, each in runs.items():
        show(name, each)
    print(f"  decided: {decisions}")
    bound = (os.cpu_count() or 1) / statistics.median(run.cores for run in runs["lock step"])
    print(
        f"  the work of lock step with every core always busy would be {bound:.2f}x as fast: no overlap can bring more"
    )
    return {
        "bound_by_cores": round(bound, 3),
        "pipelined_vs_lockstep": round(ratio(runs, "pipelined", "lock step"), 3),
        "pipelined_vs_lockstep_rows_join": round(ratio(runs, "pipelined", "lock step, rows join"), 3),
        "latency_hidden": round(statistics.median(run.hidden for run in runs["pipelined"]), 3),
    }


def one_stream(args: argparse.Namespace) -> dict[str, Any]:
    """Real models, one stream, lock step at every block length."""
    recipe = load_recipe(args.recipe, args.set)
    work = requests(6 if args.quick else 10, args.max_tokens)
    print(f"\none_stream: {recipe.name}, {len(work)} questions")
    edges = len(recipe.cascade.levels) - 1
    ratios: dict[int, float] = {}
    with local_ray(), launch(with_policy(recipe, "adaptive")) as adaptive:
        for block in (4, 12) if args.quick else BLOCKS:
            with launch(with_policy(recipe, "lock_step", num_draft_tokens=(block,) * edges)) as lock:
                runs = turn_about(
                    {
                        "pipelined": lambda: drive(adaptive, work, 1),
                        f"lock step, {block}": lambda: drive(lock, work, 1),
                    },
                    args.rounds,
                )
            for name, each in runs.items():
                show(name, each)
            ratios[block] = ratio(runs, *runs)
    best = min(ratios, key=lambda block: ratios[block])
    print(f"  the best synchronous block is {best}")
    return {"async_vs_sync_one_stream": round(ratios[best], 3), "best_sync_block": best}
