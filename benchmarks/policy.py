"""Does the adaptive policy find what the best fixed one would have been set to, and does it follow a change?

    python -m benchmarks.policy [--quick] [--only sweep|change]

In the simulator, two stages on devices of their own, and two ways in which a pass grows with its tokens (a device bound
by its memory, and one bound by its arithmetic): tokens per second of the adaptive policy over the best of all fixed
ones, each run for the same requests. Fixed is any of (m, W), or never to draft.

sweep: over agreement, speed ratio and streams. change: something changes while answers are under way. `oracle` is what
a fixed policy that is exchanged at that moment, for the best one of what follows, has over the best that stays: where
that is hardly more than 1, following brings nothing, and no policy can be seen to do it.

Passes vary by 5 % either way: where all take the same time and the ratio is a whole number, stages fall into step, and
a window of 6 loses 4 % to 5 and to 7 (agreement .5, ratio 3, one stream); with as little as that they do not. A line
per condition, one JSON line last.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cascade_runtime.messages import Grant
from cascade_runtime.scheduling.adaptive import Adaptive
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.scheduling.policy import Policy
from cascade_runtime.scheduling.scheduled_row import ScheduledRow
from cascade_runtime.simulation import Agreement, Link, Load, Stage, simulate
from cascade_runtime.simulation.tokens import uniform

STEP_S = 2e-3  # of the drafter
TOKENS = 96  # of an answer
SEEDS = 3  # one run of a dozen answers says a ratio to 2 % only
NEAR = 1.06  # of the least time: which settings are run with all seeds
VARIES = 0.05  # of a pass's time, either way
CAN_SHOW = 1.03  # what following must be worth for a change to show whether a policy follows
BOUNDS = {"memory": (0.96, 0.02, 0.005), "arithmetic": (0.5, 0.1, 0.4)}  # of a step over one row: pass, row, token


# -- policies --------------------------------------------------------------------------------------------------------


class Fixed(Policy):
    """At least m drafts, and all that are there."""

    def limit(self, row: ScheduledRow) -> int:
        """Everything."""
        return 64


class Never(Policy):
    """Nobody drafts."""

    def limit(self, row: ScheduledRow) -> int:
        """Nothing."""
        return 0

    def grant(self, row: ScheduledRow) -> Grant:
        """Nothing."""
        return Grant(0)


Setting = tuple[int, int] | None  # m and W, or never
SETTINGS: tuple[Setting, ...] = (*itertools.product((0, 1, 2, 4, 8), (8, 32)), None)


def fixed(setting: Setting) -> Policy:
    """The policy that stays so."""
    return Never(0) if setting is None else Fixed(*setting)


class Oracle(Policy):
    """Knows when what changes, and the best setting for it."""

    def __init__(self, run: Changing, settings: Sequence[Setting]) -> None:
        super().__init__(0)
        self._run, self._each = run, [fixed(setting) for setting in settings]

    def need(self, row: ScheduledRow) -> int:
        """As is best now."""
        return self._each[self._run.now].need(row)

    def limit(self, row: ScheduledRow) -> int:
        """As is best now."""
        return self._each[self._run.now].limit(row)

    def grant(self, row: ScheduledRow) -> Grant:
        """As is best now."""
        return self._each[self._run.now].grant(row)


# -- conditions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phase:
    """What holds for a while. ratio: of the target's step to that of a drafter in good health. light, heavy: how many
    times slower than that the two are.
    """

    agreement: float
    ratio: float
    streams: int
    bound: str = "memory"
    light: float = 1.0
    heavy: float = 1.0
    latency_s: float = 1e-4
    upstream_s: float = 0.05  # as recipes have it
    answers: int = 12

    @property
    def requests(self) -> int:
        """So many, or three for each client."""
        return max(self.answers, 3 * self.streams)

    def cost(self, step_s: float) -> tuple[float, float, float]:
        """Of a stage whose step over one row takes `step_s`: per pass, row and token."""
        base, per_row, per_token = BOUNDS[self.bound]
        return step_s * base, step_s * per_row, step_s * per_token


class Changing:
    """One run through phases. A phase is over when the target has chosen as many tokens as its answers would have, so
    that all policies have done the same work by then, whatever is under way. Clients go on asking to the end, and the
    last phase is over while all of them have a request, or a setting would be judged by how well its last ones agree.
    """

    def __init__(self, phases: Sequence[Phase], seed: int) -> None:
        self.phases, self.now = phases, 0
        self.vocab_size, self.ends = Agreement.vocab_size, Agreement.ends
        self.passes = 0  # of the target
        self._agreement = [Agreement([phase.agreement], seed) for phase in phases]
        self._ends = list(itertools.accumulate(phase.requests * TOKENS for phase in phases))
        self._chosen, self._changed = 0, [0]
        self.tokens = self._ends[-1]

    def choice(self, stage: int, request: int, prefix: tuple[int, ...]) -> int:
        """The token. What the target chooses, the simulator keeps."""
        if stage:
            self._chosen += 1
            if self._chosen in self._ends:
                self.now = min(self.now + 1, len(self.phases) - 1)
                self._changed.append(self.passes)
        return self._agreement[self.now].choice(stage, request, prefix)

    def seconds(self, policy: Policy, *, speculate: bool = True) -> list[float]:
        """Of each phase, under a policy of the target."""
        first, requests = self.phases[0], self.tokens // TOKENS + self.phases[-1].streams
        light = ChangingCost(*first.cost(STEP_S), run=self)
        heavy = ChangingCost(*first.cost(first.ratio * STEP_S), run=self, heavy=True)
        load = ChangingLoad(first.streams, requests, TOKENS, speculate=speculate, run=self)
        stages = [Stage("light", Policy(0), light), Stage("heavy", policy, heavy)]
        links = [ChangingLink(run=self)]
        result = simulate(stages, self, load, links, upstream_s=first.upstream_s, window=32, keep_passes=True)
        ends = [0.0, *(each.end_s for each in result.passes if each.stage)]
        return [ends[after] - ends[before] for before, after in itertools.pairwise(self._changed)]


@dataclass(frozen=True)
class ChangingLoad(Load):
    """As many clients as the phase has."""

    run: Changing | None = None

    def streams_at(self, request: int) -> int:
        """How many."""
        assert self.run is not None
        return self.run.phases[self.run.now].streams


@dataclass(frozen=True)
class ChangingLink(Link):
    """As slow as the phase says."""

    run: Changing | None = None

    def seconds(self) -> float:
        """One way."""
        assert self.run is not None
        return self.run.phases[self.run.now].latency_s


@dataclass(frozen=True)
class ChangingCost(StepCost):
    """Passes that take up to 5 % more or less than a line says, as a function of what is in them, and what a phase
    makes of that.
    """

    run: Changing | None = None
    heavy: bool = False

    def seconds(self, rows: float, tokens: float, context: float = 0.0) -> float:
        """What a pass takes that begins now."""
        assert self.run is not None
        phase = self.run.phases[self.run.now]
        self.run.passes += self.heavy
        chance = uniform(int(rows), int(tokens), int(context), int(1e9 * self.base))
        slower = phase.heavy if self.heavy else phase.light
        return slower * super().seconds(rows, tokens, context) * (1.0 + VARIES * (2.0 * chance - 1.0))


# -- the sweep and the changes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One condition, or several in turn."""

    name: str
    phases: tuple[Phase, ...]

    def seconds(
        self, policy: Callable[[Changing], Policy], seeds: Sequence[int] = range(SEEDS), *, speculate: bool = True
    ) -> list[float]:
        """Of each phase, all seeds together, with a policy that begins anew at each."""
        runs = [Changing(self.phases, seed) for seed in seeds]
        spent = [run.seconds(policy(run), speculate=speculate) for run in runs]
        return [sum(phase) for phase in zip(*spent, strict=True)]

    def fixed(self) -> dict[Setting, list[float]]:
        """Seconds of each phase for each setting that stays. Those that one seed shows to be far from the best, in all
        phases and in the sum, are not run with the others.
        """
        one = {setting: self.seconds(lambda _: fixed(setting), [0]) for setting in SETTINGS}  # noqa: B023
        with_sum = {setting: [*spent, sum(spent)] for setting, spent in one.items()}
        least = [min(each) for each in zip(*with_sum.values(), strict=True)]
        out = {}
        for setting, spent in with_sum.items():
            if any(mine < NEAR * best for mine, best in zip(spent, least, strict=True)):
                more = self.seconds(lambda _: fixed(setting), range(1, SEEDS))  # noqa: B023
                out[setting] = [a + b for a, b in zip(one[setting], more, strict=True)]
        return out

    def prior(self) -> StepCost:
        """What a pass of the target costs at first."""
        first = self.phases[0]
        return StepCost(*first.cost(first.heavy * first.ratio * STEP_S))


