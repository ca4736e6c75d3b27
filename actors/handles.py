"""`StageHandle`: how the controller reaches a stage, wherever that runs. `Stages`: the handles of one pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


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
