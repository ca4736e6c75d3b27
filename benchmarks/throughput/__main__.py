"""How many tokens per second does a recipe give, and how much of that is the cascade's doing?

    python -m benchmarks.throughput [--recipe R] [--streams N] [--html FILE]
    ray job submit --working-dir . -- python -m benchmarks.throughput --recipe three_level --streams 8

The target alone and the cascade, turn about on the same running stages: `--streams` clients ask about simulated scenes,
each its next question as soon as it has an answer. One round of each to warm up, then `--rounds`. Token ids of all
rounds are compared, and where they differ the benchmark fails.

On a cluster that runs already (RAY_ADDRESS, as in a job, or --address) the stages start there; else on a Ray of its
own. The recipe's stages ask for CPUs by the book, six and a half of three_level; a cluster for it, workers in the
foreground:

    ray start --head --num-cpus 8 --system-config '{"worker_niceness": 0}'
    export RAY_AUTH_MODE=token

TTFT and TPOT are what answers report, from a request's arrival: time to the first token, and per token after it. alpha:
accepted of drafted tokens; tau: tokens won per verified block, the verifier's own included; hazard: refused of tested,
by position in the block. Busy shares and latency hidden are from the stages' own clocks (see `tracing/occupancy.py`).
A table, and one last line of JSON; --html writes a page of its own with pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.throughput.measure import Side, questions, sides
from benchmarks.throughput.page import page
from cascade_runtime.config import load_recipe
from cluster.launch import Pipeline, launch

FIRST_SCENE = 9_000_000  # far from the seeds of training
PACKAGES = ("ray", "torch", "transformers", "numpy")


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write. Returns 1 where answers differ."""
    args = _arguments(argv)
    recipe = load_recipe(args.recipe, args.set)
    work = questions(args.streams * args.requests, FIRST_SCENE + args.seed, args.max_tokens)
    with launch(recipe, address=args.address, report=lambda line: print(line, file=sys.stderr, flush=True)) as pipeline:
        alone, cascade = sides(pipeline, work, args.streams, args.rounds)
        memory = _memory(pipeline)
    told = _figures(args, recipe, alone, cascade, memory)
    print(_table(told), flush=True)
    if args.html is not None:
        args.html.write_text(page(told, alone, cascade), encoding="utf-8")
        print(f"{args.html}: {args.html.stat().st_size} bytes", file=sys.stderr)
    print(json.dumps(told))
    return 0 if told["identical"] else 1


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="three_level", metavar="NAME|FILE.toml")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="change the recipe")
    parser.add_argument("--streams", type=int, default=8, metavar="N", help="clients that ask at the same time")
    parser.add_argument("--requests", type=int, default=4, metavar="N", help="questions of each client a round")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which scenes are simulated")
    parser.add_argument("--address", default=os.environ.get("RAY_ADDRESS"), help="of a running cluster, or auto")
    parser.add_argument("--html", type=Path, metavar="FILE", help="a page with pictures")
    args = parser.parse_args(argv)
    for name in ("streams", "requests", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return args


def _figures(
    args: argparse.Namespace, recipe: Any, alone: Side, cascade: Side, memory: dict[str, Any]
) -> dict[str, Any]:
    said = {tuple(answer.token_ids for answer in run.answers) for side in (alone, cascade) for run in side.runs}
    ratios = [a.tokens_per_s / b.tokens_per_s for a, b in zip(cascade.runs, alone.runs, strict=True)]
    return {
        "benchmark": "throughput",
        "recipe": recipe.name,
        "mode": recipe.cascade.mode,
        "levels": list(recipe.cascade.levels),
        "marks": list(recipe.marks),
        "set": args.set,
        "streams": args.streams,
        "questions": args.streams * args.requests,
        "rounds": args.rounds,
        "max_tokens": args.max_tokens,
        "tps": round(cascade.tokens_per_s, 1),
        "tps_alone": round(alone.tokens_per_s, 1),
        "speedup": round(statistics.median(ratios), 3),
        "speedup_by_round": [round(ratio, 3) for ratio in ratios],
        "identical": len(said) == 1,
        "alone": alone.to_dict(),
        "cascade": cascade.to_dict(),
        "edges": {
            name: {
                "alpha": round(edge.acceptance_rate, 4),
                "tau": round(edge.mean_acceptance_length, 3),
                "hazard": [
                    round(hazard, 4) if tested else None
                    for hazard, tested in zip(
                        edge.acceptance_hazard_per_pos, edge.num_tested_tokens_per_pos, strict=True
                    )
                ],
                "tested": edge.num_tested_tokens_per_pos,
            }
            for name, edge in cascade.edges.items()
        },
        "said_by": cascade.said_by,
        "memory": memory,
        "machine": f"{platform.node()}, {os.cpu_count()} cores, {platform.machine()}",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _memory(pipeline: Pipeline) -> dict[str, Any]:
    """Per language stage, or replica of one: bytes of weights and of KV slots, the most its process has held, and its
    GPU's share.
    """
    control_s, told = pipeline.recipe.deadlines.control_s, {}
    for name in pipeline.recipe.level_members:
        stage = pipeline.stages[name]
        info = stage.result(stage.start("info"), control_s)
        told[name] = {
            "device": info["device"],
            "weights": info["weight_bytes"],
            "kv": info["kv_bytes"],
            "peak": info["peak_bytes"],
            "device_peak": info["device_peak_bytes"],
        }
    return told


def _table(told: dict[str, Any]) -> str:
    alone, cascade = told["alone"], told["cascade"]
    head = f"{told['recipe']}, {told['streams']} streams, {told['questions']} questions, {told['rounds']} rounds"
    lines = [*told["marks"], head, f"{'':22}{told['levels'][-1] + ' alone':>14}{'cascade':>12}"]
    for name, key in (
        ("tokens/s", "tokens_per_s"),
        ("TTFT p50, ms", "ttft_ms_p50"),
        ("TTFT p95, ms", "ttft_ms_p95"),
        ("TPOT p50, ms", "tpot_ms_p50"),
        ("TPOT p95, ms", "tpot_ms_p95"),
        ("latency hidden", "latency_hidden"),
    ):
        cells = [f"{side[key]:.2f}" if side[key] is not None else "-" for side in (alone, cascade)]
        lines.append(f"{name:22}{cells[0]:>14}{cells[1]:>12}")
    for stage, share in cascade["busy_share"].items():
        lines.append(f"{'busy, ' + stage:22}{alone['busy_share'][stage]:>14.0%}{share:>12.0%}")
    same = "the same token ids in every round" if told["identical"] else "TOKEN IDS DIFFER"
    lines.append(f"{told['speedup']:.2f}x the target alone; {same}")
    for name, edge in told["edges"].items():
        hazards = " ".join("-" if hazard is None else f"{hazard:.2f}" for hazard in edge["hazard"][:12])
        lines.append(f"{name}: alpha {edge['alpha']:.3f}, tau {edge['tau']:.2f}, hazard by position {hazards}")
    for name, held in told["memory"].items():
        figures = ", ".join(f"{key} {held[key] / 1e6:.0f} MB" for key in ("weights", "kv", "peak"))
        gpu = f", GPU peak {held['device_peak'] / 1e6:.0f} MB" if held["device_peak"] else ""
        lines.append(f"{name} on {held['device']}: {figures}{gpu}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
