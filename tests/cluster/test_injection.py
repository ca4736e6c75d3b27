"""Faults are done to stages that are there: what was killed a moment ago and is not missed yet is not killed again."""

from __future__ import annotations

import asyncio
import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from actors.pulse import Pulse
from cascade_runtime.config import load_recipe
from cluster.chaos.injection import Injection
from cluster.chaos.plan import Fault


class Watched:
    """A supervisor that needs a while to see that a stage is gone, and another to start it anew."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pid, self.down, self.killed = 100, set[str](), list[int]()
        monkeypatch.setattr(os, "kill", self._kill)

    def pulses(self) -> dict[str, Pulse]:
        return {"mid": Pulse("here", self.pid)}

    def _kill(self, pid: int, number: int) -> None:
        self.killed.append(pid)
        if number == signal.SIGKILL:
            asyncio.get_running_loop().create_task(self._mend())

    async def _mend(self) -> None:
        await asyncio.sleep(0.2)
        self.down.add("mid")
        await asyncio.sleep(0.2)
        self.pid += 1
        self.down.clear()


def test_each_kill_meets_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    pipeline: Any = SimpleNamespace(supervisor=watched, stages={"mid": None}, recipe=load_recipe("three_level"))
    injection = Injection(pipeline)
    asyncio.run(injection.run([Fault(0.0, "kill", "mid")] * 4, 0.0))
    assert watched.killed == [100, 101, 102, 103]
    assert len(injection.done) == 4 and not injection.skipped
