"""Without its drafter, or its mid, a pipeline is to be as quick as its target alone."""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from benchmarks.faults.recipe import recipe
from benchmarks.pipeline.run import Run, drive, local_ray, requests
from cluster.launch import launch

_STREAMS = 4


def dead_drafters(args: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of the pipeline whole, without light, without mid, over those of the target alone: medians of
    pairs, each measured one after the other on the same pipeline. A drafter that is killed stays dead.
    """
    import ray

    measured: dict[str, Any] = {}
    work = requests(2 * _STREAMS, args.max_tokens)
    bare = requests(2 * _STREAMS, args.max_tokens, speculate=False)
    with local_ray():
        for missing in ("", "light", "mid"):
            pairs: list[tuple[Run, Run]] = []
            with launch(recipe("supervision.restarts=0", "deadlines.start_s=900")) as pipeline:
                drive(pipeline, work, _STREAMS)  # the policy learns what things cost
                if missing:
                    ray.kill(pipeline.stages[missing].actor)
                    drive(pipeline, work, _STREAMS)
                for _ in range(args.rounds):
                    pairs.append((drive(pipeline, work, _STREAMS), drive(pipeline, bare, _STREAMS)))
            if len({run.answers for pair in pairs for run in pair}) > 1:
                raise SystemExit(f"ANSWERS DIFFER without {missing or 'nothing'}")
            name = f"without_{missing}" if missing else "whole"
            measured[f"{name}_over_alone"] = round(
                statistics.median(a.tokens_per_s / b.tokens_per_s for a, b in pairs), 3
            )
            speed, alone = (statistics.median(pair[k].tokens_per_s for pair in pairs) for k in (0, 1))
            print(
                f"  {name:<14} {speed:6.1f} tokens/s, the target alone {alone:6.1f}: {measured[f'{name}_over_alone']}x",
                flush=True,
            )
    return measured
