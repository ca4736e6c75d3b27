"""`Admission`: what a language stage is told of a request. `ActiveRow`: the request inside the stage: its KV row, what
the stage stands by, and when something last happened.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.decoder import Row
from cascade_runtime.metrics import EdgeCounters
from cascade_runtime.scheduling.standing import Standing
from cascade_runtime.vision.features import VisualFeatures

MAX_SPANS = 1024
_PATIENCE = 2  # deadlines an upstream may miss in a row before its row no longer waits for it


@dataclass(frozen=True)
class Admission:
    """One request at the door of one language stage. `handle` is its number inside the pipeline.

    Without `expect_drafts` the row decodes alone and waits for nobody.
    """

    handle: int
    request_id: str
    question: str
    features: VisualFeatures
    sampling: SamplingParams
    expect_drafts: bool = True


@dataclass(eq=False)
class ActiveRow:
    """One request in one stage. Times are `time.monotonic()` seconds."""

    handle: int
    request_id: str
    question: str
    sampling: SamplingParams
    row: Row
    standing: Standing
    edge: EdgeCounters
    expect_drafts: bool
    since: float = field(default_factory=time.monotonic)  # the last pass or the last hint
    heard: float = field(default_factory=time.monotonic)  # the last word from downstream
    missed: int = 0
    passes: int = 0
    alone: bool = False  # the next pass looks at no hints: the last one was spoilt by them
    spans: list[tuple[str, int, int]] = field(default_factory=list)  # (what, start, end) in monotonic ns

    def spent(self, what: str, start_ns: int, end_ns: int) -> None:
        """A pass ran."""
        if len(self.spans) < MAX_SPANS:
            self.spans.append((what, start_ns, end_ns))

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

    def report(self) -> RowReport:
        """What this stage did for the request."""
        return RowReport(self.edge, tuple(self.spans))


@dataclass(frozen=True)
class RowReport:
    """What one stage did for one request: its edge's counters, and what ran when (monotonic ns of its machine)."""

    edge: EdgeCounters
    spans: tuple[tuple[str, int, int], ...]
