"""`FreeDevices`: what is left of every pool, by node, since layers are split only within one.

What is asked of a pool is sizes of groups: of each split its devices, and a 1 for every other device. Groups go largest
first to the fullest nodes that hold them, so that single devices leave whole nodes whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cascade_runtime.planning.cluster import Pool

Groups = Mapping[int, tuple[int, ...]]


@dataclass(frozen=True)
class FreeDevices:
    """By pool: left, how many devices; nodes, how many nodes have how many of them."""

    left: Mapping[int, int]
    nodes: Mapping[int, Mapping[int, int]]

    @classmethod
    def of(cls, pools: Sequence[Pool], room: Mapping[int, int]) -> FreeDevices:
        """Of pools with room for so many devices each."""
        return cls(dict(room), {i: _nodes(pools[i].on_a_node(count), count) for i, count in room.items()})

    def most(self, asked: Groups) -> int:
        """How often the same groups find a place; 1 where nothing is asked."""
        most = min((self.left[pool] // sum(groups) for pool, groups in asked.items()), default=1)
        for pool, groups in asked.items():
            if most and len(groups) < sum(groups):
                most = _most(self.nodes[pool], groups, most)
        return most

    def without(self, asked: Groups, times: int) -> FreeDevices:
        """What is left when they have been taken so often."""
        left, nodes = dict(self.left), dict(self.nodes)
        for pool, groups in asked.items():
            found = _without(nodes[pool], groups, times)
            assert found is not None, "more was taken than `most` says"
            left[pool], nodes[pool] = left[pool] - times * sum(groups), found
        return FreeDevices(left, nodes)


def _nodes(each: int, devices: int) -> Mapping[int, int]:
    found = Counter({each: devices // each} if each else {})
    found.update([devices % each] if each and devices % each else [])
    return found


def _most(nodes: Mapping[int, int], groups: Sequence[int], most: int) -> int:
    """The largest number of times, up to `most`, that finds a place: in closed form where all splits are of one size,
    since single devices go anywhere, else by bisection.
    """
    largest = max(groups)
    most = min(most, sum(count * (free // largest) for free, count in nodes.items()) // groups.count(largest))
    if not {*groups} - {1, largest}:
        return most
    fits, fails = 0, most + 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if _without(nodes, groups, middle) is not None else (fits, middle)
    return fits


def _without(nodes: Mapping[int, int], groups: Sequence[int], times: int) -> Mapping[int, int] | None:
    left = Counter(nodes)
    for size, count in sorted(Counter(groups).items(), reverse=True):
        wanted = count * times
        for free in sorted(free for free, there in left.items() if there and free >= size):
            each = free // size
            full = min(left[free], wanted // each)
            left[free] -= full
            left[free - each * size] += full
            wanted -= full * each
            if 0 < wanted < each and left[free]:
                left[free] -= 1
                left[free - wanted * size] += 1
                wanted = 0
        if wanted:
            return None
    return +left
