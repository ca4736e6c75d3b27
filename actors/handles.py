"""`StageHandle`: how the controller reaches a stage, or one replica of it, wherever that runs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Protocol

from cascade_runtime.errors import CallLost, StageDied


class StageHandle(Protocol):
    """A stage somewhere else. `start` begins a call and returns a reference that other calls take as an argument."""

    def start(self, method: str, *args: Any) -> Any:
        """Begin a call."""

    def result(self, reference: Any, timeout_s: float) -> Any:
        """Wait for a call. Raises its error, `DeadlineExceeded`, `StageDied`, or `FeaturesLost` where what it was given
        is lost.
        """


def ask(stage: StageHandle, timeout_s: float, method: str, *args: Any, begun: Any = None) -> Any:
    """What a call gives that may be made more than once: where it was lost on its way, it is made again. begun: the
    reference of its first try, where that was made already. Raises what `result` does.
    """
    end = time.monotonic() + timeout_s
    reference = stage.start(method, *args) if begun is None else begun
    while True:
        try:
            return stage.result(reference, max(0.0, end - time.monotonic()))
        except CallLost:
            if time.monotonic() >= end:
                raise
            reference = stage.start(method, *args)


def ask_any(stages: Iterable[StageHandle], timeout_s: float, method: str) -> Any:
    """What the first of these replicas that is not dead gives."""
    first, *others = stages
    try:
        return ask(first, timeout_s, method)
    except StageDied:
        if not others:
            raise
        return ask_any(others, timeout_s, method)
