"""What does each figure of a cascade do to its speed? Tables, and with --out one SVG chart per table.

    python -m benchmarks.ablations [--out FOLDER] [--costs 1,5,20] [--agreement 0.8,0.85] [--real]

In the simulator, one stream and sixteen, everything else fixed, speed over the target alone:

    gamma       lock step, by the length of a block
    stages      light->heavy, mid->heavy, light->mid->heavy, each under the adaptive policy
    m           asynchronous, by how many drafts a verifier waits for
    W           asynchronous, by how far a drafter may run ahead; and the share of drafts thrown away

With --real, on the bundled family in Ray actors: draft_length "survival", "confidence" by its threshold, and
"occupancy", tokens per second turn about and tokens per verified block.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.chart import line_chart
from cascade_runtime.config import load_recipe
from cascade_runtime.scheduling.adaptive import Adaptive
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.scheduling.policy import LockStep, Policy
from cascade_runtime.simulation import Agreement, Load, Result, Stage, simulate

GAMMAS = (1, 2, 3, 4, 6, 8, 12, 16)
MS = (0, 1, 2, 3, 4, 6, 8, 12)
WINDOWS = (2, 4, 8, 16, 32, 64)
STREAMS = (1, 16)
THRESHOLDS = (0.1, 0.3, 0.6)


class _Waits(Policy):
    """At least m drafts, and all that are there."""

    def limit(self, row: object) -> int:
        """Everything."""
        return 64


class Bench:
    """One set of step costs (ms) and agreements, lightest first."""

    def __init__(self, costs: Sequence[float], agreement: Sequence[float]) -> None:
        self.costs = [StepCost(base=0.9e-3 * cost, per_row=0.1e-3 * cost) for cost in costs]
        self.agreement = list(agreement)

    def run(self, levels: Sequence[int], policies: Sequence[Policy], streams: int) -> Result:
        """A cascade of some of the levels."""
        chain = []
        for a, b in itertools.pairwise(levels):
            between = 1.0
            for edge in self.agreement[a:b]:
                between *= edge
            chain.append(between)
        stages = [Stage(str(k), policy, self.costs[k]) for k, policy in zip(levels, policies, strict=True)]
        load = Load(streams, max(6, 2 * streams), 128)
        return simulate(stages, Agreement(chain), load, upstream_s=5.0, window=64)

    def alone(self, streams: int) -> float:
        """The target without drafters."""
        return self.run([len(self.costs) - 1], [Policy(0)], streams).tokens_per_s

    def table(
        self, levels: Sequence[int], make: Callable[[Any], list[Policy]], points: Sequence[Any]
    ) -> dict[str, Any]:
        """Speed over the target alone, and the share of the first stage's drafts that are in no answer."""
        out: dict[str, Any] = {}
        for streams in STREAMS:
            results = [self.run(levels, make(point), streams) for point in points]
            out[f"{streams} streams"] = [round(result.tokens_per_s / self.alone(streams), 3) for result in results]
            if streams == 1:
                out["thrown away, 1 stream"] = [round(1 - result.tokens / result.drafted[0], 3) for result in results]
        return out


def _adaptive(bench: Bench, levels: Sequence[int]) -> list[Policy]:
    first: list[Policy] = [Policy(0, sends=2)]
    return first + [Adaptive(bench.costs[k], most=64, sends=2, can_relay=i > 1) for i, k in enumerate(levels) if i]


def simulated(bench: Bench) -> dict[str, tuple[str, Sequence[Any], dict[str, Any]]]:
    """Every table: name -> (what is varied, points, series)."""
    top = len(bench.costs) - 1
    ends, every = (0, top), tuple(range(top + 1))
    tables = {
        "gamma": (
            "tokens in a block, light->heavy in lock step",
            GAMMAS,
            bench.table(ends, lambda g: [LockStep(0, sends=g), LockStep(g)], GAMMAS),
        ),
        "m": (
            "drafts the target waits for, light->heavy",
            MS,
            bench.table(ends, lambda m: [Policy(0), _Waits(m, 64)], MS),
        ),
        "W": (
            "tokens the drafter may run ahead, light->heavy, m = 2",
            WINDOWS,
            bench.table(ends, lambda w: [Policy(0), _Waits(min(2, w), w)], WINDOWS),
        ),
    }
    chains = [ends, *([(top - 1, top), every] if top > 1 else [])]
    series = {f"{n} streams": [] for n in STREAMS}
    for levels in chains:
        for streams in STREAMS:
            rate = bench.run(levels, _adaptive(bench, levels), streams).tokens_per_s
            series[f"{streams} streams"].append(round(rate / bench.alone(streams), 3))
    names = ["light->heavy", "mid->heavy", "light->mid->heavy"][: len(chains)]
    tables["stages"] = ("stages, adaptive", names, series)
    return tables


def real() -> tuple[str, Sequence[Any], dict[str, Any]]:
    """How far light drafts, on the bundled family."""
    from benchmarks.pipeline.run import drive, local_ray, requests, turn_about
    from cluster.launch import launch

    recipe = load_recipe("light_heavy")
    work = requests(8, 64)
    variants = {"survival": recipe.policy, "occupancy": replace(recipe.policy, draft_length="occupancy")} | {
        f"confidence {limit}": replace(recipe.policy, draft_length="confidence", min_confidence=limit)
        for limit in THRESHOLDS
    }
    rates, lengths = [], []
    with local_ray(), launch(recipe) as base:
        for policy in variants.values():
            with launch(replace(recipe, policy=policy)) as other:
                runs = turn_about({"it": lambda: drive(other, work, 1), "base": lambda: drive(base, work, 1)}, 3)
                lengths.append(round(other.stats()["heavy"]["edge"]["mean_acceptance_length"], 2))
            pairs = zip(runs["it"], runs["base"], strict=True)
            rates.append(round(statistics.median(a.tokens_per_s / b.tokens_per_s for a, b in pairs), 3))
    return "draft_length, beside survival", list(variants), {"speed": rates, "tokens per verified block": lengths}


def main() -> None:
    """Print the tables, draw them if asked, end in JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a folder for the charts")
    parser.add_argument("--costs", default="1,5,20", help="ms of a step, lightest first")
    parser.add_argument("--agreement", default="0.8,0.85", help="of neighbours, lightest edge first")
    parser.add_argument("--real", action="store_true", help="also the bundled family, on Ray")
    args = parser.parse_args()
    bench = Bench([float(each) for each in args.costs.split(",")], [float(each) for each in args.agreement.split(",")])
    tables = simulated(bench)
    if args.real:
        tables["draft_length"] = real()
    for name, (across, points, series) in tables.items():
        print(f"\n{name}: {across}")
        print(
            f"  {'':<28}"
            + "".join(f"{point!s:>20}" if name in ("stages", "draft_length") else f"{point!s:>8}" for point in points)
        )
        for each, values in series.items():
            print(
                f"  {each:<28}"
                + "".join(f"{v:>20}" if name in ("stages", "draft_length") else f"{v:>8}" for v in values)
            )
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            line_chart(args.out / f"{name}.svg", name, across, points, series)
    print(json.dumps({name: {"points": list(points), **series} for name, (_, points, series) in tables.items()}))


if __name__ == "__main__":
    main()
