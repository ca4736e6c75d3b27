"""`Admission`: what a language stage is told of a request. `ActiveRow`: the request inside the stage: its KV row and
its part in the schedule.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.decoder import Row
from cascade_runtime.metrics import EdgeCounters
from cascade_runtime.scheduling.scheduled_row import ScheduledRow
from cascade_runtime.scheduling.standing import Standing
from cascade_runtime.vision.features import VisualFeatures

MAX_SPANS = 1024


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
    """One request in one stage: what was asked, its KV row, and its part in the stage's schedule."""

    admission: Admission
    row: Row
    scheduled: ScheduledRow
    edge: EdgeCounters
    spans: list[tuple[str, int, int]] = field(default_factory=list)  # (what, start, end) in monotonic ns

    @property
    def handle(self) -> int:
        """The request's number inside the pipeline."""
        return self.admission.handle

    @property
    def standing(self) -> Standing:
        """What the stage stands by."""
        return self.scheduled.standing

    def spent(self, what: str, start_ns: int, end_ns: int) -> None:
        """A pass ran."""
        if len(self.spans) < MAX_SPANS:
            self.spans.append((what, start_ns, end_ns))

    def report(self) -> RowReport:
        """What this stage did for the request."""
        return RowReport(self.edge, tuple(self.spans))


@dataclass(frozen=True)
class RowReport:
    """What one stage did for one request: its edge's counters, and what ran when (monotonic ns of its machine)."""

    edge: EdgeCounters
    spans: tuple[tuple[str, int, int], ...]
