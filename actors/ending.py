"""`Ending`: how a request ends: released by every stage, and what each tells of it put together as the answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from actors.course import Course
from actors.handles import StageHandle
from actors.rows import RowReport
from actors.target import Progress
from cascade_runtime.api import Answer, Timings, in_words
from cascade_runtime.config import Recipe, stage_of
from cascade_runtime.decoding.stopping import Stopper, Tokenizer
from cascade_runtime.errors import CascadeError
from cascade_runtime.tracing import Moments
from cascade_runtime.vision.gate import GateDecision

log = logging.getLogger(__name__)

_REPORT_S = 1.0  # how long an answer that is there waits for what drafters and gate have to tell


class Ending:
    """Of the requests of one pipeline."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, ends: tuple[int, ...]) -> None:
        self._recipe, self._tokenizer, self._ends = recipe, tokenizer, ends
        self._names = recipe.cascade.levels
        self._verifiers = self._names if recipe.target.heads else self._names[1:]

    def release(self, course: Course, stages: Mapping[str, StageHandle]) -> dict[str, RowReport]:
        """Free the request's slots on every stage; what each did for it, by stage, comes back with that.

        The target's release is waited for. A drafter that is stuck is not: its release waits in its queue.
        """
        seats = [member for member in course.seats if stage_of(member) in self._names]
        seats.sort(key=lambda member: self._names.index(stage_of(member)), reverse=True)  # the target first
        references = {member: stages[member].start("release", course.handle) for member in seats}
        until = time.monotonic() + _REPORT_S
        reports: dict[str, RowReport] = {}
        for member, reference in references.items():
            name = stage_of(member)
            last = name == self._names[-1]
            has = ((last and course.target_at[0]) or course.at[name]) == member  # it may end while it is to move
            wait_s = self._recipe.deadlines.control_s if last and has else max(0.0, until - time.monotonic())
            try:
                report = stages[member].result(reference, wait_s)
            except CascadeError as error:
                log.warning("request %s: %s did not confirm its release: %s", course.request.request_id, member, error)
                continue
            if report is not None and (has or name not in reports):
                reports[name] = report
        return reports

    def _notes(self, course: Course, stages: Mapping[str, StageHandle]) -> tuple[tuple[str, ...], GateDecision | None]:
        """What did not take part: a drafter that could not is a note, not an error; and the gate's decision."""
        notes, decision = list(dict.fromkeys(course.notes)), None
        for name, (drafter, reference) in course.drafting.items():
            try:
                drafter.result(reference, 0.0)
            except CascadeError as error:
                notes.append(f"without {name}: {error}")
        if course.decision is not None:
            try:
                decision = stages[course.at["adapter"]].result(course.decision, _REPORT_S)
            except CascadeError as error:
                notes.append(f"without the gate: {error}")
        for note in notes:
            log.warning("request %s went on %s", course.request.request_id, note)
        return (*self._recipe.marks, *notes), decision

    def _seen(self, course: Course, stages: Mapping[str, StageHandle]) -> dict[str, Moments]:
        """What encoder and adapter did when; without what is not known yet."""
        seen: dict[str, Moments] = {}
        for name in ("encoder", "adapter"):
            try:
                seen[name] = stages[course.at[name]].result(course.seeing[name], _REPORT_S)
            except CascadeError as error:
                log.warning("request %s: %s did not say what it did: %s", course.request.request_id, name, error)
        return seen

    def answer(
        self,
        course: Course,
        stages: Mapping[str, StageHandle],
        progress: Progress,
        received: float,
        reports: dict[str, RowReport],
    ) -> Answer:
        """The answer, and how it came about. received: when the target's last word was here."""
        request = course.request
        stopper = Stopper(self._tokenizer, self._ends, request.sampling)
        notes, decision = self._notes(course, stages)
        apart = received - progress.said_at  # the target's clock and ours, apart by at most the answer's way back

        def ms(at: float) -> float:
            return 1000 * (at + apart - course.started)

        first_ms = 1000 * (course.first_token_at - course.started)
        moments = self._seen(course, stages) | {name: reports[name].moments for name in self._names if name in reports}
        spans = [
            (name, what, ms(start / 1e9), ms(end / 1e9))
            for name, those in moments.items()
            for what, start, end in those
        ]
        return Answer(
            request_id=request.request_id,
            text=stopper.text(progress.tokens),
            token_ids=progress.tokens,
            pieces=stopper.pieces(progress.tokens),
            finish_reason=progress.finish_reason or "length",
            levels=self._names,
            masks=progress.masks,
            timings=Timings(first_ms, ms(progress.last_token_at), tuple(spans)),
            edges=tuple(reports[name].edge for name in self._verifiers if name in reports),
            gate=decision.to_dict() if decision is not None else None,
            mode=self._recipe.cascade.mode,
            target_passes=progress.passes,
            prompt_tokens=reports[self._names[-1]].prompt_tokens if self._names[-1] in reports else 0,
            notes=notes,
            rejections=in_words((each for one in reports.values() for each in one.rejections), stopper.words),
        )
