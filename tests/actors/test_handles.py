"""A call that may be made twice is, where it was lost; what is wrong otherwise is told at once."""

from __future__ import annotations

from typing import Any

import pytest

from actors.handles import ask
from cascade_runtime.errors import CallLost, StageDied


class Lossy:
    """The first calls end like this."""

    def __init__(self, *ends: Exception) -> None:
        self._ends, self.calls = list(ends), 0

    def start(self, method: str, *args: Any) -> str:
        self.calls += 1
        return method

    def result(self, reference: str, timeout_s: float) -> str:
        if self._ends:
            raise self._ends.pop(0)
        return f"{reference} of call {self.calls}"


def test_a_lost_call_is_made_again_and_a_death_is_told() -> None:
    assert ask(Lossy(CallLost("lost"), CallLost("lost")), 30.0, "info") == "info of call 3"
    dead = Lossy(StageDied("adapter", "-", "gone"))
    with pytest.raises(StageDied):
        ask(dead, 30.0, "info")
    assert dead.calls == 1
    with pytest.raises(CallLost):
        ask(Lossy(CallLost("lost")), 0.0, "info")
