"""The core's clock as the edge knows it: within half a round trip, from the quickest one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cascade_runtime.edge.clock import ClockOffset
from cascade_runtime.proto import edge_pb2
from cluster.edge.latency import core_ms


@given(st.integers(-(10**15), 10**15), st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1))
def test_the_offset_is_right_to_half_the_quickest_round_trip(offset_ns: int, ways: list[tuple[int, int]]) -> None:
    clock, now_ns = ClockOffset(), 10**12
    for up_ns, down_ns in ways:
        said_ns, held_ns = now_ns, 7_000
        core_ns = said_ns + up_ns + held_ns + offset_ns
        now_ns = said_ns + up_ns + held_ns + down_ns
        clock.heard(echo_ns=said_ns, held_ns=held_ns, core_ns=core_ns, now_ns=now_ns)
    assert abs(clock.offset_ns - offset_ns) <= clock.error_ns + 1
    assert clock.error_ns == min(up + down for up, down in ways[-64:]) // 2


def test_a_pulse_that_echoes_nothing_teaches_nothing() -> None:
    clock = ClockOffset()
    clock.heard(echo_ns=0, held_ns=0, core_ns=5, now_ns=9)
    clock.heard(echo_ns=8, held_ns=5, core_ns=5, now_ns=9)  # held for longer than it was away
    assert (clock.offset_ns, clock.error_ns) == (0, 0)


def test_stages_are_told_from_the_sensors_time_and_those_not_reached_are_left_out() -> None:
    outcome = edge_pb2.Outcome(received_ns=5_000_000, done_ns=9_500_000)
    assert core_ms(outcome, 1_000_000) == {"received": 4.0, "answered": 8.5}
