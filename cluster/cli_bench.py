"""`cascade bench chaos`: what a pipeline's users notice while its processes are killed."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cascade_runtime.config import load_recipe


def add_bench(commands: Any) -> None:
    """Add the command to the parsers of `cascade`."""
    bench = commands.add_parser("bench", help="measure a running pipeline").add_subparsers(
        required=True, metavar="WHAT"
    )
    chaos = bench.add_parser("chaos", help="load while stages are killed and stopped; every answer is compared")
    chaos.add_argument("--recipe", default="three_level", metavar="NAME|FILE.toml")
    chaos.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="change the recipe")
    chaos.add_argument("--seed", type=int, default=0, metavar="N", help="of the load and the faults")
    chaos.add_argument("--minutes", type=float, default=2.0, metavar="N", help="of load with faults")
    chaos.add_argument("--load", type=float, default=0.7, metavar="SHARE", help="of the measured capacity")
    chaos.add_argument("--every", type=float, default=10.0, metavar="S", help="mean seconds from one fault to the next")
    chaos.add_argument(
        "--faults",
        default="kill,hang,pause,controller",
        metavar="KIND,..",
        help="kill, hang, pause (stages), controller, node (on a cluster of several nodes on this machine)",
    )
    chaos.set_defaults(run=_chaos)


def _chaos(args: argparse.Namespace) -> int:
    from cluster.chaos.run import ChaosConfig, run_chaos

    kinds = tuple(kind.strip() for kind in args.faults.split(","))
    config = ChaosConfig(seed=args.seed, minutes=args.minutes, load=args.load, every_s=args.every, kinds=kinds)
    return run_chaos(load_recipe(args.recipe, args.set), config, sys.stdout, sys.stderr)
