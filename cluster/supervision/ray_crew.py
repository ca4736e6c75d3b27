"""`RayCrew`: how the supervisor lays hands on stages that are Ray actors."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import ray

from actors.handles import ask_any
from actors.host import host
from actors.pulse import Pulse
from cascade_runtime.config import Recipe, stage_of
from cascade_runtime.errors import CascadeError, DeadlineExceeded, StageDied
from cluster.placement import Reserved, edge_between

_HANDLES = 1 << 32  # how many requests one controller numbers
_EVICT_S = 5.0
_JOIN_S = 5.0
_PAUSE_S = 0.25


class RayCrew:
    """handles: the pipeline's `RayStage`s and its controller, by name; a restart changes their `actor` in place.

    create: makes the actor of a stage; create_controller: that of a controller whose first request gets this number.
    """

    def __init__(
        self,
        recipe: Recipe,
        reserved: Reserved,
        handles: Mapping[str, Any],
        create: Callable[[str], Any],
        create_controller: Callable[[int], Any],
    ) -> None:
        self._recipe, self._reserved, self._handles = recipe, reserved, handles
        self._create, self._create_controller = create, create_controller
        self._controllers = 1  # so far

    def kill(self, stage: str, pulse: Pulse | None) -> None:
        """Ray's way, and the system's where the process is of this machine: Ray lets one that is stopped hold its place
        for five seconds.
        """
        ray.kill(self._handles[stage].actor, no_restart=True)
        if pulse is not None and pulse.host == host():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pulse.pid, signal.SIGKILL)

    def start(self, stage: str) -> float:
        """In the same bundle of the placement group, which Ray moves to another node when its own is gone."""
        handle, start_s = self._handles[stage], self._recipe.deadlines.start_s
        if stage == "controller":
            first = self._controllers * _HANDLES
            self._controllers += 1
            self._evict(first)
            self._await_those_it_asks()
            begun_at = time.monotonic()
            handle.actor = self._create_controller(first)
            handle.ask(start_s, "pulse")
            return begun_at
        begun_at = time.monotonic()
        handle.actor = self._create(stage)
        handle.ask(start_s, "info")
        if stage in self._recipe.level_members:
            handle.ask(self._recipe.deadlines.control_s, "link", (), 1.0)
        return begun_at

    def _await_those_it_asks(self) -> None:
        """Until target and adapter are there or load, a replica of each, which a controller asks as it begins: it would
        die of their absence, and with it what waits for it; while they load, it may do so too. Raises `StageDied` where
        none of them comes.
        """
        end = time.monotonic() + self._recipe.deadlines.start_s
        for stage in ("adapter", self._recipe.target.name):
            handles = [self._handles[member] for member in self._recipe.members[stage]]
            while True:
                try:
                    ask_any(handles, _PAUSE_S, "info")
                    break
                except DeadlineExceeded:  # it is not dead
                    break
                except StageDied:
                    if time.monotonic() >= end:
                        raise
                    time.sleep(_PAUSE_S)

    def _evict(self, least: int) -> None:
        """Every stage forgets the requests of the controller before; one that is down knows of none."""
        levels = self._recipe.level_members
        references = {name: self._handles[name].start("evict", least) for name in levels}
        for name, reference in references.items():
            with contextlib.suppress(CascadeError):
                self._handles[name].result(reference, _EVICT_S)

    def fell(self, stage: str, incarnation: int, ago_s: float) -> None:
        """Without waiting: a controller that does not hear of it blames nobody."""
        if stage != "controller":
            self._handles["controller"].start("fell", stage, incarnation, ago_s)

    def resume(self, stage: str, incarnation: int) -> None:
        """The controller's requests are told to the stage; a new controller has none, but it may not be up before all
        others are.
        """
        if stage == "controller":
            return
        controller = self._handles["controller"]
        with contextlib.suppress(StageDied):  # the next controller begins with the stages as they are then
            controller.ask(self._recipe.deadlines.start_s, "renew", stage, self._handles[stage], incarnation)

    def wire(self, light: str, heavy: str, epoch: int) -> None:
        """The lighter stage listens at a new address, with a new secret. Where any backend will do, it is a socket:
        slots of the object store that were shared with a process that died stay unused, 4 MB of them each time.
        """
        control_s = self._recipe.deadlines.control_s
        lighter, heavier = self._handles[light], self._handles[heavy]
        backend = self._recipe.channels.backend
        backend = "stream" if backend == "auto" else backend
        spec = replace(edge_between(self._reserved.present(), light, heavy, backend), epoch=epoch)
        above, below = (self._recipe.members[stage_of(member)].index(member) for member in (light, heavy))
        spec = lighter.ask(control_s, "listen", spec, below)
        joins = [
            (lighter, lighter.start("join_downstream", _JOIN_S, below)),
            (heavier, heavier.start("join_upstream", spec, _JOIN_S, above)),
        ]
        for stage, reference in joins:
            stage.result(reference, control_s)

    def give_up(self, stage: str, reason: str) -> None:
        """Requests that need the stage fail from now on."""
        if stage != "controller":
            controller = self._handles["controller"]
            controller.result(controller.start("give_up", stage, reason), self._recipe.deadlines.control_s)
