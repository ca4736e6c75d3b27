"""`forecast`: what one replica in a layout should reach, by `scheduling.prediction`, with the best m and W.

Stages on one device slow each other by the share of time that the others are busy; beside a split as if its devices
were one, in the simulator, too. A verifier waits for m drafts and its drafter stays within W; prefill, and vision where
it is done, take their share of each device.

Over a link W tokens may be under way at a time: from being drafted until their verdict is back they take a round trip
and a pass, so that up to W steps of it are hidden. A refusal costs a round trip whatever W is, and a verifier that
would wait for the next draft longer than `deadlines.upstream_s` goes on alone: drafts that overtake it all the same,
as those of a quick drafter that is nearly always right do, are left out.

Where a level has copies the requests fall into as many equal slices as there are of what is there most often, and one
slice is looked at: what is there less often has the passes of several slices at once, and costs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from cascade_runtime.planning.layout import Layout
from cascade_runtime.planning.problem import Problem
from cascade_runtime.planning.roofline import crowded, slowed
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.scheduling.hazards import geometric
from cascade_runtime.scheduling.prediction import Conditions, Prediction, predict

_WAITS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
_WINDOWS = (4, 8, 16, 32, 64)
_ROUNDS = 3


@dataclass(frozen=True)
class Edge:
    """Two neighbouring levels. min_drafts: m. window: W. drafts_per_pass: the gamma that comes of them, 0 where drafts
    come too late and the downstream goes on alone.
    """

    upstream: str
    downstream: str
    agreement: float
    latency_s: float
    min_drafts: int
    window: int
    drafts_per_pass: float
    tokens_per_pass: float


@dataclass(frozen=True)
class Forecast:
    """Of one replica. tokens_per_s over all its `rows`. ttft_s of a request that meets an idle replica. busy: share of
    time by part. pass_s: of each level.
    """

    rows: int
    tokens_per_s: float
    ttft_s: float
    edges: tuple[Edge, ...]
    busy: Mapping[str, float]
    pass_s: Mapping[str, float]


def forecast(
    problem: Problem,
    layout: Layout,
    rows: int,
    faster: Mapping[str, float] | None = None,
    own: frozenset[str] = frozenset(),
) -> Forecast:
    """rows: of all slices, which have as many each. faster: part name -> how many times as fast its device is taken to
    be, to see what depends on it. own: parts of which every row has one to itself, on such a device.
    """
    return max(
        (_Chain(problem, layout, rows, faster or {}, own).run(window) for window in _windows(layout)),
        key=lambda found: found.tokens_per_s,
    )


def _windows(layout: Layout) -> tuple[int, ...]:
    return _WINDOWS if len(layout.levels) > 1 else (1,)


class _Chain:
    def __init__(
        self, problem: Problem, layout: Layout, rows: int, faster: Mapping[str, float], own: frozenset[str]
    ) -> None:
        self.problem, self.layout, self.rows, self.own = problem, layout, rows // layout.slices, own
        self.names = [problem.levels[level].name for level in layout.levels]
        self.pools = {name: problem.cluster.pools[layout.devices[device]] for name, device in layout.at.items()}
        self.costs: dict[str, StepCost] = {}
        self.request_s: dict[str, float] = {}
        for part in problem.parts:
            if part.name in self.pools:
                kind, gain = problem.cluster.kind_of(self.pools[part.name]), faster.get(part.name, 1.0)
                self.request_s[part.name] = layout.crowd(part.name) * problem.request_s(part, kind) / gain
                if part.level is not None:
                    cost = slowed(problem.cost(part, kind, layout.span(part.name)), 1 / gain)
                    self.costs[part.name] = crowded(cost, layout.crowd(part.name))
        self.context = problem.prompt + problem.load.tokens / 2

    def run(self, window: int) -> Forecast:
        busy = dict.fromkeys(self.pools, 0.5)
        found = self._once(window, dict.fromkeys(self.pools, 0.0), busy)
        for _ in range(_ROUNDS):
            others = {name: self._others(name, found.busy) for name in self.pools}
            found = self._once(window, others, found.busy)
        return found

    def _others(self, name: str, busy: Mapping[str, float]) -> float:
        device = self.layout.at[name]
        return sum(busy[other] for other, where in self.layout.at.items() if where == device and other != name)

    def _once(self, window: int, others: Mapping[str, float], before: Mapping[str, float]) -> Forecast:
        """One round: every pass is slowed by what others on its device were busy in the round before."""
        problem, rows, tokens = self.problem, self.rows, self.problem.load.tokens
        cost = {name: slowed(self.costs[name], 1 + others[name]) for name in self.names}
        first = self.names[0]
        at_once = 1 if first in self.own else rows
        pass_s = {first: cost[first].seconds(at_once, at_once, at_once * self.context)}
        pace_s, edges, used = pass_s[first], [], {first: 1.0}
        rate = rows / pace_s
        for k, name in enumerate(self.names[1:]):
            above = self.names[k]
            alpha = problem.agreement(self.layout.levels[k], self.layout.levels[k + 1])
            latency_s = problem.cluster.latency_s(self.pools[above], self.pools[name]) or 0.0
            if 2 * latency_s + pace_s > problem.recipe.deadlines.upstream_s:
                m, said = 1, _alone(cost[name], rows, self.context)
            else:
                m, said = _best(cost[name], alpha, pace_s, 2 * latency_s, rows, self.context, window)
            edges.append(Edge(above, name, alpha, latency_s, m, window, said.drafts_per_pass, said.tokens_per_pass))
            cycle = said.pass_s + said.wait_s
            used[above] = min(
                used[above], (window + said.tokens_per_pass) * pass_s[above] / (1 + others[above]) / cycle
            )
            pass_s[name], used[name] = said.pass_s, min(1.0, rows * said.pass_s / cycle)
            rate = said.tokens_per_s
            pace_s = rows / rate
        prefill = {name: self._prefill_s(name) for name in self.names}
        last = self.names[-1]
        held_up = 1 / rate + prefill[last] * (1 + others[last]) / tokens  # a prompt holds up the decoding of the rest
        rate = 1 / held_up
        for name in self.pools:  # no part serves requests faster than it reads, encodes and prefills them
            whole = (self.request_s[name] + prefill.get(name, 0.0)) / (rows if name in self.own else 1)
            if self._on_a_device(name) and whole > 0:
                rate = min(rate, tokens / (whole * (1 + others[name])))
        busy = {name: used.get(name, 0.0) for name in self.pools}
        for name in self.pools:
            share = (
                (prefill.get(name, 0.0) + (self.request_s[name] if self._on_a_device(name) else 0.0)) * rate / tokens
            )
            if name == last:
                busy[name] = min(1.0, busy[name] * rate * (1 / rate - prefill[last] / tokens) + share)
            else:
                busy[name] = min(1.0, busy[name] + share)
            busy[name] = (busy[name] + before[name]) / 2  # damped, so that the rounds settle
        slices = self.layout.slices
        return Forecast(rows * slices, rate * slices, self._ttft_s(), tuple(edges), busy, pass_s)

    def _on_a_device(self, name: str) -> bool:
        """Host work as measured (`request_ms` of a level) overlaps with the device; towers do not."""
        return name not in self.names or name == self.problem.tower.name

    def _prefill_s(self, name: str) -> float:
        """What a prompt adds: to each pass that feeds a piece of it, and of the passes that its own row misses."""
        cost, rows = self.costs[name], 1 if name in self.own else self.rows
        held = rows * self.context
        pieces, piece = self._pieces()
        step_s = cost.seconds(rows, rows, held)
        return pieces * (cost.seconds(rows, rows - 1 + piece, held) - step_s) + (pieces - 1) * step_s / rows

    def _pieces(self) -> tuple[int, float]:
        """A prompt is fed in so many pieces, of so many positions."""
        pieces = -(-self.problem.prompt // self.problem.recipe.cascade.prefill_tokens)
        return pieces, self.problem.prompt / pieces

    def _ttft_s(self) -> float:
        """Vision, features over the link, prefill. In strict mode the target waits for its own tower alone."""
        problem, tower, last = self.problem, self.problem.tower.name, self.names[-1]
        target, size = self.pools[last], self.problem.levels[-1].size
        pieces, piece = self._pieces()
        alone = crowded(self.costs[last], 1 / self.layout.crowd(last))
        prefill_s = pieces * alone.seconds(1, piece, problem.prompt / 2)
        seconds = self.request_s[tower] / self.layout.crowd(tower) + prefill_s
        sender = self.pools.get("encoder", self.pools[tower])
        features = 2.0 * problem.load.frames * size.positions * size.feature_size
        latency_s = problem.cluster.latency_s(sender, target) or 0.0
        return seconds + (latency_s + features / problem.cluster.bytes_per_s(sender, target) if sender != target else 0)


@lru_cache(maxsize=100_000)
def _best(
    cost: StepCost, alpha: float, pace_s: float, restart_s: float, rows: int, context: float, window: int
) -> tuple[int, Prediction]:
    """The m that promises most tokens per second, if a pass looks at all drafts that wait."""

    def at(m: int) -> Prediction:
        under_way_s = restart_s + min(restart_s, cost.seconds(rows, rows * (1 + m), rows * context))
        flow_s = max(pace_s, min(under_way_s / window, pace_s + restart_s / m))  # of a drafter that is W tokens ahead
        first_s = restart_s - m * (flow_s - pace_s)  # after a refusal the first m come at their own pace
        return predict(Conditions(cost, geometric(alpha, window + 1), flow_s, first_s, rows, context), m, window)

    return max(((m, at(m)) for m in _WAITS if m <= window), key=lambda found: found[1].tokens_per_s)


def _alone(cost: StepCost, rows: int, context: float) -> Prediction:
    """Of a verifier whose drafts never come in time."""
    return predict(Conditions(cost, geometric(0.0, 1), 0.0, 0.0, rows, context), 0, 0)
