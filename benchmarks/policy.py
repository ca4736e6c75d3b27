"""Does the adaptive policy find what the best fixed one would have been set to, and does it follow a change?

    python -m benchmarks.policy [--quick]

In the simulator, over agreement, speed ratio and streams, two stages on devices of their own, and two ways in which a
pass grows with its tokens (a device bound by its memory, and one bound by its arithmetic): tokens per second of the
adaptive policy over the best of all fixed (m, W), each run for the same requests. `change`: the agreement drops or
rises in the middle of the run; the best fixed policy is the best over the whole run. Passes vary by 5 % either way:
where all take the same time and the ratio is a whole number, stages fall into step, and a window of 6 loses 4 % to 5
and to 7 (agreement .5, ratio 3, one stream); with as little as that they do not. One JSON line last.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from cascade_runtime.scheduling.adaptive import Adaptive
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.scheduling.policy import Policy
from cascade_runtime.simulation import Agreement, Link, Load, Stage, simulate
from cascade_runtime.simulation.tokens import uniform

MS = (0, 1, 2, 4, 8)
WINDOWS = (8, 32)
STEP_S = 2e-3  # of the drafter
SEEDS = 3  # one run of a dozen answers says a ratio to 2 % only
VARIES = 0.05  # of a pass's time, either way


class Fixed(Policy):
    """At least m drafts, and all that are there."""

    def limit(self, row: object) -> int:
        """Everything."""
        return 64


class Changing(Agreement):
    """Agreement that changes from one request on."""

    def __init__(self, before: float, after: float, at: int, seed: int) -> None:
        super().__init__([before], seed)
        self.before, self.after, self.at = before, after, at

    def choice(self, stage: int, request: int, prefix: tuple[int, ...]) -> int:
        """The token."""
        self.agreement[0] = self.before if request < self.at else self.after
        return super().choice(stage, request, prefix)


@dataclass(frozen=True)
class Varying(StepCost):
    """Passes that take up to 5 % more or less than a line says, as a function of what is in them."""

    def seconds(self, rows: float, tokens: float, context: float = 0.0) -> float:
        """What a pass takes."""
        chance = uniform(int(rows), int(tokens), int(context), int(1e9 * self.base))
        return super().seconds(rows, tokens, context) * (1.0 + VARIES * (2.0 * chance - 1.0))


@dataclass(frozen=True)
class Point:
    """One condition. bound: what a pass of the target grows with, "memory" or "arithmetic"."""

    agreement: float
    ratio: float
    streams: int
    bound: str
    after: float | None = None

    def coefficients(self, step_s: float) -> tuple[float, float, float]:
        """Of a stage whose step over one row takes `step_s`: per pass, row and token."""
        base, per_row, per_token = {"memory": (0.96, 0.02, 0.005), "arithmetic": (0.5, 0.1, 0.4)}[self.bound]
        return step_s * base, step_s * per_row, step_s * per_token

    def stages(self, policy: Policy) -> list[Stage]:
        """The drafter and the target under `policy`."""
        light, heavy = (Varying(*self.coefficients(step_s)) for step_s in (STEP_S, self.ratio * STEP_S))
        return [Stage("light", Policy(0), light), Stage("heavy", policy, heavy)]

    def run(self, policy: Policy, requests: int, seed: int) -> float:
        """Tokens per second."""
        tokens = Agreement([self.agreement], seed)
        if self.after is not None:
            tokens = Changing(self.agreement, self.after, requests // 2, seed)
        load = Load(self.streams, requests, 96)
        return simulate(self.stages(policy), tokens, load, [Link(1e-4)], upstream_s=1.0, window=32).tokens_per_s

    def mean(self, policy: Callable[[], Policy], requests: int) -> float:
        """Tokens per second, over the answers of all seeds, with a policy that begins anew at each."""
        return statistics.harmonic_mean([self.run(policy(), requests, seed) for seed in range(SEEDS)])


def compare(point: Point, requests: int) -> dict[str, object]:
    """The adaptive policy beside every fixed one and beside the target alone."""
    fixed = {
        (m, window): point.mean(lambda: Fixed(m, window), requests)  # noqa: B023
        for m, window in itertools.product(MS, WINDOWS)
        if m <= window
    }
    best = max(fixed, key=lambda each: fixed[each])
    begun: list[Adaptive] = []

    def anew() -> Adaptive:
        begun.append(Adaptive(StepCost(*point.coefficients(point.ratio * STEP_S)), most=32))
        return begun[-1]

    adaptive, decision = point.mean(anew, requests), begun[-1].decision
    load = Load(point.streams, requests, 96, speculate=False)
    apart = simulate(point.stages(Policy(0)), Agreement([0.0]), load).tokens_per_s
    return {
        "point": point.__dict__,
        "adaptive_vs_best_fixed": round(adaptive / fixed[best], 3),
        "adaptive_vs_alone": round(adaptive / apart, 3),
        "best_fixed": best,
        "decided": (decision.min_drafts, decision.window, decision.speculate),
    }


def points(quick: bool) -> list[Point]:
    """The sweep."""
    agreements, ratios = ((0.5, 0.9), (10,)) if quick else ((0.0, 0.3, 0.5, 0.7, 0.9), (3, 10, 20))
    steady = [
        Point(a, c, n, bound)
        for a, c, n, bound in itertools.product(agreements, ratios, (1, 4, 16), ("memory", "arithmetic"))
    ]
    change = [
        Point(a, c, n, "memory", b) for (a, b), c, n in itertools.product(((0.9, 0.2), (0.2, 0.9)), (5, 20), (1, 8))
    ]
    return steady + change


def main() -> None:
    """Sweep, print, end in JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    everything = points(args.quick)
    requests = [max(12, 3 * point.streams) * (2 if point.after is not None else 1) for point in everything]
    with ProcessPoolExecutor(2) as pool:
        rows = list(pool.map(compare, everything, requests))
    for row in rows:
        print(row)
    report("steady", [row for row, point in zip(rows, everything, strict=True) if point.after is None])
    report("change", [row for row, point in zip(rows, everything, strict=True) if point.after is not None])
    result = {}
    for name, changed in (("steady", False), ("change", True)):
        some = [r for r, p in zip(rows, everything, strict=True) if (p.after is not None) == changed]
        result[f"worst_{name}"] = min(row["adaptive_vs_best_fixed"] for row in some)  # type: ignore[type-var]
    result["worst_vs_alone"] = min(row["adaptive_vs_alone"] for row in rows)  # type: ignore[type-var]
    print(json.dumps(result))


def report(name: str, rows: Sequence[dict[str, object]]) -> None:
    """The spread of one group."""
    ratios = sorted(float(str(row["adaptive_vs_best_fixed"])) for row in rows)
    print(
        f"{name}: over the best fixed, worst {ratios[0]:.3f}, "
        f"median {statistics.median(ratios):.3f}, best {ratios[-1]:.3f}"
    )


if __name__ == "__main__":
    main()
