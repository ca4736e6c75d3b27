"""`Layout`: one replica of the pipeline on devices, and the enumeration of those that fit.

Stages are placed from the target down: beside what is placed already, or on a device of its own of any pool. Equal
devices of a pool are one choice, so a thousand nodes are as quick as one; a beam bounds what many pools bring.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

from cascade_runtime.planning.problem import Part, Problem

_BEAM = 300


@dataclass(frozen=True)
class Layout:
    """levels: which take part. devices: the pool index of each device. at: part name -> index into `devices`.
    shared: devices that come with the cameras and are not this replica's own.
    """

    levels: tuple[int, ...]
    devices: tuple[int, ...]
    at: Mapping[str, int]
    shared: frozenset[int] = frozenset()

    @property
    def usage(self) -> Counter[int]:
        """Devices taken per pool."""
        return Counter(pool for i, pool in enumerate(self.devices) if i not in self.shared)

    def parts_on(self, device: int) -> list[str]:
        """Names of the parts on a device."""
        return [name for name, where in self.at.items() if where == device]


def layouts(problem: Problem, room: Mapping[int, int]) -> Iterator[Layout]:
    """Every layout within the beam whose weights and one KV slot fit. room: devices per pool."""
    names = len(problem.levels)
    for size in range(names):
        for drafters in combinations(range(names - 1), size):
            levels = (*drafters, names - 1)
            found = [Layout(levels, (), {})]
            for level in reversed(levels):
                found = [new for old in found for new in _placed(problem, room, old, problem.levels[level])]
                found.sort(key=lambda layout: _weight(problem, layout))
                del found[_BEAM:]
            for layout in found:
                whole = _with_event_branch(problem, room, layout)
                if whole is not None:
                    yield whole


def slots_that_fit(problem: Problem, layout: Layout) -> int:
    """Requests at a time for which every device of the layout has room; 0 where not even the weights fit."""
    most = 4096
    for device, pool in enumerate(layout.devices):
        kind = problem.cluster.kind_of(problem.cluster.pools[pool])
        here = [part for part in problem.parts if layout.at.get(part.name) == device]
        left = kind.usable_bytes - sum(problem.weight_bytes(part, kind) for part in here)
        slot = sum(problem.slot_bytes(part, kind) for part in here)
        if left < slot or left < 0:
            return 0
        most = min(most, left // slot if slot else most)
    return most


def _placed(problem: Problem, room: Mapping[int, int], layout: Layout, part: Part) -> Iterator[Layout]:
    """The layout with one more part: beside another, or on a device of its own."""
    for device in range(len(layout.devices)):
        yield from _checked(
            problem, Layout(layout.levels, layout.devices, {**layout.at, part.name: device}, layout.shared), part
        )
    used = layout.usage
    for pool, count in room.items():
        if used[pool] < count:
            at = {**layout.at, part.name: len(layout.devices)}
            yield from _checked(problem, Layout(layout.levels, (*layout.devices, pool), at, layout.shared), part)


def _checked(problem: Problem, layout: Layout, part: Part) -> Iterator[Layout]:
    if not slots_that_fit(problem, layout):
        return
    cluster, last = problem.cluster, layout.levels[-1]
    beside = part.level is not None and part.level != last
    if beside:
        downstream = layout.levels[layout.levels.index(part.level or 0) + 1]
        pools = [cluster.pools[layout.devices[layout.at[p.name]]] for p in (part, problem.levels[downstream])]
        if cluster.latency_s(pools[0], pools[1]) is None:
            return
    yield layout


def _weight(problem: Problem, layout: Layout) -> float:
    """For the beam: what one token of every placed stage takes, devices a little."""
    cluster, seconds = problem.cluster, 0.0
    for level in layout.levels:
        device = layout.at.get(problem.levels[level].name)
        if device is not None:
            cost = problem.cost(problem.levels[level], cluster.kind_of(cluster.pools[layout.devices[device]]))
            seconds += cost.seconds(1, 1, problem.prompt) * len(layout.parts_on(device))
    return seconds


def _with_event_branch(problem: Problem, room: Mapping[int, int], layout: Layout) -> Layout | None:
    """Encoder where the recordings come in, adapter and tower near the target; the first place that fits."""
    for part in problem.parts:
        if part.level is not None:
            continue
        target = problem.cluster.pools[layout.devices[layout.at[problem.levels[-1].name]]]
        options = [new for new in _placed(problem, room, layout, part) if _reaches(problem, new, part, target.site)]
        if part.name == "encoder":
            cameras = [i for i, pool in enumerate(problem.cluster.pools) if pool.cameras]
            for pool in cameras:
                device = len(layout.devices)
                at = {**layout.at, part.name: device}
                new = Layout(layout.levels, (*layout.devices, pool), at, layout.shared | {device})
                options = [o for o in _checked(problem, new, part) if _reaches(problem, o, part, target.site)] + options
        if not options:
            return None
        layout = options[0]
    return layout


def _reaches(problem: Problem, layout: Layout, part: Part, site: str) -> bool:
    """Whether the part's device can send to the target's site; the adapter stays in it."""
    cluster = problem.cluster
    here = cluster.pools[layout.devices[layout.at[part.name]]]
    there = next(pool for pool in cluster.pools if pool.site == site)
    return here.site == site or (part.name == "encoder" and cluster.latency_s(here, there) is not None)
