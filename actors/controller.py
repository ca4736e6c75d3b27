"""`Controller`: admits requests to the stages and hands out their answers. Nothing of a running request passes
through it.

    view    = encoder.view(events)                          one immutable object each, put once, owned here, so that it
    aligned = adapter.align(view)  -> drafters.admit        outlives any stage that reads it
    dense   = adapter.dense(view)  -> target.admit          at the same time: drafting starts while the target still
    verdict = adapter.judge(...)   -> drafters.admit again  encodes and prefills; a frame the gate refuses is replaced
    target.take(...)               -> the answer            long polls, one per streamed round or one per answer
    release everywhere                                      whatever happened

Stages are reached through `StageHandle`, so that the same controller runs over Ray actors and over plain threads.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from actors.target import Progress
from cascade_runtime.api import Answer, GenerateRequest, Timings
from cascade_runtime.config import Recipe
from cascade_runtime.decoding.stopping import Stopper
from cascade_runtime.errors import CapacityError, CascadeError, DeadlineExceeded, InputError, StageError
from cascade_runtime.metrics import EdgeCounters
from cascade_runtime.models.stage_source import load_front
from cascade_runtime.vision.gate import GateDecision

log = logging.getLogger(__name__)

MAX_WAITING = 64


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
    notes: list[str] = field(default_factory=list)
    own: dict[int, Any] = field(default_factory=dict)  # dense features of levels with a tower of their own
    decision: GateDecision | None = None
    cancelled: bool = False

    @property
    def left_s(self) -> float:
        """Seconds until the deadline. Raises when it has passed or the request was cancelled."""
        if self.cancelled:
            raise StageError("controller", self.request.request_id, "cancelled")
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"request {self.request.request_id}: no answer before its deadline")
        return left


class Controller:
    """One pipeline's front. Threads call `generate` and `stream`; at most `slots` requests run, `MAX_WAITING` wait."""

    def __init__(self, recipe: Recipe, stages: Stages) -> None:
        self.recipe, self.stages = recipe, stages
        self.names = recipe.cascade.levels
        self.tokenizer = load_front(recipe.target).tokenizer
        control_s = recipe.deadlines.control_s
        self.ends: tuple[int, ...] = stages.target.result(stages.target.start("info"), control_s)["ends"]
        self.shared: tuple[bool, ...] = stages.adapter.result(stages.adapter.start("info"), control_s)["shared"]
        self._handles = itertools.count(1)
        self._slots = threading.BoundedSemaphore(recipe.cascade.slots)
        self._lock = threading.Lock()
        self._waiting = 0
        self._running: dict[str, _Course] = {}
        self._draining = False

    def generate(self, request: GenerateRequest, timeout_s: float | None = None) -> Answer:
        """Answer one request. Raises what is wrong with it, or `DeadlineExceeded`, `CapacityError`, `StageError`."""
        for update in self._run(request, timeout_s, stream=False):
            if isinstance(update, Answer):
                return update
        raise StageError("controller", request.request_id, "ended without an answer")

    def stream(self, request: GenerateRequest, timeout_s: float | None = None) -> Iterator[str | Answer]:
        """Pieces of text as rounds confirm them, then the answer."""
        yield from self._run(request, timeout_s, stream=True)

    def cancel(self, request_id: str) -> bool:
        """End a running request early; whoever waits for it gets `StageError`. Returns whether it was running."""
        with self._lock:
            course = self._running.get(request_id)
        if course is None:
            return False
        course.cancelled = True
        release = self.stages.target.start("release", course.handle)  # wakes whoever waits in `take`
        self.stages.target.result(release, self.recipe.deadlines.control_s)
        return True

    def stats(self) -> dict[str, int | bool]:
        """How many requests run and wait."""
        with self._lock:
            return {"running": len(self._running), "waiting": self._waiting, "draining": self._draining}

    def drain(self, timeout_s: float) -> bool:
        """Take no more requests and wait for those inside. Returns whether all of them ended in time."""
        self._draining = True
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            with self._lock:
                if not self._running and not self._waiting:
                    return True
            time.sleep(0.01)
        return False

    def _run(self, request: GenerateRequest, timeout_s: float | None, *, stream: bool) -> Iterator[str | Answer]:
        started = time.monotonic()
        limit = self.recipe.deadlines.request_s if timeout_s is None else timeout_s
        course = _Course(request, next(self._handles), started, started + limit)
        self._enter(course)
        try:
            gate = self._admit(course)
            progress = yield from self._follow(course, stream=stream)
            if gate is not None:
                self._decide(course, gate)
            yield self._answer(course, progress, self._release(course))
        except BaseException:
            self._release(course)
            raise
        finally:
            with self._lock:
                self._running.pop(request.request_id, None)
            self._slots.release()

    def _enter(self, course: _Course) -> None:
        request_id = course.request.request_id
        with self._lock:
            if self._draining:
                raise CapacityError("the pipeline is draining")
            if request_id in self._running:
                raise InputError("request_id", request_id, "an id that is not being answered already")
            if self._waiting >= MAX_WAITING:
                raise CapacityError(f"{MAX_WAITING} requests are waiting")
            self._waiting += 1
            self._running[request_id] = course
        try:
            entered = self._slots.acquire(timeout=max(0.0, course.deadline - time.monotonic()))
        finally:
            with self._lock:
                self._waiting -= 1
        if not entered:
            with self._lock:
                self._running.pop(request_id, None)
            raise DeadlineExceeded(f"request {request_id}: no slot before its deadline")

    def _call(self, stage: StageHandle, reference: Any, course: _Course) -> Any:
        return stage.result(reference, min(course.left_s, self.recipe.deadlines.control_s))

    def _decide(self, course: _Course, reference: Any) -> GateDecision:
        course.decision = decision = self._call(self.stages.adapter, reference, course)
        return decision

    def _admit(self, course: _Course) -> Any:
        """Start everything that can run at once. Returns the reference of a gate decision that nobody waits for,
        or None.
        """
        request, adapter = course.request, self.stages.adapter
        view = self.stages.encoder.start("view", course.handle, request.events)
        course.own = {
            level: adapter.start("dense", course.handle, view, level)
            for level, shared in enumerate(self.shared[:-1])
            if not shared
        }
        if self.recipe.adapter is None:
            dense = adapter.start("dense", course.handle, view)
            drafting = self._start_drafters(course, dense)
            self._admit_target(course, dense)
            self._finish_drafters(course, drafting)
            return None
        aligned = adapter.start("align", course.handle, view)
        if self.recipe.cascade.mode == "aligned":
            self._admit_aligned(course, view, aligned)
            return None
        dense = adapter.start("dense", course.handle, view)
        drafting = self._start_drafters(course, aligned)  # before the target has seen anything
        self._admit_target(course, dense)
        self._finish_drafters(course, drafting)
        if self.recipe.gate.policy == "predicted":
            decision = adapter.start("predict", view)
        else:
            decision = adapter.start("judge", view, aligned, dense)
        if len(self.names) > 1 and request.speculate:
            if not all(self._decide(course, decision).accepted):
                mixed = adapter.start("mix", aligned, dense, decision)
                self._finish_drafters(course, self._start_drafters(course, mixed))
            return None
        return decision

    def _admit_aligned(self, course: _Course, view: Any, aligned: Any) -> None:
        """Mode "aligned": the target waits for the gate, and sees aligned features wherever it accepts them."""
        adapter = self.stages.adapter
        drafting = self._start_drafters(course, aligned)
        features = aligned
        if self.recipe.gate.policy == "predicted":
            decision = adapter.start("predict", view)
            if not all(self._decide(course, decision).accepted):
                features = adapter.start("mix", aligned, adapter.start("dense", course.handle, view), decision)
        else:
            dense = adapter.start("dense", course.handle, view)
            decision = adapter.start("judge", view, aligned, dense)
            if not all(self._decide(course, decision).accepted):
                features = adapter.start("mix", aligned, dense, decision)
        self._admit_target(course, features)
        self._finish_drafters(course, drafting)
        if features is not aligned:
            self._finish_drafters(course, self._start_drafters(course, features))

    def _start_drafters(self, course: _Course, features: Any) -> list[Any]:
        """Admit to every drafter: the target's kind of features, or those of its own tower where it has one."""
        request = course.request
        references: list[Any] = []
        for level, drafter in enumerate(self.stages.drafters if request.speculate else ()):
            given = course.own.get(level, features)
            arguments = (course.handle, request.request_id, request.question, given, request.sampling)
            references.append(drafter.start("admit", *arguments))
        return references

    def _finish_drafters(self, course: _Course, references: Sequence[Any]) -> None:
        """A drafter that cannot take part is a note, not an error: the answer does not depend on it."""
        for name, drafter, reference in zip(self.names, self.stages.drafters, references, strict=False):
            try:
                self._call(drafter, reference, course)
            except CascadeError as error:
                log.warning("request %s goes on without %s: %s", course.request.request_id, name, error)
                course.notes.append(f"without {name}: {error}")

    def _admit_target(self, course: _Course, features: Any) -> None:
        request, target = course.request, self.stages.target
        arguments = (
            course.handle,
            request.request_id,
            request.question,
            features,
            request.sampling,
            request.speculate,
        )
        self._call(target, target.start("admit", *arguments), course)

    def _follow(self, course: _Course, *, stream: bool) -> Iterator[str]:
        """Wait for the answer, yielding pieces of text if asked. Returns the final `Progress`."""
        seen = shown = 0
        stopper = Stopper(self.tokenizer, self.ends, course.request.sampling)
        while True:
            wanted = seen if stream else course.request.sampling.max_tokens
            wait_s = min(course.left_s, self.recipe.deadlines.control_s)
            reference = self.stages.target.start("take", course.handle, wanted, 0.8 * wait_s)
            try:
                progress: Progress = self.stages.target.result(reference, wait_s)
            except StageError as error:
                if course.cancelled:
                    raise StageError("controller", course.request.request_id, "cancelled") from error
                raise
            if progress.problem is not None:
                raise StageError(self.names[-1], course.request.request_id, progress.problem)
            if stream and len(progress.tokens) > seen:
                seen = len(progress.tokens)
                text = stopper.text(progress.tokens) if progress.finish_reason else stopper.shown(progress.tokens)
                yield text[shown:]
                shown = max(shown, len(text))
            if progress.finish_reason == "cancelled":
                raise StageError("controller", course.request.request_id, "cancelled")
            if progress.finish_reason is not None:
                return progress

    def _release(self, course: _Course) -> tuple[EdgeCounters, ...]:
        """Free the request's slot on every stage; the edges' reports come back with it."""
        stages = [*self.stages.drafters, self.stages.target]
        references = [stage.start("release", course.handle) for stage in stages]
        reports = []
        for name, stage, reference in zip(self.names, stages, references, strict=True):
            try:
                reports.append(stage.result(reference, self.recipe.deadlines.control_s))
            except CascadeError as error:
                log.warning("request %s: %s did not confirm its release: %s", course.request.request_id, name, error)
        return tuple(report for report in reports if report is not None)

    def _answer(self, course: _Course, progress: Progress, edges: tuple[EdgeCounters, ...]) -> Answer:
        request = course.request
        stopper = Stopper(self.tokenizer, self.ends, request.sampling)
        return Answer(
            request_id=request.request_id,
            text=stopper.text(progress.tokens),
            token_ids=progress.tokens,
            pieces=stopper.pieces(progress.tokens),
            finish_reason=progress.finish_reason or "length",
            levels=self.names,
            masks=progress.masks,
            timings=Timings(
                1000 * (progress.first_token_at - course.started), 1000 * (progress.last_token_at - course.started)
            ),
            edges=edges,
            gate=course.decision.to_dict() if course.decision is not None else None,
            mode=self.recipe.cascade.mode,
            target_passes=progress.passes,
            notes=tuple(course.notes),
        )
