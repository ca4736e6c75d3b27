"""What a pass costs is read off passes that are like later ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cascade_runtime.decoding import profile as module

STEP_S, CAPTURE_S = 0.004, 3.0


class Machine:
    """A decoder whose first pass of each shape takes seconds, and its clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seen: set[tuple[int, ...]] = set()
        self.language = SimpleNamespace(hidden_size=8, dtype=torch.float32, device=torch.device("cpu"), position_axes=1)
        self.cache = SimpleNamespace(max_len=64)
        self.free_slots, self.passes, self.tokens_fed = 4, 1, 1

    def admit(self, prompt: Any, sampling: Any) -> object:
        self.free_slots -= 1
        return object()

    def release(self, row: object) -> None:
        self.free_slots += 1

    def extend(self, extensions: list[Any]) -> None:
        shape = tuple(len(each.drafts) for each in extensions)
        self.now += STEP_S if shape in self.seen else CAPTURE_S
        self.seen.add(shape)


def test_what_a_first_pass_of_a_shape_takes_is_no_cost_of_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    monkeypatch.setattr(module.time, "perf_counter", lambda: machine.now)
    cost = module.profile(machine)  # type: ignore[arg-type]
    for rows, tokens in ((1, 1), (4, 4), (1, 8)):
        assert cost.seconds(rows, rows * tokens) == pytest.approx(STEP_S, rel=0.1)
    assert (machine.free_slots, machine.passes, machine.tokens_fed) == (4, 0, 0)
