"""`cascade batch`: the questions of a file, answered into another, with a progress bar and accuracy.

    cascade batch -i questions.parquet -o answers.parquet
    ray job submit --working-dir . -- python -m cluster.cli batch -i /data/q.jsonl -o /data/a.jsonl --target ray

The same command again goes on where the last one was stopped. On a cluster that runs already (`ray job submit` names
it in RAY_ADDRESS, or --address) the stages start there; else a Ray of its own is started.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from cascade_runtime.config import Recipe, SamplingParams, load_recipe, recipe_names
from cascade_runtime.errors import ConfigError

_PER_SLOT = 4  # questions handed over at once for each that the cascade answers at a time
_TARGETS = ("in-process", "ray")


def add_batch(commands: Any) -> None:
    """Add the command to the parsers of `cascade`."""
    batch = commands.add_parser("batch", help="answer the questions of a file, each once, whatever stops the run")
    batch.add_argument("-i", "--input", type=Path, required=True, metavar="FILE", help=".jsonl, .parquet, .json, .csv")
    batch.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help=".jsonl or .parquet")
    batch.add_argument("--layout", default="rows", metavar="NAME", help="of the input: dsec, mvbench, videomme, ...")
    batch.add_argument("--root", type=Path, metavar="DIR", help="recordings lie below it; default: the input's folder")
    batch.add_argument("--target", choices=_TARGETS, default="in-process", help="where the stages run")
    batch.add_argument("--address", metavar="ADDRESS", help="of a running Ray cluster; default: RAY_ADDRESS")
    batch.add_argument(
        "--recipe",
        default="three_level",
        metavar="NAME|FILE.toml",
        help=f"one of {', '.join(recipe_names())}, or a file",
    )
    batch.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="change the recipe")
    defaults = SamplingParams()
    batch.add_argument("--max-tokens", type=int, default=defaults.max_tokens, metavar="N")
    batch.add_argument("--temperature", type=float, default=defaults.temperature, metavar="T", help="0 is greedy")
    batch.add_argument("--seed", type=int, default=defaults.seed, metavar="N")
    batch.add_argument("--alone", action="store_true", help="the target alone, without drafts: the same tokens, slower")
    batch.add_argument(
        "--concurrency", type=int, metavar="N", help=f"questions handed over at once; default {_PER_SLOT} for each slot"
    )
    batch.add_argument(
        "--window-rows",
        type=int,
        default=1024,
        metavar="N",
        help="within so many rows questions about one recording are asked together",
    )
    batch.add_argument(
        "--keep-features-mb",
        type=int,
        default=256,
        metavar="N",
        help="of what the towers made of recordings, kept for the next question about them; 0: none",
    )
    batch.add_argument("--no-resume", action="store_true", help="begin anew and replace the output")
    batch.add_argument("--quiet", action="store_true", help="no progress bar")
    batch.add_argument("--json", action="store_true", help="the figures as one line of JSON")
    batch.set_defaults(run=_batch)


def _batch(args: argparse.Namespace) -> int:
    from cascade_runtime.batch import BatchConfig, begin, run_batch

    recipe = load_recipe(args.recipe, [*args.set, f"cascade.keep_features_mb={args.keep_features_mb}"])
    config = BatchConfig(
        input=args.input,
        output=args.output,
        layout=args.layout,
        root=args.root,
        sampling=SamplingParams(max_tokens=args.max_tokens, temperature=args.temperature, seed=args.seed),
        speculate=not args.alone,
        concurrency=_PER_SLOT * recipe.cascade.slots if args.concurrency is None else args.concurrency,
        window_rows=args.window_rows,
        resume=not args.no_resume,
        hidden=args.quiet,
    )
    told = begin(config, recipe, _checkpoints(recipe))
    if told is None:
        told = asyncio.run(_run(args, recipe, config, run_batch))
    else:
        print(f"{config.output} is complete already; --no-resume begins anew", file=sys.stderr)
    print(json.dumps(told.to_dict()) if args.json else told.text())
    if told.failed:
        print(f"{told.failed} rows failed; the same command asks them again", file=sys.stderr)
    return 1 if told.failed else 0


async def _run(args: argparse.Namespace, recipe: Recipe, config: Any, run_batch: Any) -> Any:
    """Start the stages, answer, stop the stages."""
    from cascade_runtime.transports import open_transport

    address = args.address or os.environ.get("RAY_ADDRESS") if args.target == "ray" else None
    if args.address and args.target != "ray":
        raise ConfigError("address", args.address, "an address together with --target ray")
    print(f"loading {', '.join(recipe.cascade.levels)} ...", file=sys.stderr, flush=True)
    transport = open_transport(f"ray://{address}" if address else args.target, recipe)
    try:
        return await run_batch(config, transport)
    finally:
        await transport.close()


def _checkpoints(recipe: Recipe) -> dict[str, str]:
    """Stage -> the directory it loads; nothing where stages are emulated or look words up."""
    if recipe.emulation is not None:
        return {}
    from cascade_runtime.models.stage_source import checkpoint_path

    places = [*recipe.stages, *filter(None, (recipe.encoder, recipe.adapter))]
    return {place.name: checkpoint_path(place) for place in places if place.checkpoint}
