"""`Supervisor`: a thread that asks every stage for its pulse, and does what the `Watch` says.

    every tick      pulses and errors that have come -> the watch -> pings at once; restarts and links in threads
    a restart       kill (what hangs) -> start, which loads the model -> tell the controller       the watch: started
    a link          listen at the lighter stage -> join on both                                    the watch: wired

One restart holds up no other, nor the pings. Times are of the monotonic clock.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

from actors.handles import StageHandle
from actors.pulse import Pulse
from cascade_runtime.config import Recipe
from cascade_runtime.errors import CascadeError, ChannelError, ConfigError, DeadlineExceeded, StageError
from cluster.supervision.watch import TICK_S, Fell, GiveUp, Ping, Restart, Rewire, Watch

log = logging.getLogger(__name__)

_KEPT = 4096  # recoveries remembered
_THREADS = 8


class Crew(Protocol):
    """Who lays hands on the stages. Each method waits for what it does, with a deadline; it raises `CascadeError`."""

    def kill(self, stage: str, pulse: Pulse | None) -> None:
        """End what there is of it. pulse: the last it gave, where its process may hang; None where that is gone."""
        ...

    def start(self, stage: str) -> float:
        """Start it anew where it was, behind the same handle; returns once it has loaded and runs. When its loading
        began, after what else had to be done or waited for: `time.monotonic()` seconds.
        """
        ...

    def fell(self, stage: str, incarnation: int, ago_s: float) -> None:
        """Tell the controller, at once, that a stage was last well so long ago, and which incarnation is to follow."""
        ...

    def resume(self, stage: str, incarnation: int) -> None:
        """Tell the controller that it is there, and let it tell the stage of the requests inside."""
        ...

    def wire(self, light: str, heavy: str, epoch: int) -> None:
        """Link two neighbours."""
        ...

    def give_up(self, stage: str, reason: str) -> None:
        """Tell the controller that a stage will not come back."""
        ...


@dataclass(frozen=True)
class Recovery:
    """One restart, in seconds of the monotonic clock: when it was found out, when its new process was begun (after a
    pause, where it had not been up for long) and when that had loaded, and when the stage was whole again, links
    included.
    """

    stage: str
    reason: str
    planned: bool
    noticed_at: float
    begun_at: float = 0.0
    loaded_at: float = 0.0
    up_at: float = 0.0


class Supervisor:
    """Of the stages and the controller of one pipeline, by name in `handles`. Public methods are for any thread."""

    def __init__(self, recipe: Recipe, handles: Mapping[str, StageHandle], crew: Crew) -> None:
        self._recipe, self._handles, self._crew = recipe, handles, crew
        levels = [stage.members for stage in recipe.stages]
        self._watch = Watch(tuple(handles), levels, recipe.supervision, time.monotonic())
        self._asked: dict[str, list[tuple[int, Any]]] = {}  # stage -> incarnations, references of their answers
        self._pulses: dict[str, Pulse] = {}
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._under_way: dict[str, Recovery] = {}
        self._changed = threading.Condition()  # guards what follows
        self._recoveries: deque[Recovery] = deque(maxlen=_KEPT)
        self._given_up: dict[str, str] = {}
        self._stopping = threading.Event()
        self._hands = ThreadPoolExecutor(_THREADS, thread_name_prefix="supervisor")
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    @property
    def recoveries(self) -> tuple[Recovery, ...]:
        """Restarts that are over, oldest first; the last few thousand."""
        with self._changed:
            return tuple(self._recoveries)

    @property
    def given_up(self) -> dict[str, str]:
        """Stages that will not come back, and why."""
        with self._changed:
            return dict(self._given_up)

    @property
    def down(self) -> set[str]:
        """Stages that are not there, or not linked to a neighbour that is; those given up included."""
        return {stage for stage in self._handles if not self._watch.whole(stage)}

    def pulses(self) -> dict[str, Pulse]:
        """The last pulse of every stage that has given one."""
        return dict(self._pulses)

    def restart(self, stage: str, timeout_s: float) -> Recovery:
        """Start a stage anew on purpose, and wait until it is whole. Requests inside go on afterwards.

        Raises `ConfigError` for a stage that is not there, `StageError` for one that is down, `DeadlineExceeded`.
        """
        if stage not in self._handles:
            raise ConfigError("stage", stage, ", ".join(self._handles))
        before, down = len(self.recoveries), threading.Event()

        def ask() -> None:
            if not self._watch.restart(stage, time.monotonic()):
                down.set()

        def over() -> Recovery | None:
            ended = list(self._recoveries)[before:]
            return next((each for each in ended if each.stage == stage and each.planned), None)

        self._events.put(ask)
        with self._changed:
            self._changed.wait_for(lambda: over() or down.is_set() or stage in self._given_up, timeout_s)
            if (recovery := over()) is not None:
                return recovery
        if down.is_set() or stage in self.given_up:
            raise StageError(stage, "-", "it is down already, or could not be started")
        raise DeadlineExceeded(f"stage {stage}: not up again within {timeout_s} s")

    def stop(self) -> None:
        """Watch no more. A restart that is under way is not waited for."""
        self._stopping.set()
        self._thread.join(5.0)
        self._hands.shutdown(wait=False, cancel_futures=True)

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.wait(TICK_S):
            try:
                self._tick()
            except Exception:
                log.exception("supervisor: a tick failed")

    def _tick(self) -> None:
        self._hear()
        while not self._events.empty():
            self._events.get()()
        for instruction in self._watch.decide(time.monotonic()):
            if isinstance(instruction, Ping):
                handle = self._handles[instruction.stage]
                asked = self._asked.setdefault(instruction.stage, [])
                asked.append((instruction.incarnation, handle.start("pulse")))
            elif isinstance(instruction, Fell):
                ago_s = time.monotonic() - instruction.well_at
                self._crew.fell(instruction.stage, instruction.incarnation, ago_s)
            elif isinstance(instruction, Restart):
                log.warning("stage %s: %s; starting it anew", instruction.stage, instruction.reason)
                self._asked.pop(instruction.stage, None)
                recovery = Recovery(instruction.stage, instruction.reason, instruction.planned, instruction.noticed_at)
                self._under_way.setdefault(instruction.stage, recovery)
                self._hands.submit(self._restart, instruction)
            elif isinstance(instruction, Rewire):
                self._hands.submit(self._rewire, instruction)
            else:
                self._give_up(instruction)
        for stage in [stage for stage in self._under_way if self._watch.whole(stage)]:
            with self._changed:
                self._recoveries.append(replace(self._under_way.pop(stage), up_at=time.monotonic()))
                self._changed.notify_all()

    def _hear(self) -> None:
        """Take the pulses that have come."""
        for stage, asked in self._asked.items():
            still: list[tuple[int, Any]] = []
            for incarnation, reference in asked:
                try:
                    pulse = self._handles[stage].result(reference, 0.0)
                except DeadlineExceeded:
                    still.append((incarnation, reference))
                    continue
                except ChannelError:  # the call was lost, which says nothing of the stage
                    still.append((incarnation, self._handles[stage].start("pulse")))
                    continue
                except CascadeError as error:
                    self._watch.died(stage, incarnation, time.monotonic(), str(error))
                else:
                    self._pulses[stage] = pulse
                    self._watch.answered(stage, incarnation, time.monotonic(), pulse)
                still = []  # what else was asked is answered with it
                break
            asked[:] = still

    def _restart(self, order: Restart) -> None:
        stage, incarnation = order.stage, order.incarnation
        try:
            self._crew.kill(stage, None if order.died else self._pulses.get(stage))
            begun_at = self._crew.start(stage)
            loaded_at = time.monotonic()
            self._crew.resume(stage, incarnation)
        except Exception as error:  # noqa: BLE001  whatever it is, the stage is not there
            log.warning("stage %s was not started: %s", stage, error)
            problem = f"not started: {error}"
            self._events.put(lambda: self._watch.not_started(stage, incarnation, time.monotonic(), problem))
            return

        def up() -> None:
            self._watch.started(stage, incarnation, time.monotonic())
            self._under_way[stage] = replace(self._under_way[stage], begun_at=begun_at, loaded_at=loaded_at)
            if stage == "controller":  # a new one takes all others to be there
                for name, follows in self._watch.fallen().items():
                    self._crew.fell(name, follows, math.inf)
                for name, reason in self.given_up.items():
                    self._hands.submit(self._tell_given_up, GiveUp(name, reason))

        self._events.put(up)

    def _rewire(self, order: Rewire) -> None:
        edge = order.light, order.heavy, order.epoch
        try:
            self._crew.wire(*edge)
        except Exception as error:  # noqa: BLE001  whatever it is, they are not linked
            log.warning("%s and %s were not linked: %s", order.light, order.heavy, error)
            self._events.put(lambda: self._watch.not_wired(*edge, time.monotonic()))
        else:
            self._events.put(lambda: self._watch.wired(*edge, time.monotonic()))

    def _give_up(self, order: GiveUp) -> None:
        log.error("stage %s is given up: %s", order.stage, order.reason)
        self._under_way.pop(order.stage, None)
        with self._changed:
            self._given_up[order.stage] = order.reason
            self._changed.notify_all()
        self._hands.submit(self._tell_given_up, order)

    def _tell_given_up(self, order: GiveUp) -> None:
        try:
            self._crew.give_up(order.stage, order.reason)
        except CascadeError as error:
            log.warning("the controller was not told that %s is given up: %s", order.stage, error)
