"""The books of both ends: whatever breaks, each window has one outcome, in order, and no end holds more than agreed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_runtime.edge.ledger import CoreLedger, EdgeLedger
from cascade_runtime.errors import ChannelError

DEPTH = 4


class Schedule:
    """Two ledgers and a link that loses everything under way whenever it is cut; the core may forget its session."""

    def __init__(self, windows: list[int]) -> None:
        self.todo = list(enumerate(windows))
        self.edge, self.core = EdgeLedger(), CoreLedger[int](1, DEPTH)
        self.up: list[tuple[int, bytes]] = []
        self.down: list[int] = []
        self.told = 0
        self.answered: list[int] = []
        self.lasts: dict[int, int] = {}
        self.processed: list[bytes] = []
        self.edge.welcomed(0, DEPTH, resumed=False)

    def step(self, what: int) -> None:
        if what == 0 and self.todo and self.edge.wants_more:
            number, parts = self.todo.pop(0)
            self.lasts[self.edge.add([b"%d.%d" % (number, part) for part in range(parts)])] = number
        elif what == 1 and (due := self.edge.due()) is not None:
            self.up.append(due)
        elif what == 2 and self.up:
            seq, body = self.up.pop(0)
            if self.core.offer(seq):
                self.processed.append(body)
                self.core.settle(seq, seq)
            assert self.core.accepted - self.core.taken <= DEPTH
        elif what == 3 and (outcome := self.core.due(self.told)) is not None:
            self.down.append(outcome)
            self.told = outcome
        elif what == 4 and self.down:
            seq = self.down.pop(0)
            if self.edge.settle(seq, final=seq in self.lasts) and seq in self.lasts:
                self.answered.append(self.lasts[seq])
            self.core.acknowledge(self.edge.taken)
            self.edge.heard(self.core.accepted if not self.up else self.edge.accepted, self.core.limit)
        elif what in (5, 6):  # a cut; after 6 the core has forgotten
            self.up, self.down = [], []
            if what == 6:
                self.core = CoreLedger(self.edge.first, DEPTH)
            self.edge.welcomed(self.core.accepted, self.core.limit, resumed=what == 5)
            self.core.acknowledge(self.edge.taken)
            self.told = self.core.taken


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.lists(st.integers(0, 6), max_size=120))
def test_whatever_breaks_each_window_is_answered_once_and_in_order(windows: list[int], steps: list[int]) -> None:
    schedule = Schedule(windows)
    for what in steps:
        schedule.step(what)
    for _ in range(12 * sum(windows) + 60):  # and then the link holds
        for what in range(5):
            schedule.step(what)
    assert schedule.answered == list(range(len(windows)))
    assert schedule.edge.unsettled == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, 3, 4, 5]), max_size=150))
def test_while_the_core_remembers_it_processes_nothing_twice(steps: list[int]) -> None:
    schedule = Schedule([1, 3, 2, 1])
    for what in steps:
        schedule.step(what)
    assert len(schedule.processed) == len(set(schedule.processed))


def test_a_gap_and_a_step_beyond_the_limit_are_refused_and_a_repeat_is_counted() -> None:
    book = CoreLedger[str](5, 2)
    with pytest.raises(ChannelError, match="batch 6; expected: 5"):
        book.offer(6)
    assert book.offer(5) and not book.offer(5) and book.offer(6)
    with pytest.raises(ChannelError, match="the limit is 6"):
        book.offer(7)
    assert (book.accepted, book.repeated, book.limit) == (6, 1, 6)


def test_outcomes_that_were_not_told_cannot_have_been_taken() -> None:
    book = CoreLedger[str](1, 4)
    book.offer(1)
    book.offer(2)
    book.settle(1, "one")
    with pytest.raises(ChannelError, match="up to 2"):
        book.acknowledge(2)
    with pytest.raises(ChannelError, match="not all were told"):
        book.acknowledge(2**60)
    assert book.acknowledge(1) and not book.acknowledge(1) and book.limit == 5


def test_the_edge_refuses_figures_that_cannot_be() -> None:
    book = EdgeLedger()
    book.welcomed(0, 3, resumed=False)
    book.add([b"a", b"b"])
    assert book.due() == (1, b"a")
    with pytest.raises(ChannelError, match="has accepted 2"):
        book.heard(2, 3)
    with pytest.raises(ChannelError, match="an outcome for batch 2"):
        book.settle(2, final=True)
    with pytest.raises(ChannelError, match="where its window ends"):
        book.settle(1, final=True)
    with pytest.raises(ChannelError, match="possible: 0 to 2"):
        book.welcomed(3, 3, resumed=True)
