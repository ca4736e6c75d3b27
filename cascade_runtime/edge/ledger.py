"""The two ends' books of one session: what was sent, accepted, settled and taken. Numbers are from 1 and without gaps.

    edge   first ........ accepted ........ sent ........ limit          holds what has no outcome yet
    core   taken  ....... settled  ........ accepted .... limit          holds outcomes that were not taken yet

limit = taken + depth: the core never holds more than `depth` batches or outcomes, however slow the edge is. A batch is
sent again only after a cut, and counts once: a repeated number is not looked at, an outcome that was taken is not told
again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from cascade_runtime.errors import ChannelError

Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class _Held:
    """The batches of one window, from number `first` on."""

    first: int
    bodies: tuple[bytes, ...]

    @property
    def last(self) -> int:
        return self.first + len(self.bodies) - 1


class EdgeLedger:
    """The edge's book. A window's batches are held until it has its outcome, so that even a core that has forgotten the
    session can be sent them again.
    """

    def __init__(self) -> None:
        self.accepted = self.sent = self.taken = self.limit = 0
        self._next = 1
        self._held: deque[_Held] = deque()

    @property
    def first(self) -> int:
        """The lowest number that can still be sent."""
        return self._held[0].first if self._held else self._next

    @property
    def unsettled(self) -> int:
        """Windows without an outcome."""
        return len(self._held)

    @property
    def wants_more(self) -> bool:
        """Whether another window could begin to be sent at once: all that is here was, and the limit is not reached."""
        return self.sent == self._next - 1 < self.limit

    def add(self, bodies: list[bytes]) -> int:
        """A window's batches, in order. Returns the number of its last one."""
        self._held.append(_Held(self._next, tuple(bodies)))
        self._next += len(bodies)
        return self._next - 1

    def due(self) -> tuple[int, bytes] | None:
        """The number and body to be sent now, if the limit allows one; it counts as sent."""
        seq = self.sent + 1
        if seq >= self._next or seq > self.limit:
            return None
        held = next(held for held in self._held if held.last >= seq)
        self.sent = seq
        return seq, held.bodies[seq - held.first]

    def welcomed(self, accepted: int, limit: int, *, resumed: bool) -> None:
        """A connection begins: go on after what the core has; one that has forgotten the session begins at `first`.
        Raises `ChannelError` where the core's figures cannot be.
        """
        if not resumed:
            self.taken = self.first - 1
        low = self.taken if resumed else self.first - 1
        if not low <= accepted < self._next or (not resumed and accepted != low):
            raise ChannelError(f"the core has accepted {accepted}; possible: {low} to {self._next - 1}")
        self.accepted = self.sent = accepted
        self.limit = limit

    def heard(self, accepted: int, limit: int) -> None:
        """The core's figures, with any message. Raises `ChannelError` where they cannot be."""
        if not self.accepted <= accepted <= self.sent or limit < self.limit:
            known = f"{self.accepted} to {self.sent} sent, {self.limit}"
            raise ChannelError(f"the core has accepted {accepted} and allows {limit}; possible: {known} or more")
        self.accepted, self.limit = accepted, limit

    def settle(self, seq: int, *, final: bool) -> bool:
        """An outcome has come; `final`: of a whole window, which is then forgotten. False: it had come before.
        Raises `ChannelError` where one was left out.
        """
        if seq <= self.taken:
            return False
        if seq != self.taken + 1 or seq > self.sent:
            raise ChannelError(f"an outcome for batch {seq}; expected: {self.taken + 1} of {self.sent} sent")
        if final != (self._held[0].last == seq):
            raise ChannelError(f"the outcome for batch {seq} does not know where its window ends")
        self.taken = seq
        if final:
            self._held.popleft()
        return True


class CoreLedger(Generic[Outcome]):
    """The core's book of one session that begins with number `first`."""

    def __init__(self, first: int, depth: int) -> None:
        self.accepted = self.taken = first - 1
        self.depth = depth
        self.repeated = 0
        self._outcomes: dict[int, Outcome] = {}

    @property
    def limit(self) -> int:
        """The highest number that may be sent."""
        return self.taken + self.depth

    def offer(self, seq: int) -> bool:
        """A batch has come, whole. False: it had come before. Raises `ChannelError` for a gap, or beyond the limit."""
        if seq <= self.accepted:
            self.repeated += 1
            return False
        if seq != self.accepted + 1:
            raise ChannelError(f"batch {seq}; expected: {self.accepted + 1}")
        if seq > self.limit:
            raise ChannelError(f"batch {seq}; the limit is {self.limit}")
        self.accepted = seq
        return True

    def settle(self, seq: int, outcome: Outcome) -> None:
        """What became of an accepted batch."""
        assert self.taken < seq <= self.accepted and seq not in self._outcomes
        self._outcomes[seq] = outcome

    def due(self, after: int) -> Outcome | None:
        """The outcome that follows number `after`, if it is there: they are told in order."""
        return self._outcomes.get(after + 1)

    def acknowledge(self, taken: int) -> bool:
        """The edge has every outcome up to `taken`. Returns whether that is news. Raises `ChannelError`."""
        if taken <= self.taken:
            return False
        if any(seq not in self._outcomes for seq in range(self.taken + 1, min(taken, self.limit + 1) + 1)):
            raise ChannelError(f"outcomes up to {taken} are said to have been taken; not all were told")
        for seq in range(self.taken + 1, taken + 1):
            del self._outcomes[seq]
        self.taken = taken
        return True
