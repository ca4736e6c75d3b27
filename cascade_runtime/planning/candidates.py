"""`candidates`: every replica that fits, with what it promises.

Each layout (`layout.py`) with the m and W that promise most (`forecast.py`) for as many requests as it may be given; of
the best over several devices also those with more of what pays most: one drafter for two targets, or two drafters for
one; and stages that take turns, where that is allowed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from cascade_runtime.config.stage import MAX_REPLICAS
from cascade_runtime.planning.forecast import Forecast, forecast
from cascade_runtime.planning.free_devices import FreeDevices, Groups
from cascade_runtime.planning.layout import Layout, layouts, slots_that_fit
from cascade_runtime.planning.problem import Problem
from cascade_runtime.planning.turns import Turns, take_turns

_COPIED = 3

Sort = tuple[tuple[int, ...], int, bool]


@dataclass(frozen=True, eq=False)
class Candidate:
    """One replica that fits: a layout and its forecast, or turns on one device."""

    groups: Groups
    rate: float
    worth: float
    layout: Layout | None = None
    said: Forecast | None = None
    turns: Turns | None = None

    @cached_property
    def usage(self) -> Mapping[int, int]:
        """Devices taken per pool."""
        return {pool: sum(groups) for pool, groups in self.groups.items()}

    @property
    def levels(self) -> tuple[int, ...]:
        """That take part at the same time; none where parts take turns."""
        return self.layout.levels if self.layout else ()

    @property
    def rows(self) -> int:
        """Requests at a time."""
        return self.said.rows if self.said else self.turns.rows if self.turns else 1

    @property
    def copied(self) -> bool:
        """Whether there are several of a device."""
        return self.layout is not None and self.layout.slices > 1

    @property
    def sort(self) -> Sort:
        """What a prediction's error depends on: the levels, and how many devices there are of them, copies or not."""
        return self.levels, len(self.layout.devices) if self.layout else 1, self.copied


def _wanted(problem: Problem) -> list[int]:
    """Requests at a time that one replica might be given."""
    streams, most = problem.load.streams, sum(pool.devices for pool in problem.cluster.pools)
    if not streams:
        return [problem.recipe.cascade.slots]
    counts = {1, *(2**k for k in range(18) if 2**k <= min(most, streams)), min(most, streams)}
    return sorted({min(4096, -(-streams // count)) for count in counts})


def candidates(problem: Problem, room: Mapping[int, int], sequential: bool) -> list[Candidate]:
    """All of them. room: devices per pool. sequential: whether stages may take turns."""
    found: list[Candidate] = []
    latency = problem.recipe.policy.objective == "latency"
    for layout in layouts(problem, room):
        fit = slots_that_fit(problem, layout)
        for rows in sorted({min(wanted, fit) for wanted in _wanted(problem)}):
            found.append(_together(problem, layout, rows))
    # No request is answered sooner where there is another target, and where edge boxes draft no stage has replicas.
    if not latency and problem.levels[0].config.drafter != "edge":
        found += list(_copied(problem, found, room))
    if sequential:
        for pool in room:
            for wanted in _wanted(problem):
                turns = take_turns(problem, pool, wanted)
                if turns is not None:
                    worth = turns.tokens_per_s / turns.rows if latency else turns.tokens_per_s
                    found.append(Candidate({pool: (1,)}, turns.tokens_per_s, worth, turns=turns))
    return found


def _together(problem: Problem, layout: Layout, rows: int) -> Candidate:
    said = forecast(problem, layout, rows)
    worth = said.tokens_per_s / rows if problem.recipe.policy.objective == "latency" else said.tokens_per_s
    return Candidate(layout.groups, said.tokens_per_s, worth, layout, said)


def _copied(problem: Problem, candidates: Sequence[Candidate], room: Mapping[int, int]) -> Iterable[Candidate]:
    """Of the best of each set of levels over several devices: with one more of the device that brings most, and again,
    until there would be two of every one.
    """
    begun, seen = Counter[tuple[int, ...]](), set[tuple[object, ...]]()
    for candidate in sorted(candidates, key=lambda each: density(problem, room, each), reverse=True):
        layout = candidate.layout
        if layout is None or len(layout.places) < 2 or begun[candidate.levels] == _COPIED:
            continue
        begun[candidate.levels] += 1
        for more in _walk(problem, room, layout, candidate.rows):
            assert more.layout is not None
            key = (more.layout.devices, *more.layout.at.items(), *more.layout.copies.items(), more.rows)
            if key not in seen:
                seen.add(key)
                yield more


def _walk(problem: Problem, room: Mapping[int, int], layout: Layout, rows: int) -> Iterable[Candidate]:
    while True:
        grown = (_grown(problem, room, layout.with_copy(place), rows) for place in layout.places)
        best = max((each for each in grown if each is not None), key=lambda each: each.rate, default=None)
        if best is None or best.layout is None or min(map(best.layout.copies_of, best.layout.places)) > 1:
            return
        yield best
        layout = best.layout


def _grown(problem: Problem, room: Mapping[int, int], layout: Layout, rows: int) -> Candidate | None:
    """A layout with copies and so many rows for each target, as many in each slice; None where there is no room."""
    if layout.slices > MAX_REPLICAS or not FreeDevices.of(problem.cluster.pools, room).most(layout.groups):
        return None
    rows *= layout.copies_of(layout.at[problem.levels[-1].name])
    rows = min(rows, slots_that_fit(problem, layout), problem.load.streams or rows)
    rows -= rows % layout.slices
    return _together(problem, layout, rows) if rows else None


def density(problem: Problem, room: Mapping[int, int], candidate: Candidate) -> float:
    """Tokens per second for the scarcest share of the cluster that it takes."""
    if problem.recipe.policy.objective == "latency":
        return candidate.worth
    return candidate.rate / max((n / max(room[pool], 1) for pool, n in candidate.usage.items()), default=1.0)
