"""Each of the five stages and the controller killed and stopped under load on one GPU, every answer compared."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks.faults.survival import taken_slots
from benchmarks.gpu.answers import say
from benchmarks.gpu.one_device import on_device, used_gb
from cluster.chaos.injection import Injection
from cluster.chaos.load import Load, kinds_of_request
from cluster.chaos.outcome import count_answers
from cluster.chaos.plan import Fault
from cluster.chaos.run import chaos_pipeline
from cluster.launch import Pipeline
from cluster.ray_transport import RayTransport
from cluster.supervision.supervisor import Recovery

_SEED = 1
_WHOLE_S = 120.0
_SETTLE_S = 2.0
_SAMPLE_S = 0.02
_DROP_GB = 0.1  # less than any process that uses a GPU holds


@dataclass
class Memory:
    """Used memory of the GPU over time: (monotonic seconds, GB)."""

    samples: list[tuple[float, float]] = field(default_factory=list)

    async def watch(self) -> None:
        """Until it is cancelled."""
        while True:
            self.samples.append((time.monotonic(), used_gb()))
            await asyncio.sleep(_SAMPLE_S)

    def back_after_s(self, since: float, before: float) -> float | None:
        """Until it had fallen below what was held before, by a process's least; None where it has not."""
        return next((at - since for at, gb in self.samples if at >= since and gb < before - _DROP_GB), None)

    def most(self, since: float) -> float:
        """The most since then."""
        return max((gb for at, gb in self.samples if at >= since), default=0.0)


def faults(args: argparse.Namespace, told: dict[str, Any]) -> None:
    """SIGKILL to each, then SIGSTOP to each until it is replaced, one after the other, each once all are whole."""
    recipe = on_device("light_heavy" if args.toy else "three_level", args.device, "float32")
    with chaos_pipeline(recipe, (), _SEED, sys.stdout) as (transport, _):
        asyncio.run(_run(transport, args, told))


async def _run(transport: RayTransport, args: argparse.Namespace, told: dict[str, Any]) -> None:
    pipeline = transport.pipeline
    load = Load(transport, kinds_of_request(_SEED, args.max_tokens), _SEED)
    clean = await load.once_each()
    over = asyncio.Event()
    asking = asyncio.create_task(load.until(over, args.streams))
    await asyncio.sleep(_SETTLE_S)
    names = (*pipeline.stages, "controller")
    turns = [(kind, name) for _ in range(args.times) for kind in args.kinds for name in names]
    before, told["each"] = used_gb(), list[dict[str, Any]]()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(args.end - time.perf_counter()):
            for kind, name in turns:
                told["each"].append(await one_fault(pipeline, Fault(0.0, kind, name)))
    await asyncio.sleep(_SETTLE_S)
    over.set()
    sent = await asking
    assert pipeline.supervisor is not None
    reasons = [f"{each.stage}: {each.reason}" for each in pipeline.supervisor.recoveries]
    told |= {
        **count_answers(sent, clean),
        "retried": transport.retried,
        "faults": len(told["each"]),
        "restarts": len(reasons),
        "leaked_slots": await taken_slots(pipeline),
        "gb_before": round(before, 2),
        "gb_after": round(used_gb(), 2),
    }
    for name, value in told.items():
        if name != "each":
            say(f"  {name:<24}{value}")
    if len(reasons) != len(told["each"]):
        say(f"  restarts: {reasons}")


async def one_fault(pipeline: Pipeline, fault: Fault) -> dict[str, Any]:
    """One fault, and what it took until all stages were whole; the GPU's memory meanwhile."""
    assert pipeline.supervisor is not None
    memory = Memory()
    watching = asyncio.create_task(memory.watch())
    injection, seen = Injection(pipeline), len(pipeline.supervisor.recoveries)
    held, at = used_gb(), time.monotonic()
    await injection.run([fault], at)
    at = injection.done[0][1] if injection.done else at
    recovery = await _recovered(pipeline, fault.stage, seen)
    told: dict[str, Any] = {"fault": f"{fault.kind} {fault.stage}"}
    if recovery is not None:
        whole_s, loading_s = recovery.up_at - at, recovery.loaded_at - recovery.begun_at
        told |= {"whole_s": round(whole_s, 2), "without_loading_s": round(whole_s - loading_s, 2)}
        told |= {"noticed_s": round(recovery.noticed_at - at, 2)}
    await asyncio.sleep(_SETTLE_S)
    watching.cancel()
    back_s = memory.back_after_s(at, held)
    told |= {"memory_back_s": back_s and round(back_s, 2), "gb_before": round(held, 2)}
    told |= {"gb_most": round(memory.most(at), 2), "gb_after": round(used_gb(), 2)}
    say("  " + ", ".join(f"{name} {value}" for name, value in told.items()))
    return told


async def _recovered(pipeline: Pipeline, stage: str, seen: int) -> Recovery | None:
    """The next recovery of a stage, once nothing is down any more."""
    assert pipeline.supervisor is not None
    end = time.monotonic() + _WHOLE_S
    while time.monotonic() < end:
        found = [each for each in pipeline.supervisor.recoveries[seen:] if each.stage == stage]
        if found and not pipeline.supervisor.down:
            return found[0]
        await asyncio.sleep(0.05)
    say(f"  {stage} is not whole after {_WHOLE_S:.0f} s; down: {pipeline.supervisor.down}")
    return None
