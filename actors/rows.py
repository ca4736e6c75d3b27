"""`Admission`: what a language stage is told of a request. `ActiveRow`: the request inside the stage: its KV row and
its part in the schedule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cascade_runtime.api import Rejection
from cascade_runtime.api.answer import MAX_REJECTIONS
from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.row import Extension, Row
from cascade_runtime.metrics import EdgeCounters
from cascade_runtime.scheduling.scheduled_row import ScheduledRow
from cascade_runtime.scheduling.stage_scheduler import Task
from cascade_runtime.scheduling.standing import Standing
from cascade_runtime.scheduling.work import Settled
from cascade_runtime.tracing import Moments
from cascade_runtime.vision.features import VisualFeatures


class Route(NamedTuple):
    """Which replicas of the stages next door have a request, by number. turn: how many of this stage have had it by
    then, and of each of those: calls may come in another order than they were made.
    """

    upstream: int = 0
    downstream: int = 0
    turn: int = 0
    upstream_turn: int = 0
    downstream_turn: int = 0

    def later(self, other: Route) -> Route:
        """What is known after both, whichever came first."""
        up = other if other.upstream_turn > self.upstream_turn else self
        down = other if other.downstream_turn > self.downstream_turn else self
        turn = max(self.turn, other.turn)
        return Route(up.upstream, down.downstream, turn, up.upstream_turn, down.downstream_turn)


STRAIGHT = Route()  # where every stage has one


@dataclass(frozen=True)
class Admission:
    """One request at the door of one language stage. `handle` is its number inside the pipeline.

    Without `expect_drafts` the row decodes alone and waits for nobody. tokens, masks: what of the answer the target has
    said already, to a controller or a stage before this one: it goes on from there.
    """

    handle: int
    request_id: str
    question: str
    features: VisualFeatures
    sampling: SamplingParams
    expect_drafts: bool = True
    tokens: tuple[int, ...] = ()
    masks: tuple[int, ...] = ()
    route: Route = STRAIGHT

    def standing(self, stage: int, vocab_size: int, ends: Sequence[int], window: int | None, slot: int) -> Standing:
        """What stage number `stage` stands by at the start. slot: answer tokens that its KV slot holds."""
        return Standing(
            request=self.handle,
            epoch=0,
            stage=stage,
            limit=self.sampling.max_tokens,
            vocab_size=vocab_size,
            ends=frozenset() if self.sampling.ignore_eos else frozenset(ends),
            window=window,
            slot=slot,
            prefix=list(self.tokens),
            stages=list(self.masks),
        )


@dataclass(eq=False)
class ActiveRow:
    """One request in one stage: what was asked, its KV row, and its part in the stage's schedule. since_ns: when it was
    admitted, monotonic.
    """

    admission: Admission
    row: Row
    scheduled: ScheduledRow
    edge: EdgeCounters
    since_ns: int
    route: Route = STRAIGHT
    rejections: list[Rejection] = field(default_factory=list)

    @property
    def handle(self) -> int:
        """The request's number inside the pipeline."""
        return self.admission.handle

    @property
    def standing(self) -> Standing:
        """What the stage stands by."""
        return self.scheduled.standing

    def extension(self, task: Task) -> Extension:
        """Its share of a pass."""
        return Extension(self.row, task.work.prefix, task.work.drafts, task.prompt, task.work.parents)

    def observe(self, task: Task, settled: Settled, totals: EdgeCounters) -> None:
        """Count what a pass over drafts brought, here and in the stage's totals, and keep what it refused: of a chain,
        since of a tree most is refused.
        """
        for counters in (self.edge, totals):
            counters.observe(settled.drafted, settled.accepted, len(settled.added) - settled.accepted)
        refused = slice(settled.accepted, settled.drafted)
        chain, work = task.work.parents is None, task.work
        if chain and settled.accepted < settled.drafted and len(self.rejections) < MAX_REJECTIONS:
            at = len(work.prefix) + settled.accepted
            self.rejections.append(Rejection(at, self.standing.stage, work.drafts[refused], work.masks[refused]))

    def report(self, moments: Moments) -> RowReport:
        """What the stage did for it, once it has left."""
        return RowReport(self.edge, moments, len(self.row.prompt), tuple(self.rejections))


@dataclass(frozen=True)
class RowReport:
    """What one stage did for one request: its edge's counters, what ran when (monotonic ns of its machine), and the
    positions of its prompt and the drafts it refused.
    """

    edge: EdgeCounters
    moments: Moments
    prompt_tokens: int
    rejections: tuple[Rejection, ...] = ()


class News:
    """Which rows to ask for news. Where all that happened is that neighbours spoke, those they spoke of; all of them
    after anything else, and often enough that what has to be repeated is.
    """

    _EVERY_NS = 100_000_000

    def __init__(self) -> None:
        self._all_ns = 0

    def of(self, rows: Mapping[int, ActiveRow], heard: set[int], *, everything: bool, now_ns: int) -> list[ActiveRow]:
        """heard: handles in messages of this turn."""
        if heard and not everything and now_ns < self._all_ns + self._EVERY_NS:
            return [rows[handle] for handle in heard & rows.keys()]
        self._all_ns = now_ns
        return list(rows.values())
