"""What all actors of a pipeline that has nothing to do burn, beyond as many bare Ray actors, from /proc."""

from __future__ import annotations

import argparse
import time
from typing import Any

from benchmarks.pipeline.processes import Bare, actors, cpu_s
from benchmarks.pipeline.run import drive, local_ray, requests
from cascade_runtime.config import load_recipe
from cluster.launch import launch


def idle(args: argparse.Namespace) -> dict[str, Any]:
    """All actors of a pipeline at rest."""
    recipe = load_recipe(args.recipe, args.set)
    seconds = 5.0 if args.quick else 20.0
    with local_ray():
        with launch(recipe) as pipeline:
            drive(pipeline, requests(2, args.max_tokens), 1)
            count = len(actors())
            share = _share_of_a_core(seconds)
        bare = [_bare_actor() for _ in range(count)]
        floor = _share_of_a_core(seconds)
        del bare
    print(f"\nidle: {count} actors burn {100 * share:.2f} % of a core, as many that do nothing {100 * floor:.2f} %")
    return {"idle_core_share": round(share - floor, 4), "idle_core_share_with_ray": round(share, 4)}


def _bare_actor() -> Any:
    import ray

    actor: Any = ray.remote(Bare).options(num_cpus=0, max_concurrency=8).remote()
    ray.get(actor.ready.remote(), timeout=60)
    return actor


def _share_of_a_core(seconds: float) -> float:
    pids = actors()
    time.sleep(1.0)
    before = sum(map(cpu_s, pids))
    time.sleep(seconds)
    return (sum(map(cpu_s, pids)) - before) / seconds
