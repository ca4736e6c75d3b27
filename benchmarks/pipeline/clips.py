"""Recorded stage times and recorded answers of two models: clips of 2 to 20 s one after the other, then pipelined."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.pipeline.run import drive, local_ray, ratio, scenes_without_models, show, turn_about
from benchmarks.recipes.stage_times import DRAFTS, VERIFY_MS, write_recipe
from cascade_runtime.config import load_recipe
from cluster.launch import launch


def clips(args: argparse.Namespace) -> dict[str, Any]:
    """Recorded stage times, recorded answers."""
    if args.traces is None:
        print("\nclips: left out, no --traces")
        return {}
    seconds = (2.0, 4.0, 5.0, 8.0, 10.0, 16.0, 20.0)
    with tempfile.TemporaryDirectory() as folder, local_ray():
        path = write_recipe(
            args.traces / "stage_latency_profile.json",
            args.traces / "eventgpt_videollava_tokens_1100.json",
            Path(folder),
            gpus=2,
            verify_ms=VERIFY_MS,
            drafts=DRAFTS,
            drafters="ngram",
        )
        work = scenes_without_models(7 if args.quick else 28, seconds=seconds)
        alone = [replace(request, speculate=False) for request in work]
        with launch(load_recipe(path)) as pipeline:
            runs = turn_about(
                {
                    "one after the other, alone": lambda: drive(pipeline, alone, 1),
                    "pipelined, alone": lambda: drive(pipeline, alone, 8),
                    "pipelined, drafts": lambda: drive(pipeline, work, 8),
                },
                1 if args.quick else 3,
                warm=False,  # nothing here gets faster by practice
            )
    print(f"\nclips: {len(work)} clips of {seconds} s, emulated")
    for name, each in runs.items():
        show(name, each)
    return {
        "clips_pipelined_vs_sequential": round(ratio(runs, "pipelined, alone", "one after the other, alone"), 3),
        "clips_with_drafts_vs_sequential": round(ratio(runs, "pipelined, drafts", "one after the other, alone"), 3),
    }
