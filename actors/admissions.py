"""`Admissions`: which stages, and which of their replicas, know of a request, from its first to its last token.

    admit(course)              told to all stages at once, see `Controller`; waits for the target's admission alone
    admit_target(course)       told to the target, where it is to go on there, or at another replica of it
    fell(name), renew(name)    a stage is down, or there again: who was at it is told to another replica, or once more

What guards it is the controller's condition, `changed`, on which those wait who may enter nowhere yet.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from actors.course import Course
from actors.handles import StageHandle, ask_any
from actors.incarnations import Incarnations
from actors.quarantine import Quarantine
from actors.rows import Route
from actors.seating import Seating
from cascade_runtime.config import Recipe, stage_of
from cascade_runtime.errors import CapacityError, ChannelError, DeadlineExceeded, Quarantined, StageError

_GUILTY = "has crashed with this request in it, again and again"


class Admissions:
    """Of one pipeline. stages: by replica, see `Recipe.members`. inside: its requests, by id."""

    def __init__(
        self,
        recipe: Recipe,
        stages: Mapping[str, StageHandle],
        inside: Mapping[str, Course],
        changed: threading.Condition,
    ) -> None:
        self.recipe, self.names, self.stages = recipe, recipe.cascade.levels, dict(stages)
        self._inside, self._changed = inside, changed
        adapters = [stages[each] for each in recipe.members["adapter"]]
        self.shared: tuple[bool, ...] = ask_any(adapters, recipe.deadlines.start_s, "info")["shared"]
        self.incarnations = Incarnations(stages)
        self.quarantine = Quarantine()
        self._seating = Seating(recipe, self.incarnations, inside)

    def fell(self, name: str, incarnation: int, ago_s: float) -> None:
        """The stage, or replica of one, `name` is dead or hangs, and this incarnation is to follow. It was well `ago_s`
        ago: who was told to it later is not suspect. Where there are other replicas its requests go on there.
        """
        stage = stage_of(name)
        with self._changed:
            if not self.incarnations.fell(name, incarnation):
                return
            fallen, well_at = self.incarnations.present[name], time.monotonic() - ago_s
            present = {
                course.request.request_id: len(course.progress.tokens) if stage == self.names[-1] else 0
                for course in self._inside.values()
                if not course.over and course.was_at(name, fallen, well_at)
            }
            self.quarantine.crashed(stage, present)
            moved = self._seating.leave(name, stage) if stage in self.names[:-1] else []
            self._changed.notify_all()
        self._move(stage, moved)

    def renew(self, name: str, stage: StageHandle, incarnation: int) -> None:
        """Stage `name`, or replica of one, was started anew, is behind this handle and knows of no request: tell it of
        those inside that are its own, and let others move there.
        """
        kind = stage_of(name)
        with self._changed:
            inside = [course for course in self._inside.values() if not course.over and course.at.get(kind) == name]
            if not self.incarnations.renewed(name, incarnation):
                return
            self.stages = {**self.stages, name: stage}
            self._changed.notify_all()
        for course in inside:
            if kind in self.names[:-1] and kind in course.features:
                self._admit_drafter(course, self.names.index(kind))
        self.spread(kind)

    def give_up(self, name: str, problem: str) -> None:
        """Stage `name` will not come back: whoever needs it fails, now and from now on."""
        with self._changed:
            self.incarnations.give_up(name, problem)
            self._changed.notify_all()

    def permit(self, course: Course, *stages: str) -> None:
        """Wait until these stages have a replica that is there and has room, and the request may enter. Raises
        `Quarantined` where it never will.
        """
        request_id = course.request.request_id
        with self._changed:
            before = dict(course.at)

            def decided() -> bool:
                if any(self.quarantine.guilty(stage, request_id) for stage in stages):
                    return True
                if not self._seating.take(course, *stages):
                    return bool(self.lost(*stages))
                return all(self.quarantine.admits(stage, request_id) for stage in stages)

            self._changed.wait_for(lambda: course.cancelled or decided(), course.left_s)
            for stage in stages:
                if self.quarantine.guilty(stage, request_id):
                    raise Quarantined(stage, request_id, f"the stage {_GUILTY}")
            assert course.left_s > 0  # else it has raised
        for stage in stages:
            if stage in self.names and before.get(stage, course.at[stage]) != course.at[stage]:
                self._reroute(course, stage)

    def lost(self, *stages: str) -> dict[str, str]:
        """Those of them that have no replica which might come back, and why."""
        given_up = {stage: self.incarnations.given_up(*self._seating.members[stage]) for stage in stages}
        return {
            stage: " and ".join(why.values())
            for stage, why in given_up.items()
            if len(why) == len(self._seating.members[stage])
        }

    def goes_elsewhere(self, course: Course) -> bool:
        """Whether another replica of the target takes it than has it so far."""
        target = self.names[-1]
        return course.prepared and self._seating.take(course, target) and course.moves(target)

    def spread(self, *stages: str) -> None:
        """Move requests where one replica has many and another few, or where a drafter is down and others have room;
        those of the target go when they next look.
        """
        for stage in stages:
            stranded: list[Course] = []
            with self._changed:
                for member in self._seating.members[stage] if stage in self.names[:-1] else ():
                    if self.incarnations.down(member):
                        stranded += self._seating.leave(member, stage)
                moved = [(course, former, course.turns[stage] - 1) for course, former in self._seating.spread(stage)]
                for course, former, _ in moved if stage in self.names[:-1] else ():
                    course.told.pop(former, None)
            if stage in self.names[:-1]:
                for course, former, turn in moved:
                    self.stages[former].start("vacate", course.handle, turn)
                self._move(stage, dict.fromkeys([*stranded, *(course for course, *_ in moved)]))

    def admit(self, course: Course) -> None:
        """Start everything that can run at once, perhaps once more; wait for nothing but the target's admission."""
        request, handle = course.request, course.handle
        with self._changed:
            self._seating.take(course, *self._seating.members)
        encoder, adapter = self.stages[course.at["encoder"]], self.stages[course.at["adapter"]]
        course.decision = course.better = None
        course.tell(self.incarnations.present, "encoder", "adapter")
        strict = self.recipe.cascade.mode == "strict"
        uses_events = self.recipe.adapter is not None and (course.drafts or not strict)
        view = encoder.start("view", handle, request.events, uses_events)
        course.own = {
            level: adapter.start("dense", handle, view, level)
            for level, shared in enumerate(self.shared[:-1])
            if not shared and course.drafts
        }
        dense = None
        if not uses_events:
            dense = adapter.start("dense", handle, view)
            self._admit_drafters(course, dense)
            self.admit_target(course, dense)
            return
        aligned = adapter.start("align", handle, view)
        self._admit_drafters(course, aligned)  # drafting starts before the target has seen anything
        if strict or self.recipe.gate.policy == "full":
            dense = adapter.start("dense", handle, view)
        course.decision = adapter.start("decide", handle, view, aligned, dense)
        if strict:
            self.admit_target(course, dense)
        else:
            self.admit_target(course, adapter.start("fill", handle, view, aligned, course.decision, dense))
        if course.drafts:
            course.better = adapter.start("correct", handle, view, aligned, course.decision, dense)
            for level, name in enumerate(self.names[:-1]):
                if level not in course.own:
                    self.stages[course.at[name]].start("revise", handle, course.better)

    def admit_target(self, course: Course, features: Any) -> None:
        """Tell the target, once it may enter; the replica that had it before lets go of it first."""
        name = self.names[-1]
        course.features[name] = features
        with self._changed:
            waits = not course.prepared and not self._seating.take(course, name)
        if waits:  # no other stage is at it meanwhile
            adapter = self.stages[course.at["adapter"]]
            self._call(adapter, adapter.start("moments", course.handle, features), course)
            course.made()
        with self._changed:
            former, over = course.target_at[0], course.turns[name] - 1
            leaves = course.moves(name) and not self.incarnations.down(former)
        if leaves:
            with contextlib.suppress(StageError, ChannelError, DeadlineExceeded, CapacityError):
                self._call(self.stages[former], self.stages[former].start("vacate", course.handle, over), course)
                course.told.pop(former, None)
        self.permit(course, name)
        with self._changed:
            seat, route = course.at[name], self._seating.route(course, len(self.names) - 1)
            course.target_at, course.target = (seat, self.incarnations.present[seat]), self.stages[seat]
            course.admitted = False
            self._changed.notify_all()  # there is room at the former
            course.tell(self.incarnations.present, name)
        if former and former != seat:
            self._reroute(course, name)
        self._call(course.target, self._start_admit(course.target, course, len(self.names) - 1, route), course)
        course.admitted = True
        course.made()
        course.seeing = {
            "encoder": self.stages[course.at["encoder"]].start("moments", course.handle),
            "adapter": self.stages[course.at["adapter"]].start("moments", course.handle, course.decision),
        }

    def _admit_drafters(self, course: Course, features: Any) -> None:
        """Admit to every drafter: the target's kind of features, or those of its own tower where it has one."""
        for level, name in enumerate(self.names[:-1] if course.drafts else ()):
            if level < course.first:
                continue
            course.features[name] = course.own.get(level, features)  # before the stage is looked up: see `renew`
            self._admit_drafter(course, level)

    def _admit_drafter(self, course: Course, level: int) -> None:
        name, request_id = self.names[level], course.request.request_id
        with self._changed:
            admits = self.quarantine.admits(name, request_id)
            drafter, route = self.stages[course.at[name]], self._seating.route(course, level)
            if admits:
                course.tell(self.incarnations.present, name)
        if not admits:  # the others can do without it
            course.drafting.pop(name, None)
            course.notes.append(f"without {name}: it {_GUILTY}")
            return
        course.drafting[name] = drafter, self._start_admit(drafter, course, level, route)
        if course.better is not None and level not in course.own:
            drafter.start("revise", course.handle, course.better)

    def _move(self, stage: str, moved: Iterable[Course]) -> None:
        """Tell other replicas of a drafter of requests that they have now."""
        for course in moved:
            if stage in course.features:
                self._admit_drafter(course, self.names.index(stage))
                self._reroute(course, stage)

    def _start_admit(self, stage: StageHandle, course: Course, level: int, route: Route) -> Any:
        """Begin an admission, see `Admission`; its features are the reference of a call that gives them."""
        request = course.request
        asked = request.request_id, request.question, course.features[self.names[level]], request.sampling
        said = course.expects(level), course.progress.tokens, course.progress.masks, route
        return stage.start("admit", course.handle, *asked, *said)

    def _reroute(self, course: Course, stage: str) -> None:
        """Another replica of a stage has it: tell its neighbours."""
        level = self.names.index(stage)
        with self._changed:
            told = [
                (self.stages[course.at[self.names[neighbour]]], self._seating.route(course, neighbour))
                for neighbour in (level - 1, level + 1)
                if 0 <= neighbour < len(self.names) and self.names[neighbour] in course.features
            ]
        for neighbour, route in told:
            neighbour.start("reroute", course.handle, route)

    def _call(self, stage: StageHandle, reference: Any, course: Course) -> Any:
        return stage.result(reference, min(course.left_s, self.recipe.deadlines.control_s))
