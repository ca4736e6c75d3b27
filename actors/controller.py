"""`Controller`: admits requests to the stages and hands out their answers. Nothing of a running request passes
through it.

    view    = encoder.view(events)                          one immutable object each, put once, owned here, so that it
    aligned = adapter.align(view)  -> drafters.admit        outlives any stage that reads it
    dense   = adapter.dense(view)  -> target.admit          at the same time: drafting starts while the target still
    verdict = adapter.decide(...)  -> drafters.revise       encodes and prefills; a frame the gate refuses is replaced
    target.take(...)               -> the answer            long polls, one per streamed round or one per answer
    release everywhere                                      whatever happened

Stages are reached through `StageHandle`, so that the same controller runs over Ray actors and over plain threads.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from actors.rows import RowReport
from actors.target import Progress
from cascade_runtime.api import Answer, GenerateRequest, Piece, Timings, in_words
from cascade_runtime.config import Recipe
from cascade_runtime.decoding.stopping import Stopper
from cascade_runtime.emulation.loading import load_tokenizer
from cascade_runtime.errors import CapacityError, CascadeError, DeadlineExceeded, InputError, StageError
from cascade_runtime.tracing import Moments
from cascade_runtime.vision.gate import GateDecision

log = logging.getLogger(__name__)

MAX_WAITING = 64
_REPORT_S = 1.0  # how long an answer that is there waits for what drafters and gate have to tell
_RECALLED = 1024  # ids remembered that were cancelled before their request came
_PROBE = 8  # while the target decodes alone, one request in so many is still prepared for drafting


class StageHandle(Protocol):
    """A stage somewhere else. `start` begins a call and returns a reference that other calls take as an argument."""

    def start(self, method: str, *args: Any) -> Any:
        """Begin a call."""

    def result(self, reference: Any, timeout_s: float) -> Any:
        """Wait for a call. Raises its error, or `DeadlineExceeded`, or `StageError` where the stage has died."""


@dataclass(frozen=True)
class Stages:
    """The five kinds of stages: encoder, adapter, and the language stages from light to target."""

    encoder: StageHandle
    adapter: StageHandle
    drafters: Sequence[StageHandle]
    target: StageHandle


@dataclass(eq=False)
class _Course:
    """What is known about one request while it runs."""

    request: GenerateRequest
    handle: int
    started: float
    deadline: float
    drafts: bool  # drafters take part
    own: dict[int, Any] = field(default_factory=dict)  # dense features of levels with a tower of their own
    drafting: list[Any] = field(default_factory=list)  # references of the drafters' admissions
    decision: Any = None  # reference of the gate's decision, or None
    seeing: dict[str, Any] = field(default_factory=dict)  # references of what encoder and adapter did when
    entered: bool = False  # it has a slot
    cancelled: bool = False

    @property
    def waits(self) -> bool:
        """Whether it stands in line for a slot."""
        return not self.entered and not self.cancelled

    @property
    def left_s(self) -> float:
        """Seconds until the deadline. Raises when it has passed or the request was cancelled."""
        if self.cancelled:
            raise _cancellation(self.request.request_id)
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"request {self.request.request_id}: no answer before its deadline")
        return left


def _cancellation(request_id: str) -> StageError:
    return StageError("controller", request_id, "cancelled")


class Controller:
    """One pipeline's front. Threads call `generate` and `stream`; at most `slots` requests run, `MAX_WAITING` wait."""

    def __init__(self, recipe: Recipe, stages: Stages) -> None:
        recipe.check_runs_apart()
        self.recipe, self.stages = recipe, stages
        self.names = recipe.cascade.levels
        self._verifiers = self.names if recipe.target.heads else self.names[1:]
        self.tokenizer = load_tokenizer(recipe)
        control_s = recipe.deadlines.control_s
        self.ends: tuple[int, ...] = stages.target.result(stages.target.start("info"), control_s)["ends"]
        self.shared: tuple[bool, ...] = stages.adapter.result(stages.adapter.start("info"), control_s)["shared"]
        self._handles = itertools.count(1)
        self._changed = threading.Condition()  # guards what follows
        self._inside: dict[str, _Course] = {}
        self._free = recipe.cascade.slots
        self._recalled: OrderedDict[str, None] = OrderedDict()
        self._cancelled = 0
        self._draining = False
        self._drafts = True  # the target had use for drafts when it was last heard
        self._learns = (
            len(recipe.stages) == 2 and recipe.stages[0].drafter == "lookup"
        )  # from every answer, for next to nothing

    def generate(self, request: GenerateRequest, timeout_s: float | None = None) -> Answer:
        """Answer one request. Raises what is wrong with it, or `DeadlineExceeded`, `CapacityError`, `StageError`."""
        for update in self._run(request, timeout_s, stream=False):
            if isinstance(update, Answer):
                return update
        raise StageError("controller", request.request_id, "ended without an answer")

    def stream(self, request: GenerateRequest, timeout_s: float | None = None) -> Iterator[Piece | Answer]:
        """Pieces of text as rounds confirm them, then the answer."""
        yield from self._run(request, timeout_s, stream=True)

    def cancel(self, request_id: str) -> bool:
        """End a request early; whoever waits for it gets `StageError`. Returns whether it was running or waiting."""
        with self._changed:
            course = self._inside.get(request_id)
            if course is None:
                self._recalled[request_id] = None  # it may be on its way
                while len(self._recalled) > _RECALLED:
                    self._recalled.popitem(last=False)
                return False
            self._cancelled += not course.cancelled
            course.cancelled = True
            self._changed.notify_all()
            if not course.entered:  # it waits for a slot, and no stage knows it
                return True
        release = self.stages.target.start("release", course.handle)  # wakes whoever waits in `take`
        self.stages.target.result(release, self.recipe.deadlines.control_s)
        return True

    def stats(self) -> dict[str, int | bool]:
        """How many requests run and wait, and how many were cancelled since the start."""
        with self._changed:
            return {
                "running": sum(course.entered for course in self._inside.values()),
                "waiting": sum(course.waits for course in self._inside.values()),
                "cancelled": self._cancelled,
                "draining": self._draining,
            }

    def drain(self, timeout_s: float) -> bool:
        """Take no more requests and wait for those inside. Returns whether all of them ended in time."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not self._inside, timeout_s)

    def _run(self, request: GenerateRequest, timeout_s: float | None, *, stream: bool) -> Iterator[Piece | Answer]:
        started = time.monotonic()
        limit = self.recipe.deadlines.request_s if timeout_s is None else timeout_s
        handle = next(self._handles)
        drafts = request.speculate and (self._drafts or self._learns or handle % _PROBE == 0)
        course = _Course(request, handle, started, started + limit, drafts)
        self._enter(course)
        try:
            self._admit(course)
            course.seeing = {
                "encoder": self.stages.encoder.start("moments", course.handle),
                "adapter": self.stages.adapter.start("moments", course.handle, course.decision),
            }
            progress = yield from self._follow(course, stream=stream)
        except BaseException:
            self._release(course)
            self._leave(course)
            raise
        received = time.monotonic()
        reports = self._release(course)
        self._leave(course)
        yield self._answer(course, progress, received, reports)

    def _leave(self, course: _Course) -> None:
        with self._changed:
            del self._inside[course.request.request_id]
            if course.entered:
                self._free += 1
            self._changed.notify_all()

    def _enter(self, course: _Course) -> None:
        """Wait for a slot; a request that is cancelled meanwhile leaves at once.

        Raises `CapacityError`, `InputError` for an id that is inside already, `DeadlineExceeded`, `StageError`.
        """
        request_id = course.request.request_id
        with self._changed:
            if self._draining:
                raise CapacityError("the pipeline is draining")
            if request_id in self._recalled:
                del self._recalled[request_id]
                self._cancelled += 1
                raise _cancellation(request_id)
            if request_id in self._inside:
                raise InputError("request_id", request_id, "an id that is not being answered already")
            if sum(other.waits for other in self._inside.values()) >= MAX_WAITING:
                raise CapacityError(f"{MAX_WAITING} requests are waiting")
            self._inside[request_id] = course
            try:
                if not self._changed.wait_for(lambda: self._free or course.cancelled, course.left_s):
                    raise DeadlineExceeded(f"request {request_id}: no slot before its deadline")
                if course.cancelled:
                    raise _cancellation(request_id)
            except BaseException:
                self._leave(course)
                raise
            self._free -= 1
            course.entered = True

    def _call(self, stage: StageHandle, reference: Any, course: _Course) -> Any:
        return stage.result(reference, min(course.left_s, self.recipe.deadlines.control_s))

    def _admit(self, course: _Course) -> None:
        """Start everything that can run at once; wait for nothing but the target's admission."""
        request, adapter, handle = course.request, self.stages.adapter, course.handle
        strict = self.recipe.cascade.mode == "strict"
        uses_events = self.recipe.adapter is not None and (course.drafts or not strict)
        view = self.stages.encoder.start("view", handle, request.events, uses_events)
        course.own = {
            level: adapter.start("dense", handle, view, level)
            for level, shared in enumerate(self.shared[:-1])
            if not shared and course.drafts
        }
        dense = None
        if not uses_events:
            dense = adapter.start("dense", handle, view)
            self._admit_drafters(course, dense)
            self._admit_target(course, dense)
            return
        aligned = adapter.start("align", handle, view)
        self._admit_drafters(course, aligned)  # drafting starts before the target has seen anything
        if strict or self.recipe.gate.policy == "full":
            dense = adapter.start("dense", handle, view)
        course.decision = adapter.start("decide", handle, view, aligned, dense)
        if strict:
            self._admit_target(course, dense)
        else:
            self._admit_target(course, adapter.start("fill", handle, view, aligned, course.decision, dense))
        if course.drafts:
            better = adapter.start("correct", handle, view, aligned, course.decision, dense)
            for level, drafter in enumerate(self.stages.drafters):
                if level not in course.own:
                    drafter.start("revise", handle, better)

    def _admit_drafters(self, course: _Course, features: Any) -> None:
        """Admit to every drafter: the target's kind of features, or those of its own tower where it has one."""
        for level, drafter in enumerate(self.stages.drafters if course.drafts else ()):
            course.drafting.append(self._start_admit(drafter, course, course.own.get(level, features)))

    def _admit_target(self, course: _Course, features: Any) -> None:
        target = self.stages.target
        self._call(target, self._start_admit(target, course, features), course)

    def _start_admit(self, stage: StageHandle, course: _Course, features: Any) -> Any:
        """Begin an admission, see `Admission`; `features` is the reference of a call that gives them."""
        request = course.request
        return stage.start(
            "admit",
            course.handle,
            request.request_id,
            request.question,
            features,
            request.sampling,
            course.drafts,
        )

    def _follow(self, course: _Course, *, stream: bool) -> Iterator[Piece]:
        """Wait for the answer, yielding pieces of text if asked. Returns the final `Progress`."""
        seen = shown = 0
        stopper = Stopper(self.tokenizer, self.ends, course.request.sampling)
        detokenizer = stopper.detokenizer()
        while True:
            wanted = seen if stream else course.request.sampling.max_tokens
            wait_s = min(course.left_s, self.recipe.deadlines.control_s)
            reference = self.stages.target.start("take", course.handle, wanted, 0.8 * wait_s)
            try:
                progress: Progress = self.stages.target.result(reference, wait_s)
            except StageError as error:
                if course.cancelled:
                    raise _cancellation(course.request.request_id) from error
                raise
            self._drafts = progress.drafts
            if progress.problem is not None:
                raise StageError(self.names[-1], course.request.request_id, progress.problem)
            if stream and len(progress.tokens) > seen:
                new, masks = progress.tokens[seen:], progress.masks[seen:]
                seen = len(progress.tokens)
                text = stopper.text(progress.tokens) if progress.finish_reason else stopper.shown(progress.tokens)
                yield Piece(text[shown:], new, masks, detokenizer.add(new, last=progress.finish_reason is not None))
                shown = max(shown, len(text))
            if progress.finish_reason == "cancelled":
                raise _cancellation(course.request.request_id)
            if progress.finish_reason is not None:
                return progress

    def _release(self, course: _Course) -> dict[str, RowReport]:
        """Free the request's slot on every stage; what each did for it comes back with that.

        The target's release is waited for. A drafter that is stuck is not: its release waits in its queue.
        """
        stages = dict(zip(self.names, [*self.stages.drafters, self.stages.target], strict=True))
        references = {name: stage.start("release", course.handle) for name, stage in stages.items()}
        until = time.monotonic() + _REPORT_S
        reports: dict[str, RowReport] = {}
        for name in reversed(self.names):  # the target first
            last = name == self.names[-1]
            wait_s = self.recipe.deadlines.control_s if last else max(0.0, until - time.monotonic())
            try:
                report = stages[name].result(references[name], wait_s)
            except CascadeError as error:
                log.warning("request %s: %s did not confirm its release: %s", course.request.request_id, name, error)
                continue
            if report is not None:
                reports[name] = report
        return reports

    def _notes(self, course: _Course) -> tuple[tuple[str, ...], GateDecision | None]:
        """What did not take part: a drafter that could not is a note, not an error; and the gate's decision."""
        notes, decision = [], None
        for name, drafter, reference in zip(self.names, self.stages.drafters, course.drafting, strict=False):
            try:
                drafter.result(reference, 0.0)
            except CascadeError as error:
                notes.append(f"without {name}: {error}")
        if course.decision is not None:
            try:
                decision = self.stages.adapter.result(course.decision, _REPORT_S)
            except CascadeError as error:
                notes.append(f"without the gate: {error}")
        for note in notes:
            log.warning("request %s went on %s", course.request.request_id, note)
        return (*self.recipe.marks, *notes), decision

    def _seen(self, course: _Course) -> dict[str, Moments]:
        """What encoder and adapter did when; without what is not known yet."""
        seen: dict[str, Moments] = {}
        for name, stage in (("encoder", self.stages.encoder), ("adapter", self.stages.adapter)):
            try:
                seen[name] = stage.result(course.seeing[name], _REPORT_S)
            except CascadeError as error:
                log.warning("request %s: %s did not say what it did: %s", course.request.request_id, name, error)
        return seen

    def _answer(self, course: _Course, progress: Progress, received: float, reports: dict[str, RowReport]) -> Answer:
        request = course.request
        stopper = Stopper(self.tokenizer, self.ends, request.sampling)
        notes, decision = self._notes(course)
        apart = received - progress.said_at  # the target's clock and ours, apart by at most the answer's way back

        def ms(at: float) -> float:
            return 1000 * (at + apart - course.started)

        moments = self._seen(course) | {name: reports[name].moments for name in self.names if name in reports}
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
            levels=self.names,
            masks=progress.masks,
            timings=Timings(ms(progress.first_token_at), ms(progress.last_token_at), tuple(spans)),
            edges=tuple(reports[name].edge for name in self._verifiers if name in reports),
            gate=decision.to_dict() if decision is not None else None,
            mode=self.recipe.cascade.mode,
            target_passes=progress.passes,
            prompt_tokens=reports[self.names[-1]].prompt_tokens if self.names[-1] in reports else 0,
            notes=notes,
            rejections=in_words((each for one in reports.values() for each in one.rejections), stopper.words),
        )