def compare(point: Point) -> dict[str, float]:
    """The adaptive policy beside every fixed one, beside the target alone, and beside who knows what will change.
    Prints what it found.
    """
    each = point.fixed()
    best = min(each, key=lambda setting: sum(each[setting]))
    phases = range(len(point.phases))
    wise = [min(each, key=lambda setting: each[setting][k]) for k in phases]
    begun: list[Adaptive] = []

    def anew(_: Changing) -> Policy:
        begun.append(Adaptive(point.prior(), most=32))
        return begun[-1]

    adaptive, decision = sum(point.seconds(anew)), begun[-1].decision
    alone = sum(point.seconds(lambda _: Policy(0), speculate=False))
    found = {"best": sum(each[best]) / adaptive, "alone": alone / adaptive}
    if len(phases) > 1:
        found["oracle"] = sum(each[best]) / sum(point.seconds(lambda run: Oracle(run, wise)))
    settled = (decision.min_drafts, decision.window) if decision.speculate else None
    oracle = f"{found['oracle']:>8.3f}" if "oracle" in found else ""
    settings = " then ".join(said(setting) for setting in dict.fromkeys((best, *wise)))
    print(
        f"{point.name:<52}{found['best']:>8.3f}{found['alone']:>8.3f}{oracle:>8}   {said(settled):<8}{settings}",
        flush=True,
    )
    return found


