"""`Target`: the last stage. What it stands by is the answer; it says where the answer ends and hands it out."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace

from actors.rows import ActiveRow, Admission, RowReport
from actors.stage import LanguageStage
from cascade_runtime.config import Recipe
from cascade_runtime.decoding.stopping import Stopper
from cascade_runtime.errors import StageDied, StageError


@dataclass(frozen=True)
class Progress:
    """The answer so far. `finish_reason` is None while it goes on.

    Times are `time.monotonic()` seconds of the target's machine; `said_at` is when this was handed out, by which
    another machine places the others on its own clock. drafts: whether the target has use for drafts these days.
    """

    tokens: tuple[int, ...]
    masks: tuple[int, ...]
    finish_reason: str | None
    problem: str | None
    passes: int
    first_token_at: float
    last_token_at: float
    said_at: float = 0.0
    drafts: bool = True


@dataclass(eq=False)
class _Outbox:
    """wanted: tokens beyond which each of those who wait is woken. Waking them all at every pass would take the
    interpreter from the loop as many times as there are requests.
    """

    stopper: Stopper
    progress: Progress
    changed: threading.Condition = field(default_factory=threading.Condition)
    wanted: list[int] = field(default_factory=list)
    turn: int = 0  # see `Route`

    def news_beyond(self, seen: int) -> bool:
        """Whether the answer holds more tokens than that, or has ended."""
        progress = self.progress
        return len(progress.tokens) > seen or progress.finish_reason is not None or progress.problem is not None


NOTHING = Progress((), (), None, None, 0, 0.0, 0.0)


class Target(LanguageStage):
    """The heavy stage: `take` waits for tokens beyond those already seen."""

    def __init__(self, recipe: Recipe, replica: int = 0) -> None:
        super().__init__(recipe, len(recipe.stages) - 1, replica)
        self._outboxes: dict[int, _Outbox] = {}

    def take(self, handle: int, seen: int, timeout_s: float) -> Progress:
        """The answer as soon as it holds more than `seen` tokens or has ended; as it is after `timeout_s` otherwise.

        Raises `StageError` for a request this stage does not know, `StageDied` where its loop has ended.
        """
        outbox = self._outboxes.get(handle)
        if outbox is None:
            raise StageError(self.name, str(handle), "unknown request (never admitted, or released)")
        with outbox.changed:
            outbox.wanted.append(seen)
            outbox.changed.wait_for(lambda: outbox.news_beyond(seen) or self._stopping.is_set(), timeout_s)
            outbox.wanted.remove(seen)
            if self._stopping.is_set() and not outbox.progress.finish_reason:
                raise StageDied(self.name, str(handle), "the stage was stopped")
            drafts = self.scheduler.policy.decision.speculate
            return replace(outbox.progress, said_at=time.monotonic(), drafts=drafts)

    def _admit(self, admission: Admission) -> None:
        super()._admit(admission)
        known = replace(NOTHING, tokens=admission.tokens, masks=admission.masks)
        outbox = self._outboxes.setdefault(admission.handle, _Outbox(self.level.stopper(admission.sampling), known))
        outbox.turn = max(outbox.turn, admission.route.turn)

    def _ended(self) -> None:
        for outbox in list(self._outboxes.values()):
            self._show(outbox, outbox.progress)

    def _evict(self, least: int) -> None:
        super()._evict(least)
        for handle in [handle for handle in self._outboxes if handle < least]:
            outbox = self._outboxes.pop(handle)
            self._show(outbox, replace(outbox.progress, finish_reason="cancelled"))

    def release(self, handle: int) -> RowReport | None:
        """Forget a request and its answer; whoever waits for it is told."""
        report = super().release(handle)
        self._empty(handle)
        return report

    def _vacate(self, handle: int, turn: int) -> None:
        """Nobody waits here for a request that goes on elsewhere."""
        super()._vacate(handle, turn)
        outbox = self._outboxes.get(handle)
        if outbox is not None and outbox.turn <= turn:
            self._empty(handle)

    def _empty(self, handle: int) -> None:
        outbox = self._outboxes.pop(handle, None)
        if outbox is not None and outbox.progress.finish_reason is None:
            self._show(outbox, replace(outbox.progress, finish_reason="cancelled"))

    def _settled(self, one: ActiveRow, before: int) -> None:
        outbox = self._outboxes.get(one.handle)
        if outbox is None:  # released while the pass ran
            return
        length, reason = outbox.stopper.cut(one.standing.prefix, before)
        if reason is not None:
            one.standing.finish(length)
        now = time.monotonic()
        self._show(
            outbox,
            Progress(
                tuple(one.standing.prefix[:length]),
                tuple(one.standing.stages[:length]),
                reason,
                None,
                one.scheduled.passes,
                outbox.progress.first_token_at or now,
                now,
            ),
        )
        if reason is not None:
            self._publish(one)
            self._end(one.handle)

    def _fail(self, one: ActiveRow, problem: str) -> None:
        super()._fail(one, problem)
        outbox = self._outboxes.get(one.handle)
        if outbox is not None:
            self._show(outbox, replace(outbox.progress, finish_reason="error", problem=problem))

    def _show(self, outbox: _Outbox, progress: Progress) -> None:
        with outbox.changed:
            outbox.progress = progress
            if outbox.wanted and (self._stopping.is_set() or outbox.news_beyond(min(outbox.wanted))):
                outbox.changed.notify_all()
