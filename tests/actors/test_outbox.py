"""Who waits for an answer is woken by what it waits for, and by nothing else."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from actors.target import NOTHING, Target, _Outbox


class Counted(threading.Condition):
    """Counts how often it wakes anybody."""

    woken = 0

    def notify_all(self) -> None:
        """Wake them, and count."""
        self.woken += 1
        super().notify_all()


@pytest.mark.parametrize(
    ("wanted", "tokens", "reason", "problem", "woken"),
    [
        ([], 5, None, None, 0),
        ([64], 5, None, None, 0),
        ([64, 4], 5, None, None, 1),
        ([5], 5, None, None, 0),
        ([64], 5, "stop", None, 1),
        ([64], 5, None, "it broke", 1),
    ],
)
def test_a_waiter_is_woken_for_tokens_beyond_those_it_knows_and_for_the_end(
    wanted: list[int], tokens: int, reason: str | None, problem: str | None, woken: int
) -> None:
    stopper: Any = None
    outbox = _Outbox(stopper, NOTHING, Counted(), wanted)
    progress = replace(NOTHING, tokens=tuple(range(tokens)), finish_reason=reason, problem=problem)
    target: Any = SimpleNamespace(_stopping=threading.Event())
    Target._show(target, outbox, progress)
    assert outbox.changed.woken == woken  # type: ignore[attr-defined]
    assert outbox.progress is progress


def test_who_has_waited_in_vain_is_forgotten() -> None:
    stopper: Any = None
    outbox = _Outbox(stopper, NOTHING)
    policy = SimpleNamespace(decision=SimpleNamespace(speculate=True))
    target: Any = SimpleNamespace(_outboxes={1: outbox}, scheduler=SimpleNamespace(policy=policy), name="heavy")
    target._stopping = threading.Event()
    assert Target.take(target, 1, 64, 0.001).tokens == ()
    assert outbox.wanted == []
