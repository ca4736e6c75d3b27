"""`Layout`: one replica of the pipeline on devices, and the enumeration of those that fit.

Stages are placed from the target down: beside what is placed already, or on a device of its own of any pool. Equal
devices of a pool are one choice, so a thousand nodes are as quick as one; a beam bounds what many pools bring.

A language model that no single device of a pool holds is split by layers over several of one node. Others may live
beside it on the first of them. Where one device suffices a split would only be slower.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations

from cascade_runtime.planning.free_devices import FreeDevices, Groups
from cascade_runtime.planning.problem import Part, Piece, Problem

_BEAM = 300


@dataclass(frozen=True)
class Layout:
    """levels: which take part. devices: the pool index of each device. at: part name -> index into `devices`, of the
    first one where a part has several in a row. spans: how many, of those that do. shared: devices that come with the
    cameras and are not this replica's own. copies: device -> how many like it there are, of those with more than one:
    what is on them is there as often, and each has its share of the requests.
    """

    levels: tuple[int, ...]
    devices: tuple[int, ...]
    at: Mapping[str, int]
    shared: frozenset[int] = frozenset()
    spans: Mapping[str, int] = field(default_factory=dict)
    copies: Mapping[int, int] = field(default_factory=dict)

    @property
    def usage(self) -> Counter[int]:
        """Devices taken per pool."""
        used: Counter[int] = Counter()
        for i, pool in enumerate(self.devices):
            if i not in self.shared:
                used[pool] += self.copies_of(i)
        return used

    @property
    def groups(self) -> Groups:
        """The same as `FreeDevices` counts: those of a split are on one node."""
        found: dict[int, tuple[int, ...]] = {}
        for pool, used in self.usage.items():
            names = [name for name in self.spans if self.devices[self.at[name]] == pool]
            splits = tuple(self.spans[name] for name in names for _ in range(self.copies_of(self.at[name])))
            found[pool] = (*splits, *(1,) * (used - sum(splits)))
        return found

    @property
    def places(self) -> list[int]:
        """The first device of every place of its own."""
        return sorted({*self.at.values()} - self.shared)

    @property
    def slices(self) -> int:
        """Equal parts of the requests: as many as what is there most often."""
        return max(self.copies.values(), default=1)

    def copies_of(self, device: int) -> int:
        """How many there are of a device."""
        return self.copies.get(device, 1)

    def crowd(self, name: str) -> float:
        """Of how many slices a copy of a part has the requests."""
        return self.slices / self.copies_of(self.at[name])

    def with_copy(self, place: int) -> Layout:
        """With one more of a place, and of all that is there."""
        span = max(self.span(name) for name, first in self.at.items() if first == place)
        copies = dict.fromkeys(range(place, place + span), self.copies_of(place) + 1)
        return replace(self, copies={**self.copies, **copies})

    def span(self, name: str) -> int:
        """How many devices a part has."""
        return self.spans.get(name, 1)

    def parts_on(self, device: int) -> list[str]:
        """Names of the parts on a device."""
        return [name for name, first in self.at.items() if first <= device < first + self.span(name)]


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
        here = pieces_on(problem, layout, device).values()
        left = kind.usable_bytes - sum(piece.weight_bytes for piece in here)
        slot = sum(piece.slot_bytes for piece in here)
        if left < slot or left < 0:
            return 0
        most = min(most, left // slot * layout.copies_of(device) if slot else most)
    return most


def pieces_on(problem: Problem, layout: Layout, device: int) -> dict[str, Piece]:
    """Part name -> what a device of the layout holds of it."""
    kind = problem.cluster.kind_of(problem.cluster.pools[layout.devices[device]])
    names = layout.parts_on(device)
    return {
        part.name: problem.pieces(part, kind, layout.span(part.name))[device - layout.at[part.name]]
        for part in problem.parts
        if part.name in names
    }


def _placed(problem: Problem, room: Mapping[int, int], layout: Layout, part: Part) -> Iterator[Layout]:
    """The layout with one more part: beside another, on a device of its own, or split over several."""
    for device in sorted({*layout.at.values()}):  # of a split the first, where the launcher puts its neighbours
        yield from _checked(problem, replace(layout, at={**layout.at, part.name: device}), part)
    used = layout.usage
    for pool, count in room.items():
        if used[pool] < count:
            yield from _checked(problem, _with_own(layout, part, pool), part)
        yield from _split(problem, room, layout, part, pool)


def _split(problem: Problem, room: Mapping[int, int], layout: Layout, part: Part, pool: int) -> Iterator[Layout]:
    """With a part over 2, 3, .. devices of one node, up to as many as hold every request that a replica may get."""
    cluster = problem.cluster
    most = problem.most_devices(part, cluster.kind_of(cluster.pools[pool]))
    if most < 2:
        return
    wanted = problem.load.streams or problem.recipe.cascade.slots
    free = FreeDevices.of(cluster.pools, room)
    for devices in range(2, min(most, cluster.pools[pool].on_a_node(room[pool])) + 1):
        new = _with_own(layout, part, pool, devices)
        if free.most(new.groups):
            yield from _checked(problem, new, part)
        if slots_that_fit(problem, new) >= wanted:
            return


def _with_own(layout: Layout, part: Part, pool: int, devices: int = 1) -> Layout:
    """The layout with a part on devices of its own."""
    return replace(
        layout,
        devices=(*layout.devices, *[pool] * devices),
        at={**layout.at, part.name: len(layout.devices)},
        spans={**layout.spans, part.name: devices} if devices > 1 else layout.spans,
    )


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
            part, kind = problem.levels[level], cluster.kind_of(cluster.pools[layout.devices[device]])
            cost = problem.cost(part, kind, layout.span(part.name))
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
                new = replace(_with_own(layout, part, pool), shared=layout.shared | {len(layout.devices)})
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
