"""`Commands`: how control calls from other threads reach a stage's loop, which alone may touch its rows."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

from cascade_runtime.errors import CapacityError, DeadlineExceeded, StageDied

_WAITING = 256


class Commands:
    """A bounded queue of actions with their outcomes. `ring` wakes the loop."""

    def __init__(self, stage: str, ring: Callable[[], None]) -> None:
        self._stage, self._ring = stage, ring
        self._queue: queue.Queue[tuple[Callable[[], object], Future[object]]] = queue.Queue(_WAITING)

    def ask(self, action: Callable[[], object], timeout_s: float) -> object:
        """Let the loop do `action` and return what it gives, or raise what it raises.

        On `DeadlineExceeded` the action stays in the queue: a late release is still a release.
        """
        outcome: Future[object] = Future()
        try:
            self._queue.put_nowait((action, outcome))
        except queue.Full:
            raise CapacityError(f"stage {self._stage}: {_WAITING} control calls are waiting") from None
        self._ring()
        try:
            return outcome.result(timeout_s)
        except FutureTimeout:
            raise DeadlineExceeded(f"stage {self._stage}: no answer in {timeout_s} s") from None

    def obey(self) -> bool:
        """Called by the loop: do everything that waits. Returns whether there was anything."""
        obeyed = False
        while True:
            try:
                action, outcome = self._queue.get_nowait()
            except queue.Empty:
                return obeyed
            obeyed = True
            try:
                outcome.set_result(action())
            except Exception as error:  # noqa: BLE001  it belongs to the caller
                outcome.set_exception(error)

    def refuse(self) -> None:
        """Called when the loop has ended: whoever waits is told."""
        while not self._queue.empty():
            _, outcome = self._queue.get_nowait()
            outcome.set_exception(StageDied(self._stage, "-", "the stage was stopped"))
