"""`Injection`: faults done to a running pipeline, each noted with its time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Sequence
from typing import Any

from cluster.chaos.plan import Fault
from cluster.launch import Pipeline

log = logging.getLogger(__name__)

_READY_S = 300.0  # how long a fault waits for a stage that is still being restarted


class Injection:
    """On one pipeline; `machines` are the nodes that may be removed, where there are any.

    done: (fault, when it was done on the monotonic clock). skipped: what found its stage not up in time.
    """

    def __init__(self, pipeline: Pipeline, machines: Any = None) -> None:
        self._pipeline, self._machines = pipeline, machines
        self.done: list[tuple[Fault, float]] = []
        self.skipped: list[Fault] = []
        self._hurt: dict[str, int] = {}  # stage -> the process that was last killed or stopped there
        self._waking: set[asyncio.Task[None]] = set()

    async def run(self, faults: Sequence[Fault], began: float) -> None:
        """Do each at its time. A stage that is still being restarted is waited for: it cannot be killed while dead."""
        for fault in faults:
            await asyncio.sleep(max(0.0, began + fault.at_s - time.monotonic()))
            if not await self._up(fault):
                self.skipped.append(fault)
                continue
            log.info("fault: %s %s", fault.kind, fault.stage)
            self.done.append((fault, time.monotonic()))
            if fault.kind == "node":
                await asyncio.to_thread(self._lose_node)
            else:
                self._signal(fault)

    def _lose_node(self) -> None:
        present = self._pipeline.reserved.present()
        self._machines.replace_one({present.node(stage).node_id for stage in self._pipeline.stages})

    def _signal(self, fault: Fault) -> None:
        supervisor = self._pipeline.supervisor
        assert supervisor is not None
        pid = supervisor.pulses()[fault.stage].pid
        stops = fault.kind in ("hang", "pause")
        if fault.kind != "pause":
            self._hurt[fault.stage] = pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP if stops else signal.SIGKILL)
        if stops:
            silent_s = self._pipeline.recipe.supervision.silent_s
            after_s = 0.5 * silent_s if fault.kind == "pause" else 5 * silent_s
            task = asyncio.create_task(_wake(pid, after_s))
            self._waking.add(task)
            task.add_done_callback(self._waking.discard)

    async def _up(self, fault: Fault) -> bool:
        supervisor = self._pipeline.supervisor
        assert supervisor is not None
        end = time.monotonic() + _READY_S
        wanted = {fault.stage} if fault.stage else {*self._pipeline.stages, "controller"}
        while not (up := self._are_up(wanted)) and time.monotonic() < end:
            await asyncio.sleep(0.05)
        return up

    def _are_up(self, wanted: set[str]) -> bool:
        """And not only because nobody has noticed yet what befell them."""
        supervisor = self._pipeline.supervisor
        assert supervisor is not None
        pulses = supervisor.pulses()
        return not wanted & supervisor.down and all(
            stage in pulses and pulses[stage].pid != self._hurt.get(stage) for stage in wanted
        )


async def _wake(pid: int, after_s: float) -> None:
    """What was stopped goes on, if it is still there."""
    await asyncio.sleep(after_s)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
