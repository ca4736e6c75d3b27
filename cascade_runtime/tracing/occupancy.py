"""How busy each stage was, and how much of what could overlap did overlap, from the stages' own timestamps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cascade_runtime.tracing.tracer import Span, Trace


@dataclass(frozen=True)
class Occupancy:
    """wall_s: from the first span's start to the last one's end. busy_s: per stage, seconds within any span."""

    wall_s: float
    busy_s: dict[str, float]

    @property
    def busy_share(self) -> dict[str, float]:
        """Per stage, the share of the wall time in which it was doing something."""
        return {stage: busy_s / self.wall_s if self.wall_s else 0.0 for stage, busy_s in self.busy_s.items()}

    @property
    def latency_hidden(self) -> float | None:
        """1 - (wall - longest busy) / (sum of busy - longest busy): 1 when all others ran beside the busiest stage, 0
        when one ran after the other, negative when even that left gaps. None where at most one stage did anything.
        """
        longest = max(self.busy_s.values(), default=0.0)
        others = sum(self.busy_s.values()) - longest
        return 1 - (self.wall_s - longest) / others if others > 0 else None


def occupancy(traces: Iterable[Trace]) -> Occupancy:
    """The figures of all stages together; time in which a stage does two things at once counts once."""
    traces = list(traces)
    starts = [span.start_ns + trace.wall_minus_monotonic_ns for trace in traces for span in trace.spans]
    ends = [span.end_ns + trace.wall_minus_monotonic_ns for trace in traces for span in trace.spans]
    wall_ns = max(ends) - min(starts) if starts else 0
    return Occupancy(wall_ns / 1e9, {trace.stage: _covered_ns(trace.spans) / 1e9 for trace in traces})


def _covered_ns(spans: Sequence[Span]) -> int:
    """Length of the union of the spans."""
    covered = until = 0
    for span in sorted(spans):
        begin = max(span.start_ns, until)
        covered += max(0, span.end_ns - begin)
        until = max(until, span.end_ns)
    return covered


def side_by_side(spans: Iterable[Span]) -> list[list[Span]]:
    """Spans in as few rows as needed for none to overlap another of its row; what starts first is in the first row."""
    rows: list[list[Span]] = []
    for span in sorted(spans):
        row = next((row for row in rows if row[-1].end_ns <= span.start_ns), None)
        if row is None:
            rows.append([span])
        else:
            row.append(span)
    return rows