def said(setting: Setting) -> str:
    """m and W in a line."""
    return "never" if setting is None else f"{setting[0]}, {setting[1]}"


def sweep(quick: bool) -> list[Point]:
    """Conditions that stay."""
    agreements, ratios = ((0.5, 0.9), (10,)) if quick else ((0.0, 0.3, 0.5, 0.7, 0.9), (3, 10, 20))
    return [
        Point(f"agreement {a}, ratio {c}, streams {n}, {bound}", (Phase(a, c, n, bound),))
        for a, c, n, bound in itertools.product(agreements, ratios, (1, 4, 16), BOUNDS)
    ]


def changes(quick: bool) -> list[Point]:
    """Conditions that change, in ways that happen."""
    out = [Point(*agreement(0.9, 0.2, 20, n, "memory")) for n in (1, 8)]
    if quick:
        return out
    out = [Point(*agreement(a, b, c, n, "memory")) for a, b in SWINGS for c in (5, 20) for n in (1, 8)]
    out += [Point(*agreement(a, b, 10, n, "arithmetic")) for a, b in SWINGS for n in (1, 4)]
    for n in (1, 8):
        usual = Phase(0.8, 10, n)
        slow, hung = replace(usual, ratio=20, light=5.0), replace(usual, light=40.0)
        heavy, near = replace(usual, ratio=4, heavy=5.0), replace(usual, upstream_s=0.5)
        out += [
            Point(f"drafter 5 times slower, ratio 20, streams {n}", (replace(usual, ratio=20), slow)),
            Point(f"target 5 times slower, ratio 4, streams {n}", (replace(usual, ratio=4), heavy)),
            Point(f"latency .1 to 50 ms, ratio 10, streams {n}", (near, replace(near, latency_s=0.05))),
            Point(f"drafter hangs and comes back, ratio 10, streams {n}", (usual, hung, usual)),
        ]
    for bound, (a, b) in itertools.product(BOUNDS, ((16, 1), (1, 16))):
        # as many answers before as after, or what 16 have begun is most of what one asks for
        phases = Phase(0.8, 10, a, bound, answers=48), Phase(0.8, 10, b, bound, answers=48)
        out.append(Point(f"streams {a} to {b}, ratio 10, {bound}", phases))
    return out


SWINGS = ((0.9, 0.2), (0.2, 0.9))


def agreement(before: float, after: float, ratio: float, streams: int, bound: str) -> tuple[str, tuple[Phase, ...]]:
    """It drops or rises: another kind of scene, another language."""
    name = f"agreement {before} to {after}, ratio {ratio}, streams {streams}, {bound}"
    return name, (Phase(before, ratio, streams, bound), Phase(after, ratio, streams, bound))


def main() -> None:
    """Compare, print, end in JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("sweep", "change"))
    args = parser.parse_args()
    print(f"{'adaptive over':<52}{'best':>8}{'alone':>8}{'oracle':>8}   {'settled':<8}best, then best of each phase")
    result: dict[str, float] = {}
    alone: list[float] = []
    for name, points in (("sweep", sweep), ("change", changes)):
        if args.only in (None, name):
            found = [compare(point) for point in points(args.quick)]
            alone += [each["alone"] for each in found]
            result |= report(name, found)
    print(json.dumps(result | {"worst_vs_alone": round(min(alone), 3)}))


def report(name: str, found: Sequence[dict[str, float]]) -> dict[str, float]:
    """The spread of one group."""
    ratios = sorted(each["best"] for each in found)
    print(
        f"{name}: over the best fixed, worst {ratios[0]:.3f}, "
        f"median {statistics.median(ratios):.3f}, best {ratios[-1]:.3f}"
    )
    out = {f"worst_{name}": round(ratios[0], 3)}
    show = [each["best"] for each in found if each.get("oracle", 0.0) > CAN_SHOW]
    if show:
        more = sum(ratio > 1 for ratio in show)
        gains = f"an oracle gains over {CAN_SHOW - 1:.0%}"
        print(f"{name}: where {gains}, more than the best fixed in {more} of {len(show)}")
        out |= {"worst_that_can_show": round(min(show), 3), "can_show": len(show), "above_1": more}
    return out


if __name__ == "__main__":
    main()
