"""What all actors of a pipeline that has nothing to do burn, beyond as many bare Ray actors, from /proc."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from pathlib import Path
from typing import Any

from actors.adapter import AdapterVerifierStage
from actors.controller import Controller
from actors.drafter import Drafter
from actors.encoder import EventEncoderStage
from actors.mid_verifier import MidVerifier
from actors.target import Target
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
            count = len(_actors())
            share = _share_of_a_core(seconds)
        bare = [_bare_actor() for _ in range(count)]
        floor = _share_of_a_core(seconds)
        del bare
    print(f"\nidle: {count} actors burn {100 * share:.2f} % of a core, as many that do nothing {100 * floor:.2f} %")
    return {"idle_core_share": round(share - floor, 4), "idle_core_share_with_ray": round(share, 4)}


class Bare:
    """An actor that does nothing."""

    def ready(self) -> bool:
        """It runs."""
        return True


def _bare_actor() -> Any:
    import ray

    actor: Any = ray.remote(Bare).options(num_cpus=0, max_concurrency=8).remote()
    ray.get(actor.ready.remote(), timeout=60)
    return actor


def _share_of_a_core(seconds: float) -> float:
    pids = _actors()
    time.sleep(1.0)
    before = sum(map(_cpu_s, pids))
    time.sleep(seconds)
    return (sum(map(_cpu_s, pids)) - before) / seconds


def _actors() -> list[int]:
    """Processes that Ray has named after an actor of ours."""
    kinds = (EventEncoderStage, AdapterVerifierStage, Drafter, MidVerifier, Target, Controller, Bare)
    names = {f"ray::{kind.__name__}" for kind in kinds}
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_text().split("\0")[0].split(".")[0] in names:
                pids.append(int(path.parent.name))
    return pids


def _cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
