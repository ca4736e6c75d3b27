"""`Trial`: something that is not in use and hence not measured, tried now and then for a few passes."""

from __future__ import annotations

from dataclasses import dataclass

SHARE = 0.01  # of the passes since the last trial: what one may cost before it is begun
_CHEAP = 0.005  # and one that is had more often than its results ask for
_OFTEN, _OFTEN_IF_CHEAP, _SELDOM = 96, 80, 6144


@dataclass
class Trial:
    """For so many passes at most. every: passes between two, doubled when one changed nothing, but for those that are
    cheap enough to be had more often.
    """

    passes: int
    every: int = _OFTEN
    due: int = _OFTEN
    ended: int = 0

    def over(self, now: int, *, changed: bool, lost: float) -> None:
        """It has ended. lost: passes' worth of time that it took."""
        rather = round(min(2 * self.every, _SELDOM, max(_OFTEN_IF_CHEAP, lost / _CHEAP)))
        self.every = _OFTEN if changed else rather
        self.due, self.ended = now + self.every, now
