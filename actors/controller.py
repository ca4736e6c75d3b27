"""`Controller`: admits requests to the stages and hands out their answers. Nothing of a running request passes
through it.

    view    = encoder.view(events)                          one immutable object each, put once, owned here, so that it
    aligned = adapter.align(view)  -> drafters.admit        outlives any stage that reads it
    dense   = adapter.dense(view)  -> target.admit          at the same time: drafting starts while the target still
    verdict = adapter.decide(...)  -> drafters.revise       encodes and prefills; a frame the gate refuses is replaced
    target.take(...)               -> the answer            long polls, one per streamed round or one per answer
    release everywhere                                      whatever happened
    fell(name), renew(name, stage)                          a stage died, and was started anew: it is told of every
                                                            request again, with its features and tokens confirmed
    several replicas of a stage                             each request has one of them, see `Seating`; where that
                                                            falls, or has many more than another, it moves to another

Stages are reached through `StageHandle`, so that the same controller runs over Ray actors and over plain threads.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping

from actors.admissions import Admissions
from actors.course import Course, Telling, lightest_of
from actors.ending import Ending
from actors.handles import StageHandle, ask_any
from actors.heap import keep_heap
from actors.pulse import Pulse
from actors.rows import RowReport
from actors.target import Progress
from cascade_runtime.api import Answer, GenerateRequest, Piece
from cascade_runtime.config import Recipe
from cascade_runtime.decoding.stopping import Stopper
from cascade_runtime.emulation.loading import load_tokenizer
from cascade_runtime.errors import (
    CapacityError,
    CascadeError,
    ChannelError,
    DeadlineExceeded,
    FeaturesLost,
    InputError,
    StageDied,
    StageError,
)

log = logging.getLogger(__name__)

MAX_WAITING = 64
_RECALLED = 1024  # ids remembered that were cancelled before their request came
_TAKE_S = 1.0  # the tokens known here are at most so old: what a target that is started anew goes on from
_PAUSE_S = 0.25  # between tries while a stage is down
_PROBE = 8  # while the target decodes alone, one request in so many is still prepared for drafting


class Controller:
    """One pipeline's front. Threads call `generate` and `stream`; at most `slots` requests run, `MAX_WAITING` wait."""

    def __init__(self, recipe: Recipe, stages: Mapping[str, StageHandle], first_handle: int = 1) -> None:
        recipe.check_runs_apart()
        self.recipe = recipe
        self.names = recipe.cascade.levels
        self.tokenizer = load_tokenizer(recipe)
        start_s = recipe.deadlines.start_s  # they may be loading, too
        self.ends: tuple[int, ...] = ask_any([stages[each] for each in recipe.target.members], start_s, "info")["ends"]
        self._ending = Ending(recipe, self.tokenizer, self.ends)
        self._handles = itertools.count(first_handle)
        self._changed = threading.Condition()  # guards what follows
        self._inside: dict[str, Course] = {}
        self._free = recipe.cascade.slots
        self._recalled: OrderedDict[str, None] = OrderedDict()
        self._cancelled = 0
        self._draining = False
        self._admissions = Admissions(recipe, stages, self._inside, self._changed)
        self._needed = ("encoder", "adapter", self.names[-1])  # without which there is no answer
        self._drafts = True  # the target had use for drafts when it was last heard
        # a drafter that learns from every answer, or drafts on the edge in any case: for next to nothing
        self._learns = len(recipe.stages) == 2 and recipe.stages[0].drafter != "model"
        keep_heap()

    @property
    def stages(self) -> Mapping[str, StageHandle]:
        """By replica, see `Recipe.members`."""
        return self._admissions.stages

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
        """End a request early, its waiter gets `StageError`. Whether it was inside; once its slots are free."""
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
            target = self.stages.get(course.target_at[0] or course.at.get(self.names[-1], ""))
        most_s = self.recipe.deadlines.control_s
        if target is not None:
            with contextlib.suppress(CascadeError):
                target.result(target.start("release", course.handle), most_s)  # wakes whoever waits in `take`
        with self._changed:
            self._changed.wait_for(lambda: self._inside.get(request_id) is not course, most_s)
        return True

    def fell(self, name: str, incarnation: int, ago_s: float) -> None:
        """See `Admissions.fell`."""
        self._admissions.fell(name, incarnation, ago_s)

    def renew(self, name: str, stage: StageHandle, incarnation: int) -> None:
        """See `Admissions.renew`."""
        self._admissions.renew(name, stage, incarnation)

    def give_up(self, name: str, problem: str) -> None:
        """See `Admissions.give_up`."""
        self._admissions.give_up(name, problem)

    def pulse(self) -> Pulse:
        """That it is alive."""
        with self._changed:
            return Pulse.here(rows=len(self._inside))

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
        first = lightest_of(self.recipe, request)
        drafts = request.speculate and first < len(self.names) - 1
        drafts = drafts and (self._drafts or self._learns or handle % _PROBE == 0)
        course = Course(request, handle, started, started + limit, drafts, first)
        self._enter(course)
        try:
            progress = yield from self._pursue(course, stream=stream)
        except BaseException:
            self._release(course)
            self._leave(course)
            raise
        received = time.monotonic()
        reports = self._release(course)
        self._leave(course)
        yield self._ending.answer(course, self.stages, progress, received, reports)

    def _release(self, course: Course) -> dict[str, RowReport]:
        """Free its slots. From here on no stage is told of it again: nobody would release it there."""
        with self._changed:
            course.over, stages = True, self.stages
        return self._ending.release(course, stages)

    def _leave(self, course: Course) -> None:
        with self._changed:
            self._forget(course)
            self._free += 1
        self._admissions.spread(*self.names)

    def _forget(self, course: Course) -> None:
        del self._inside[course.request.request_id]
        self._admissions.quarantine.left(course.request.request_id)
        self._changed.notify_all()

    def _enter(self, course: Course) -> None:
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
                raise course.cancellation()
            if request_id in self._inside:
                raise InputError("request_id", request_id, "an id that is not being answered already")
            if sum(other.waits for other in self._inside.values()) >= MAX_WAITING:
                raise CapacityError(f"{MAX_WAITING} requests are waiting")
            self._inside[request_id] = course
            try:
                if not self._changed.wait_for(lambda: self._free or course.cancelled, course.left_s):
                    raise DeadlineExceeded(f"request {request_id}: no slot before its deadline")
                if course.cancelled:
                    raise course.cancellation()
            except BaseException:
                self._forget(course)  # with no slot to give to others
                raise
            self._free -= 1
            course.entered = True

    def _pursue(self, course: Course, *, stream: bool) -> Generator[Piece, None, Progress]:
        """Admit a request and follow it to its end; again from where it stood when a stage it needs has died."""
        telling = Telling(Stopper(self.tokenizer, self.ends, course.request.sampling))
        while True:
            renewals = dict(self._admissions.incarnations.present)
            try:
                if not course.prepared:
                    self._admissions.permit(course, "encoder", "adapter")
                    self._admissions.admit(course)
                elif not course.admitted or course.target_at != ((seat := course.at[self.names[-1]]), renewals[seat]):
                    self._admissions.admit_target(course, course.features[self.names[-1]])
                progress = yield from self._follow(course, telling, stream=stream)
                if progress is not None:
                    return progress
            except FeaturesLost as error:
                course.prepared = False
                course.told.pop(course.at[self.names[-1]], None)  # it has not got them
                self._await(course, error, renewals)
            except (StageDied, ChannelError, DeadlineExceeded) as error:  # or a call was lost on its way
                self._await(course, error, renewals)

    def _await(self, course: Course, error: CascadeError, renewals: dict[str, int]) -> None:
        """A stage is down: until one was started anew, or it is worth another try. Raises what cannot be mended."""
        if not self.recipe.supervision.restarts:
            raise error
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._admissions.incarnations.present != renewals
                    or course.cancelled
                    or self._admissions.lost(*self._needed)
                    or self._admissions.goes_elsewhere(course)
                ),
                min(_PAUSE_S, course.left_s),
            )
            for name, why in self._admissions.lost(*self._needed).items():
                raise StageError(name, course.request.request_id, f"given up: {why}") from error

    def _follow(self, course: Course, telling: Telling, *, stream: bool) -> Generator[Piece, None, Progress | None]:
        """Wait for the answer, yielding pieces of text if asked. Returns the final `Progress`, None where the request
        is to go on at another replica of the target.
        """
        target = course.target
        assert target is not None  # it was admitted there
        while not course.moves(self.names[-1]):
            wanted = telling.seen if stream else course.request.sampling.max_tokens
            wait_s = min(course.left_s, self.recipe.deadlines.control_s)
            reference = target.start("take", course.handle, wanted, min(_TAKE_S, 0.8 * wait_s))
            try:
                progress: Progress = target.result(reference, wait_s)
            except StageError as error:
                if course.cancelled:
                    raise course.cancellation() from error
                raise
            self._drafts = progress.drafts
            if progress.problem is not None:
                raise StageError(self.names[-1], course.request.request_id, progress.problem)
            course.heard(progress)
            if stream and (piece := telling.piece(progress)) is not None:
                yield piece
            if progress.finish_reason == "cancelled":
                raise course.cancellation()
            if progress.finish_reason is not None:
                return progress
        return None
