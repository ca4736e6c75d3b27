"""`Seats`: who gets a seat in the next pass, and whether the pass had better wait for drafts first.

A row over h drafts brings E[h] = S[0] + ... + S[h] tokens. With the chance S[h + 1] all of it agrees, and what is
drafted meanwhile stands for the pass after it; otherwise that pass finds the row empty. A row that is left out comes to
the next pass full. `gap` is what a full row is ahead of an empty one in the long run, in tokens: the next pass brings
E[full] - E[0] more, but an empty row is full again after a pass with the chance S[1], a full one with S[full + 1]:

    gap = (E[full] - E[0] - price of the drafts) / (1 - S[full + 1] + S[1])
    worth[h] = E[h] - (1 - S[h + 1]) * gap - price of the seat

A price is the time that a row and its tokens add to the pass, in the tokens that the stage makes in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate

from cascade_runtime.scheduling.cost import StepCost


class Seats:
    """survival: S[k] of one draft more than a pass looks at, at least. full: drafts of a row that a pass went by.
    pace_s, restart_s: as in `Conditions`.
    """

    def __init__(
        self, survival: Sequence[float], cost: StepCost, tokens_per_s: float, full: int, pace_s: float, restart_s: float
    ) -> None:
        brought, per_draft = list(accumulate(survival)), tokens_per_s * cost.per_token
        full = min(full, len(survival) - 2)
        ahead = max(0.0, brought[full] - brought[0] - per_draft * full)
        gap = ahead / (1.0 - survival[full + 1] + survival[1])
        price = tokens_per_s * cost.per_row + per_draft
        self.worth = [
            brought[h] - (1.0 - survival[h + 1]) * gap - price - per_draft * h for h in range(len(survival) - 1)
        ]
        self._draft_tokens = tokens_per_s * pace_s  # the stage makes while a row gets one draft
        self._lag = math.ceil(restart_s / pace_s) if pace_s > 0 else 0  # drafts' worth of time before the first

    def joins(self, drafts: int) -> bool:
        """Whether a row had better run over so many drafts now than over more in the next pass."""
        return self.worth[drafts] > 0

    def wait(self, others: Iterable[int], need: int) -> bool:
        """Whether the pass had better wait until these rows, with so many drafts each, have more: up to `need`."""
        here = list(others)
        now = sum(max(0.0, self.worth[h]) for h in here)
        for more in range(1, need + self._lag + 1):
            there = (min(need, h + more) if h else min(need, max(0, more - self._lag)) for h in here)
            if sum(max(0.0, self.worth[h]) for h in there) - now > more * self._draft_tokens:
                return True
        return False
