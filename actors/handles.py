"""`StageHandle`: how the controller reaches a stage, wherever that runs. `Stages`: the handles of one pipeline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cascade_runtime.errors import CallLost


class StageHandle(Protocol):
    """A stage somewhere else. `start` begins a call and returns a reference that other calls take as an argument."""

    def start(self, method: str, *args: Any) -> Any:
        """Begin a call."""

    def result(self, reference: Any, timeout_s: float) -> Any:
        """Wait for a call. Raises its error, `DeadlineExceeded`, `StageDied`, or `FeaturesLost` where what it was given
        is lost.
        """


@dataclass(frozen=True)
class Stages:
    """The five kinds of stages: encoder, adapter, and the language stages from light to target."""

    encoder: StageHandle
    adapter: StageHandle
    drafters: Sequence[StageHandle]
    target: StageHandle

    def named(self, levels: Sequence[str]) -> dict[str, StageHandle]:
        """By name."""
        names = ("encoder", "adapter", *levels)
        return dict(zip(names, (self.encoder, self.adapter, *self.drafters, self.target), strict=True))

    @staticmethod
    def of(named: dict[str, StageHandle]) -> Stages:
        """From handles by name, lightest level first."""
        encoder, adapter, *drafters, target = named.values()
        return Stages(encoder, adapter, drafters, target)


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
