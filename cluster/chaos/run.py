"""`run_chaos`: clean answers, capacity, load without faults, load with faults, what is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TextIO

from cascade_runtime.config import ChannelConfig, Recipe
from cascade_runtime.errors import ConfigError
from cluster.chaos.injection import Injection
from cluster.chaos.load import Heard, Load, Sent, kinds_of_request
from cluster.chaos.outcome import Outcome, count_answers, longest_gap_s, quantile, recoveries_of
from cluster.chaos.plan import draw_faults
from cluster.chaos.vital_signs import allocated_bytes, open_descriptors, slope_per_hour, stored_objects
from cluster.ray_transport import RayTransport

_NODES = 3
_SAMPLE_S = 2.0
_SETTLE_S = 30.0  # what is released at the end may take so long to be counted
_REPORT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class ChaosConfig:
    """seed: of load and faults. load: share of the measured capacity. every_s: mean time between faults. kinds: of
    `plan.KINDS`. probe_s: how long capacity is measured, and how long there is load without faults.
    """

    seed: int = 0
    minutes: float = 2.0
    load: float = 0.7
    every_s: float = 10.0
    kinds: Sequence[str] = ("kill", "hang", "pause", "controller")
    probe_s: float = 15.0
    max_tokens: int = 48

    def __post_init__(self) -> None:
        for name, low, high in (("minutes", 0.1, 1440.0), ("load", 0.01, 10.0), ("every_s", 0.5, 3600.0)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(name, value, f"{low} to {high}")
        if 60 * self.minutes < 2 * self.every_s:
            raise ConfigError("minutes", self.minutes, f"time for one fault at least, {2 * self.every_s / 60:g}")


def run_chaos(recipe: Recipe, config: ChaosConfig, out: TextIO, progress: TextIO) -> int:
    """Run it on a Ray of its own and print the outcome. Returns 0 where nobody noticed anything but time, else 1.

    What Ray prints of the processes that die is progress too: the outcome alone is on `out`.
    """
    if not recipe.supervision.restarts:
        raise ConfigError("supervision.restarts", 0, "1 or more: what is killed here is to be restarted")
    draw_faults(
        config.seed, 60 * config.minutes, ("stage",), config.kinds, config.every_s
    )  # before anything is started
    with contextlib.redirect_stdout(progress), chaos_pipeline(recipe, config.kinds, config.seed, progress) as started:
        transport, machines = started
        outcome = asyncio.run(_Run(recipe, config, transport, machines, progress).outcome())
    print(outcome.text(), file=out)
    print(json.dumps(outcome.to_dict()), file=out)
    return 0 if outcome.passed else 1


@contextlib.contextmanager
def chaos_pipeline(
    recipe: Recipe, kinds: Collection[str], seed: int, progress: TextIO
) -> Generator[tuple[RayTransport, Any]]:
    """A pipeline on a Ray of its own, and the nodes that may be removed where `kinds` of faults want some."""
    machines: Any = None
    if "node" in kinds:
        from cluster.chaos.machines import Machines

        machines = Machines(recipe, _NODES, seed)
        recipe = replace(recipe, channels=ChannelConfig(backend="stream"))  # stages may meet on any two nodes
    try:
        transport = RayTransport(recipe, report=lambda line: print(line, file=progress, flush=True))
        try:
            yield transport, machines
        finally:
            transport.pipeline.close()
    finally:
        if machines is not None:
            machines.close()


class _Run:
    def __init__(
        self, recipe: Recipe, config: ChaosConfig, transport: RayTransport, machines: Any, progress: TextIO
    ) -> None:
        self._recipe, self._config, self._transport = recipe, config, transport
        self._pipeline, self._progress = transport.pipeline, progress
        self._injection = Injection(self._pipeline, machines)
        self._memory: list[tuple[float, float]] = []
        self._load = Load(transport, kinds_of_request(config.seed, config.max_tokens), config.seed)

    async def outcome(self) -> Outcome:
        config, seconds = self._config, 60 * self._config.minutes
        clean = await self._load.once_each()
        self._say(f"{len(clean)} clean answers of {sum(len(each.token_ids) for each in clean)} tokens")
        capacity = await self._load.capacity(self._recipe.cascade.slots, config.probe_s)
        rate = config.load * capacity
        self._say(f"capacity {capacity:.2f} answers/s; from now on {rate:.2f}/s")
        calm, sent = list[Sent](), list[Sent]()
        await self._load.steady(rate, config.probe_s, calm.append)
        self._say(f"{len(calm)} requests without faults")
        objects, descriptors = await asyncio.to_thread(stored_objects), open_descriptors()
        faults = draw_faults(config.seed, seconds, tuple(self._pipeline.stages), config.kinds, config.every_s)
        began = time.monotonic()
        watching = asyncio.create_task(self._watch(began, seconds))
        injecting = asyncio.create_task(self._injection.run(faults, began))
        await self._load.steady(rate, seconds, sent.append)
        await injecting
        await self._whole()
        watching.cancel()
        left = await self._left(objects, descriptors)
        return self._told(capacity, rate, clean, calm, sent, left)

    def _told(
        self,
        capacity: float,
        rate: float,
        clean: list[Heard],
        calm: list[Sent],
        sent: list[Sent],
        left: dict[str, Any],
    ) -> Outcome:
        supervisor, done = self._pipeline.supervisor, self._injection.done
        assert supervisor is not None
        recovered = recoveries_of(done, supervisor.recoveries)
        whole, without = [all_s for all_s, _ in recovered], [rest_s for _, rest_s in recovered]
        counted: dict[str, Any] = count_answers(sent, clean)
        return Outcome(
            recipe=self._recipe.name,
            seed=self._config.seed,
            minutes=self._config.minutes,
            capacity_per_s=round(capacity, 3),
            rate_per_s=round(rate, 3),
            **counted,
            retried=self._transport.retried,
            faults=len(done),
            faults_by_kind=dict(
                Counter(" ".join(dict.fromkeys((fault.kind, fault.stage))).strip() for fault, _ in done)
            ),
            faults_skipped=len(self._injection.skipped),
            restarts=len(supervisor.recoveries),
            recovery_p50_s=round(quantile(without, 0.5), 3),
            recovery_p95_s=round(quantile(without, 0.95), 3),
            recovery_with_load_p50_s=round(quantile(whole, 0.5), 3),
            recovery_with_load_p95_s=round(quantile(whole, 0.95), 3),
            longest_gap_s=round(longest_gap_s(sent), 3),
            clean_longest_gap_s=round(longest_gap_s(calm), 3),
            ttft_p99_ms=round(quantile(_ttft_ms(sent), 0.99), 1),
            clean_ttft_p99_ms=round(quantile(_ttft_ms(calm), 0.99), 1),
            memory_slope_mb_per_h=round(slope_per_hour(self._memory) / 1e6, 1),
            **left,
        )

    async def _watch(self, began: float, seconds: float) -> None:
        """Sample the memory of all processes, and say how it goes."""
        supervisor = self._pipeline.supervisor
        assert supervisor is not None
        said = began
        while True:
            await asyncio.sleep(_SAMPLE_S)
            now = time.monotonic()
            if not supervisor.down:  # else a process is missing from the sum
                pids = {pulse.pid for pulse in supervisor.pulses().values()} | {os.getpid()}
                self._memory.append((now - began, allocated_bytes(pids)))
            if now - said >= _REPORT_S:
                said = now
                done, restarts = len(self._injection.done), len(supervisor.recoveries)
                self._say(f"{now - began:4.0f} of {seconds:.0f} s: {done} faults, {restarts} restarts")

    async def _whole(self) -> None:
        supervisor = self._pipeline.supervisor
        assert supervisor is not None
        end = time.monotonic() + self._recipe.deadlines.start_s
        while supervisor.down and time.monotonic() < end:
            await asyncio.sleep(0.1)

    async def _left(self, objects: int, descriptors: int) -> dict[str, Any]:
        """What is still held when nothing runs any more, once it no longer falls."""
        end, levels = time.monotonic() + _SETTLE_S, self._recipe.level_members
        while True:
            stats = await asyncio.to_thread(self._pipeline.stats)
            slots = sum(stats[name].get("slots", 0) - stats[name].get("free_slots", 0) for name in levels)
            refs = await asyncio.to_thread(stored_objects) - objects
            fds = max(0, open_descriptors() - descriptors)
            if (not slots and refs <= 0 and not fds) or time.monotonic() > end:
                return {"leaked_slots": slots, "leaked_refs": max(0, refs), "leaked_fds": fds}
            await asyncio.sleep(0.5)

    def _say(self, line: str) -> None:
        print(line, file=self._progress, flush=True)


def _ttft_ms(sent: Sequence[Sent]) -> list[float]:
    """From the sending to the first token, by the client's clock as far as it can tell."""
    return [
        1000 * (each.ended - each.at) - each.answer.total_ms + each.answer.ttft_ms
        for each in sent
        if each.answer is not None
    ]
