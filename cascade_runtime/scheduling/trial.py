"""`Trial`: something that is not in use and hence not measured, tried now and then for a few passes."""

from __future__ import annotations

import math
from dataclasses import dataclass

SHARE = 0.01  # of the passes since the last trial: what one may cost before it is begun
_CHEAP = 0.005  # and one that is had more often than its results ask for
_DEAR = 0.02  # and what one may have cost of the passes until the next
_OFTEN, _OFTEN_IF_CHEAP, _SELDOM = 96, 80, 6144


@dataclass
class Trial:
    """For so many passes at most. every: passes between two, doubled when one changed nothing, but for those that are
    cheap enough to be had more often, and those that are too dear for that.
    """

    passes: int
    every: int = _OFTEN
    due: int = _OFTEN
    ended: int = 0

    def over(self, now: int, *, changed: bool, lost: float) -> None:
        """It has ended. lost: passes' worth of time that it took."""
        rather = min(2 * self.every, max(_OFTEN_IF_CHEAP, lost / _CHEAP))
        dear = lost / _DEAR if math.isfinite(lost) else 0.0
        self.every = _OFTEN if changed else round(min(_SELDOM, max(rather, dear)))
        self.due, self.ended = now + self.every, now
