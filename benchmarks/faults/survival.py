"""Faults by the dozen under load, every answer compared with the one that the same request gets without faults.

streams ask one request after the other --> pipeline on Ray <-- one fault after the other, each as soon as its stage
                                                                is whole again, so that none finds it dead already
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.faults.recipe import recipe, rows
from cluster.chaos.injection import Injection
from cluster.chaos.load import Heard, Load, Sent, kinds_of_request
from cluster.chaos.outcome import count_answers, quantile, recoveries_of
from cluster.chaos.plan import Fault
from cluster.chaos.run import chaos_pipeline
from cluster.launch import Pipeline
from cluster.ray_transport import RayTransport

_PLACES = ("stages.light", "stages.mid", "stages.heavy", "encoder", "adapter")
SEED = 1
_PATIENCE_S = 600.0
_SAY_S = 15.0


def stages(args: argparse.Namespace) -> dict[str, Any]:
    """Each is killed, then each hangs, and so on."""
    names = [member for members in recipe(*args.set).members.values() for member in members]
    turns = [(kind, stage) for _ in range(args.times) for kind in ("kill", "hang") for stage in names]
    return _survive([Fault(args.every, *turn) for turn in turns], args)


def nodes(args: argparse.Namespace) -> dict[str, Any]:
    """One after the other, at least twenty seconds apart: a stage that was not up for ten is started anew after a
    pause, which doubles from one time to the next.
    """
    return _survive([Fault(20.0, "node")] * args.nodes, args)


def _survive(faults: Sequence[Fault], args: argparse.Namespace) -> dict[str, Any]:
    kinds = {fault.kind for fault in faults}
    spread = [f"{place}.num_cpus=1" for place in _PLACES]  # else one node would hold all of them
    spread = spread if "node" in kinds else []
    hardy = recipe("supervision.restarts=1000", "deadlines.request_s=900", "deadlines.start_s=900", *spread, *args.set)
    with contextlib.redirect_stdout(sys.stderr), chaos_pipeline(hardy, kinds, SEED, sys.stderr) as started:
        told = asyncio.run(_run(*started, faults, args))
    print(rows(told), flush=True)
    return told


async def _run(
    transport: RayTransport, machines: Any, faults: Sequence[Fault], args: argparse.Namespace
) -> dict[str, Any]:
    pipeline = transport.pipeline
    assert pipeline.supervisor is not None
    load = Load(transport, kinds_of_request(SEED, args.max_tokens), SEED)
    clean = await load.once_each()
    over, injection, began = asyncio.Event(), Injection(pipeline, machines), time.monotonic()
    asking = asyncio.create_task(load.until(over, args.streams))
    saying = asyncio.create_task(_say(injection, pipeline, len(faults), began))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(_one_by_one(injection, faults), args.limit)
    await _whole(pipeline)
    seconds = time.monotonic() - began
    over.set()
    sent = await asking
    saying.cancel()
    told = _told(transport, injection, sent, clean, seconds)
    return told | {"left_out": len(faults) - len(injection.done), "leaked_slots": await taken_slots(pipeline)}


async def _one_by_one(injection: Injection, faults: Sequence[Fault]) -> None:
    """at_s of each is how long after the one before it comes, at least."""
    for fault in faults:
        await injection.run([fault], time.monotonic())


def _told(
    transport: RayTransport, injection: Injection, sent: list[Sent], clean: list[Heard], seconds: float
) -> dict[str, Any]:
    assert transport.pipeline.supervisor is not None
    recoveries = transport.pipeline.supervisor.recoveries
    done = injection.done
    told: dict[str, Any] = {
        "faults": len(done),
        "restarts": len(recoveries),
        "seconds": round(seconds, 1),
        **count_answers(sent, clean),
        "retried": transport.retried,
    }
    for kind in dict.fromkeys(fault.kind for fault, _ in done):
        mine = recoveries_of(done, recoveries, kind)
        whole, without = [all_s for all_s, _ in mine], [rest_s for _, rest_s in mine]
        told |= {
            f"{kind}s": sum(fault.kind == kind for fault, _ in done),
            f"{kind}_recovery_p50_s": round(quantile(without, 0.5), 2),
            f"{kind}_recovery_p95_s": round(quantile(without, 0.95), 2),
            f"{kind}_recovery_with_load_p50_s": round(quantile(whole, 0.5), 2),
            f"{kind}_recovery_with_load_p95_s": round(quantile(whole, 0.95), 2),
        }
    return told


async def _whole(pipeline: Pipeline) -> None:
    assert pipeline.supervisor is not None
    end = time.monotonic() + _PATIENCE_S
    while pipeline.supervisor.down and time.monotonic() < end:
        await asyncio.sleep(0.1)


async def taken_slots(pipeline: Pipeline) -> int:
    """Slots that are taken although nothing runs, once that no longer changes."""
    end = time.monotonic() + 30.0
    while True:
        stats = await asyncio.to_thread(pipeline.stats)
        taken = sum(stats[name]["slots"] - stats[name]["free_slots"] for name in pipeline.recipe.level_members)
        if not taken or time.monotonic() > end:
            return taken
        await asyncio.sleep(0.5)


async def _say(injection: Injection, pipeline: Pipeline, faults: int, began: float) -> None:
    assert pipeline.supervisor is not None
    while True:
        await asyncio.sleep(_SAY_S)
        restarts, given_up = len(pipeline.supervisor.recoveries), pipeline.supervisor.given_up
        line = f"{time.monotonic() - began:4.0f} s: {len(injection.done)} of {faults} faults, {restarts} restarts"
        print(f"{line} {given_up or ''}", file=sys.stderr, flush=True)
