"""Load for half an hour, no fault: what grows?

Before it, thousands of the same requests as fast as they are answered (`--warm`): memories that are bounded fill, and
malloc's and Python's heaps settle, by requests and not by minutes. What each thousand of them took is told.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from array import array
from typing import Any

from benchmarks.faults.recipe import recipe, rows
from benchmarks.faults.survival import SEED, taken_slots
from cluster.chaos.load import Load, kinds_of_request
from cluster.chaos.outcome import Tally
from cluster.chaos.run import chaos_pipeline
from cluster.chaos.vital_signs import allocated_bytes, open_descriptors, slope_per_hour
from cluster.ray_transport import RayTransport

_LOAD = 0.7
_PROBE_S = 20.0
_SAMPLE_S = 5.0
_WARM = 0.5  # of the time, in which bounded memories fill: not looked at


def soak(args: argparse.Namespace) -> dict[str, Any]:
    """Memory of all processes at 70 % of what the pipeline can do: the slope of each, least squares."""
    with contextlib.redirect_stdout(sys.stderr), chaos_pipeline(recipe(), (), SEED, sys.stderr) as (transport, _):
        told = asyncio.run(_run(transport, args))
    print(rows(told), flush=True)
    return told


async def _run(transport: RayTransport, args: argparse.Namespace) -> dict[str, Any]:
    pipeline = transport.pipeline
    assert pipeline.supervisor is not None
    load = Load(transport, kinds_of_request(SEED, args.max_tokens), SEED)
    clean = await load.once_each()
    pids = {name: pulse.pid for name, pulse in pipeline.supervisor.pulses().items()} | {"client": os.getpid()}
    slots, took = pipeline.recipe.cascade.slots, list[float]()
    for _ in range(args.warm // 1000):
        before = allocated_bytes(pids.values())
        if (answered := await load.many(1000, slots)) < 1000:
            raise SystemExit(f"warming: {answered} of 1000 requests were answered")
        took.append(round((allocated_bytes(pids.values()) - before) / 1e6, 1))
        print(f"warming: {1000 * len(took)} of {args.warm}, {took[-1]:+.1f} MB", flush=True)
    print(f"capacity over {_PROBE_S:.0f} s, then {args.minutes:g} minutes", flush=True)
    rate = _LOAD * await load.capacity(slots, _PROBE_S)
    descriptors = open_descriptors()
    samples = {name: (array("d"), array("d")) for name in pids}  # seconds, bytes
    watching = asyncio.create_task(_watch(pids, samples))
    seconds = 60 * args.minutes
    began = time.monotonic()
    tally = Tally(clean)
    await load.steady(rate, seconds, tally.add)  # no list of thousands of requests: it would be what grows
    watching.cancel()
    warm = began + _WARM * seconds
    slopes = {
        name: round(slope_per_hour([each for each in zip(*seen, strict=True) if each[0] >= warm]) / 1e6, 2)
        for name, seen in samples.items()
    }
    return {
        "mb_per_1000_before": took,
        "minutes": args.minutes,
        "rate_per_s": round(rate, 2),
        **tally.told(),
        "restarts": len(pipeline.supervisor.recoveries),
        "slope_mb_per_h": round(sum(slopes.values()), 2),
        "slopes_mb_per_h": slopes,
        "leaked_slots": await taken_slots(pipeline),
        "leaked_fds": max(0, open_descriptors() - descriptors),
    }


async def _watch(pids: dict[str, int], samples: dict[str, tuple[array[float], array[float]]]) -> None:
    while True:
        now = time.monotonic()
        for name, pid in pids.items():
            samples[name][0].append(now)
            samples[name][1].append(allocated_bytes([pid]))
        await asyncio.sleep(_SAMPLE_S)
