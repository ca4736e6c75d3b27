"""`cascade plan`: which stage on which device of a cluster, what that should bring, and the recipe that runs so."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cascade_runtime.errors import ConfigError
from cluster.cli_nodes import LIVE, live_survey
from cluster.output_file import write_output

_PROBE_S = 15.0


def add_plan(commands: Any) -> None:
    """The parser of `plan`."""
    from cascade_runtime.planning import cluster_names, planned_recipe_names

    plan = commands.add_parser("plan", help="which stage on which device of a cluster, and what that should bring")
    plan.add_argument("recipe", metavar="RECIPE", help=f"one of {', '.join(planned_recipe_names())}, or a .toml file")
    plan.add_argument(
        "--cluster",
        required=True,
        metavar="NAME|FILE.toml",
        help=f"one of {', '.join(cluster_names())}, a file, or {LIVE}: the Ray that runs here or at RAY_ADDRESS",
    )
    plan.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="change the recipe")
    plan.add_argument(
        "--assume", action="append", default=[], metavar="WHAT", help="int8, int4 or sequential; repeatable"
    )
    plan.add_argument("--streams", type=int, metavar="N", help="requests at a time; 0 fills every slot")
    plan.add_argument("--prompt", type=int, metavar="N", help="positions of a request; 0: by its frames")
    plan.add_argument("--tokens", type=int, metavar="N", help="of an answer")
    plan.add_argument("--frames", type=int, metavar="N", help="of a request")
    plan.add_argument("--edge-link", metavar="MBIT,MS[,TIMES]", help="an edge box so far away: what crosses")
    plan.add_argument("--picture", type=Path, metavar="FILE.svg")
    plan.add_argument("-o", "--output", type=Path, metavar="FILE.toml", help="the recipe, placed as planned")
    plan.add_argument("--json", action="store_true")
    plan.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> int:
    from cascade_runtime.planning import check_assumptions, draw, edge_cuts, load_cluster, load_planned_recipe, plan

    for name, suffix in (("picture", ".svg"), ("output", ".toml")):
        given = getattr(args, name)
        if given and given.suffix != suffix:
            raise ConfigError(f"--{name}", str(given), f"a file that ends in {suffix}")
    recipe = load_planned_recipe(args.recipe, args.set)
    cluster = live_survey("auto", _PROBE_S).cluster if args.cluster == LIVE else load_cluster(args.cluster)
    given = {key: getattr(args, key) for key in ("streams", "prompt", "tokens", "frames")}
    load = replace(cluster.load, **{key: value for key, value in given.items() if value is not None})
    found = plan(recipe, cluster, load=load, assume=check_assumptions(args.assume))
    if args.picture:
        write_output(args.picture, draw(found))
    if args.output:
        for path, text in _placed(args.output, recipe, found, cluster).items():
            write_output(path, text)
            print(f"{path}: for cascade serve, or --recipe", file=sys.stderr)
    cuts = edge_cuts(recipe, cluster, args.edge_link, load)
    if args.json:
        print(json.dumps(found.to_dict() | ({"edge": cuts.to_dict()} if cuts else {})))
    else:
        print("\n\n".join([found.text(), *([cuts.text()] if cuts else [])]))
    return 0


def _placed(output: Path, recipe: Any, found: Any, cluster: Any) -> Mapping[Path, str]:
    """File -> recipe, one for each kind of replica."""
    from cascade_runtime.config import recipe_to_dict
    from cascade_runtime.planning import placed_recipes, to_toml

    texts = [to_toml(recipe_to_dict(each)) for each in placed_recipes(recipe, found, cluster)]
    return {output if not i else output.with_stem(f"{output.stem}-{i + 1}"): text for i, text in enumerate(texts)}
