"""`Rounds`: the policy of a stage whose drafter grows trees. A round is a tree and a pass over it; nobody runs ahead.

A row waits for its tree, and takes all of it. `measures`: decode alone instead while that brings more. Both are
measured as they are, in tokens per second of a row, waits included: what is not in use is tried for a few passes from
time to time, the rarer the more often it has changed nothing.
"""

from __future__ import annotations

from dataclasses import replace

from cascade_runtime.messages import MAX_TREE_NODES, MAX_WINDOW, Grant
from cascade_runtime.scheduling.policy import Decision, Policy
from cascade_runtime.scheduling.scheduled_row import ScheduledRow

_FORGET = 0.97
_SETTLES = 3  # passes after a switch that say nothing: of a row that still waited for the other
_TRIAL = 16  # passes of one, those counted
_FIRST, _SELDOM = 96, 6144  # passes between two
_BETTER = 1.03  # what the other must bring to be taken


class _Rate:
    """Tokens per second of a row, the latest counting most."""

    def __init__(self) -> None:
        self._seconds = self._tokens = 0.0

    def observe(self, seconds: float, tokens: int) -> None:
        self._seconds = _FORGET * self._seconds + seconds
        self._tokens = _FORGET * self._tokens + tokens

    @property
    def tokens_per_s(self) -> float:
        return self._tokens / self._seconds if self._seconds else 0.0


class Rounds(Policy):
    """sends: as in `Policy`."""

    def __init__(self, sends: int = 1, *, measures: bool = False) -> None:
        super().__init__(1, MAX_WINDOW, 1, sends)
        self.decision = Decision(1, MAX_WINDOW, MAX_TREE_NODES)
        self._measures = measures
        self._rates = {True: _Rate(), False: _Rate()}  # with trees, without
        self._passes = self._switched = 0
        self._due, self._every = _FIRST, _FIRST
        self._trying = False

    @property
    def drafting(self) -> bool:
        """Whether trees are wanted now, by decision or for a trial."""
        return self.decision.speculate != self._trying

    def need(self, row: ScheduledRow) -> int:
        """A tree, where they are wanted."""
        return int(self.drafting)

    def limit(self, row: ScheduledRow) -> int:
        """All of it."""
        return MAX_TREE_NODES if self.drafting and not row.alone else 0

    def grant(self, row: ScheduledRow) -> Grant:
        """One tree, where they are wanted."""
        return self._grant if self.drafting else Grant(0)

    def observe_pace(self, seconds: float, tokens: int) -> None:
        """A row grew by so many tokens within so many seconds."""
        super().observe_pace(seconds, tokens)
        if self._passes - self._switched > _SETTLES:
            self._rates[self.drafting].observe(seconds, tokens)

    def passed(self) -> None:
        """A pass ran: begin a trial, or end one and decide."""
        self._passes += 1
        if not self._measures:
            return
        if self._trying and self._passes - self._switched >= _TRIAL:
            self._decide()
        elif not self._trying and self._passes >= self._due:
            self._trying, self._switched = True, self._passes

    def _decide(self) -> None:
        held, was = self.decision.speculate, self.drafting
        with_trees, alone = (self._rates[trees].tokens_per_s for trees in (True, False))
        other = (alone if held else with_trees) > _BETTER * (with_trees if held else alone)
        why = "trees bring more tokens per second" if held != other else "trees bring less than decoding alone"
        rates = {"tokens_per_s": with_trees, "tokens_per_s_alone": alone}
        self.decision = replace(self.decision, speculate=held != other, reason=why, **rates)
        self._trying = False
        self._every = _FIRST if other else min(2 * self._every, _SELDOM)
        self._due = self._passes + self._every
        if self.drafting != was:
            self._switched = self._passes
