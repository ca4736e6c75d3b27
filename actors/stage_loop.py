"""`StageLoop`: one thread that owns a stage's rows and links, and the control calls that reach it from other threads.

    control calls (any thread)  --commands-->  [ turn, turn, turn ... ]  <--messages-->  links to both neighbours

What a turn is, and what a row is, its subclasses say: a language level (`stage.py`), or a relay for drafters elsewhere
(`edge_relay.py`). Control calls are idempotent and wait for their outcome with a deadline. When the loop ends, planned
or not, links are closed, whoever waits is told, and nothing can be asked any more.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from actors.bell import Bell
from actors.commands import Commands
from actors.facts import LoopClock
from actors.heap import keep_heap
from actors.links import Links, epochs_of
from actors.pulse import Pulse
from actors.rows import Route, RowReport
from cascade_runtime.channels import ChannelSpec
from cascade_runtime.config import Recipe
from cascade_runtime.errors import StageDied, StageError
from cascade_runtime.tracing import Trace, Tracer

Row = TypeVar("Row")

log = logging.getLogger(__name__)

_RELEASED = 1024  # handles known to be released


class StageLoop(ABC, Generic[Row]):
    """Stage `index` of the recipe, counted from the lightest, or one replica of it, by number from 0; `rows` are the
    requests inside, by handle.
    """

    def __init__(self, recipe: Recipe, index: int, replica: int = 0) -> None:
        self.recipe, self.index, self.name = recipe.share_of(index), index, recipe.stages[index].members[replica]
        self.tracer = Tracer(self.name)
        self.links = Links(recipe, index, self.tracer)
        self.clock = LoopClock()
        self.rows: dict[int, Row] = {}
        self._released: OrderedDict[int, None] = OrderedDict()
        self._least = 0  # handles below it belong to a controller that is gone
        self._bell = Bell()
        self._commands = Commands(self.name, self._bell.ring)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # -- control plane: called from other threads, idempotent, bounded in time --------------------------------------

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """Facts about the stage that the launcher checks and prints."""

    @abstractmethod
    def stats(self) -> dict[str, Any]:
        """Counters since the start."""

    def listen(self, spec: ChannelSpec, replica: int = 0) -> ChannelSpec:
        """Open the link to a replica of the next stage and return where it can be reached."""
        return self.links.listen(spec, replica)

    def release(self, handle: int) -> RowReport | None:
        """Forget a request, finished, running or still to come; its slot is free when this returns."""
        return self._command(lambda: self._release(handle))  # type: ignore[return-value]

    def vacate(self, handle: int, turn: int) -> None:
        """Free a request's slot: it goes on at another replica, and may come back to this one. Admissions of this turn
        and those before, see `Route`, are refused from now on.
        """
        self._command(lambda: self._vacate(handle, turn))

    def reroute(self, handle: int, route: Route) -> None:
        """Other replicas of the neighbouring stages have a request from now on."""
        self._command(lambda: self._reroute(handle, route))

    def evict(self, least: int) -> None:
        """Forget every request whose handle is lower, and refuse those still to come: their controller is gone."""
        self._command(lambda: self._evict(least))

    def pulse(self) -> Pulse:
        """Asks nothing of the loop. Raises `StageDied` where that has ended."""
        self._check_running()
        upstream, downstream = epochs_of(self.links.upstream), epochs_of(self.links.downstream)
        return Pulse.here(self.clock.turning_s, upstream, downstream, len(self.rows))

    def trace(self) -> Trace:
        """The recorded spans and messages."""
        return self.tracer.snapshot()

    def stop(self) -> None:
        """End the loop and close all links. Requests still inside fail at whoever waits for them."""
        self._stopping.set()
        self._bell.ring()
        if self._thread is not None:
            self._thread.join(self.recipe.deadlines.control_s)
        self.links.close()
        self._bell.close()

    def _check_running(self) -> None:
        if self._stopping.is_set():
            raise StageDied(self.name, "-", "its loop has ended")

    def _command(self, action: Callable[[], object]) -> object:
        if self._thread is None:
            raise StageDied(self.name, "-", "the stage is not running")
        self._check_running()
        return self._commands.ask(action, self.recipe.deadlines.control_s)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        keep_heap()
        self._thread = threading.Thread(target=self._run, name=f"stage-{self.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._begun()
            while not self._stopping.is_set():
                self._turn()
        except Exception:
            log.exception("stage %s: the loop ended", self.name)
        finally:
            self._stopping.set()
            self.links.close()
            self._commands.refuse()
            self._ended()

    def _begun(self) -> None:
        """The loop's thread has begun."""

    @abstractmethod
    def _turn(self) -> None:
        """Obey commands, take what has come, do what can be done, say what is news, sleep until there is more."""

    def _ended(self) -> None:
        """The loop is over, as planned or not."""

    # -- requests, in the loop's thread ------------------------------------------------------------------------------

    def _is_past(self, handle: int) -> bool:
        """Whether the request was released, or its controller is gone."""
        return handle in self._released or handle < self._least

    def _expect(self, handle: int, request_id: str) -> None:
        if self._is_past(handle):
            raise StageError(self.name, request_id, "was released before it was admitted")

    def _release(self, handle: int) -> RowReport | None:
        report = self._forget(handle)
        self._released[handle] = None
        while len(self._released) > _RELEASED:
            self._released.popitem(last=False)
        return report

    def _vacate(self, handle: int, turn: int) -> None:
        """The request is not inside any more."""

    def _reroute(self, handle: int, route: Route) -> None:
        """Whom to tell of a request, and whom to believe."""

    def _evict(self, least: int) -> None:
        self._least = least
        for handle in [handle for handle in self.rows if handle < least]:
            self._release(handle)

    @abstractmethod
    def _forget(self, handle: int) -> RowReport | None:
        """The request is not inside any more. Returns what is to be said of it to whoever releases it, once."""
