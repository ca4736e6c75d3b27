"""`ActiveRow`: one request inside one language stage: its KV row, what the stage stands by, and when something
last happened.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from cascade_runtime.decoding.decoder import Row
from cascade_runtime.metrics import EdgeCounters
from cascade_runtime.scheduling.standing import Standing

_PATIENCE = 2  # deadlines an upstream may miss in a row before its row no longer waits for it


@dataclass(eq=False)
class ActiveRow:
    """One request in one stage. Times are `time.monotonic()` seconds."""

    handle: int
    request_id: str
    row: Row
    standing: Standing
    edge: EdgeCounters
    expect_drafts: bool
    since: float = field(default_factory=time.monotonic)  # the last pass or the last hint
    heard: float = field(default_factory=time.monotonic)  # the last word from downstream
    missed: int = 0
    passes: int = 0

    def ready(self, need: int, deadline_s: float, upstream_alive: bool, now: float) -> bool:
        """Whether to spend a pass on this row now: enough hints, nothing to wait for, or waited long enough."""
        standing = self.standing
        if standing.blocked:
            return False
        if (
            not upstream_alive
            or not self.expect_drafts
            or self.passes == 0
            or len(standing.hints) >= min(need, standing.room - 1)
        ):
            return True
        if standing.upstream_waits or any(token in standing.ends for token in standing.hints):
            return True
        return now >= self.due(deadline_s)

    def due(self, deadline_s: float) -> float:
        """When this row stops waiting for its upstream."""
        return self.since if self.missed >= _PATIENCE else self.since + deadline_s

    def ran(self, drafted: int, need: int, now: float) -> None:
        """A pass over `drafted` hints happened; a pass without any counts as a missed deadline."""
        self.missed = 0 if drafted or not need else self.missed + (self.passes > 0)
        self.passes += 1
        self.since = now
