"""What is left of pools, by node, when groups of devices are taken from them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_runtime.planning.cluster import Pool
from cascade_runtime.planning.free_devices import FreeDevices


@given(
    st.integers(1, 60),
    st.integers(0, 9),
    st.lists(st.tuples(st.lists(st.integers(1, 8), min_size=1), st.integers(1, 4))),
)
@settings(max_examples=200, deadline=None)
def test_groups_are_taken_from_nodes_that_hold_them(
    devices: int, each: int, taken: list[tuple[list[int], int]]
) -> None:
    pool = Pool(name="p", kind="rtx4090", devices=devices, devices_per_node=min(each, devices))
    free = FreeDevices.of([pool], {0: devices})
    node = pool.on_a_node(devices)
    assert sum(size * count for size, count in free.nodes[0].items()) == devices and max(free.nodes[0]) == node
    for size in range(1, 9):  # of one size, closed form
        assert free.most({0: (size,)}) == devices // node * (node // size) + devices % node // size
    for groups, times in taken:
        asked = {0: tuple(groups)}
        most = free.most(asked)
        assert most == 0 or max(groups) <= node
        assert sum(free.without(asked, most).nodes[0].values()) <= devices  # so often there is a place
        after = free.without(asked, min(times, most)) if most else free
        assert free.left[0] - after.left[0] == min(times, most) * sum(groups)
        assert sum(size * count for size, count in after.nodes[0].items()) == after.left[0] >= 0
        free = after
