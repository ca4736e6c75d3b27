"""What a pipeline's processes gain, with malloc as glibc has it and as we do (`cluster/arenas.py`).

    python -m benchmarks.arenas [--seconds 90]      idle: sixteen arenas, as two cores have, or two
    python -m benchmarks.arenas --load [800]        so many requests: caches of threads as usual, or none

An emulated cascade on Ray, in a process of its own each time. Idle, it is asked for nothing but its pulses, about twice
as often as in earnest; loaded, sixteen ask it all the time. A line per turn: MB of anonymous memory that each process
has gained meanwhile. The last line is JSON: MB after the first turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.faults.recipe import recipe
from cluster.arenas import NO_CACHES, TUNABLES, VARIABLE, keep_few_arenas
from cluster.chaos.load import Load, kinds_of_request
from cluster.chaos.vital_signs import allocated_bytes
from cluster.launch import Pipeline, launch
from cluster.ray_transport import RayTransport
from cluster.supervision import watch

PERIOD_S = 0.05
TURN_S = 30.0
TURN_REQUESTS = 200
STREAMS, MAX_TOKENS, SEED = 16, 32, 1
USUAL_CACHES = NO_CACHES.replace("=0", "=7")


def main() -> None:
    """Both, or with `--child` one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--load", type=int, nargs="?", const=800, default=0, metavar="REQUESTS")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(_loaded(args.load) if args.load else _idle(args.seconds)))
        return
    ways = {"usual caches": {TUNABLES: USUAL_CACHES}, "no caches": {TUNABLES: NO_CACHES}}
    if not args.load:
        ways = {"16 arenas": {VARIABLE: "16"}, "2 arenas": {VARIABLE: "2"}}
    told: dict[str, dict[str, float]] = {}
    for way, environment in ways.items():
        print(way, flush=True)
        command = [sys.executable, "-m", "benchmarks.arenas", "--child", "--seconds", str(args.seconds)]
        command += ["--load", str(args.load)] if args.load else []
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env={**os.environ, **environment})
        told[way] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps({"benchmark": "arenas", "seconds": args.seconds, "requests": args.load, "mb": told}))


def _idle(seconds: float) -> dict[str, float]:
    watch.PERIOD_S = PERIOD_S
    with launch(recipe()) as pipeline:
        return _gained(pipeline, max(2, round(seconds / TURN_S)), lambda: time.sleep(TURN_S))


def _loaded(requests: int) -> dict[str, float]:
    keep_few_arenas()
    transport = RayTransport(recipe())
    load = Load(transport, kinds_of_request(SEED, MAX_TOKENS), SEED)
    with asyncio.Runner() as runner:

        def turn() -> None:
            runner.run(load.many(TURN_REQUESTS, STREAMS))

        try:
            return _gained(transport.pipeline, max(2, requests // TURN_REQUESTS), turn)
        finally:
            runner.run(transport.close())


def _gained(pipeline: Pipeline, turns: int, turn: Callable[[], None]) -> dict[str, float]:
    assert pipeline.supervisor is not None
    time.sleep(5.0)  # until every process has told who it is
    pids = {name: pulse.pid for name, pulse in pipeline.supervisor.pulses().items()} | {"driver": os.getpid()}
    first = last = {name: allocated_bytes([pid]) for name, pid in pids.items()}
    for number in range(turns):
        turn()
        now = {name: allocated_bytes([pid]) for name, pid in pids.items()}
        print("  ", {name: round((now[name] - last[name]) / 1e6, 2) for name in pids}, file=sys.stderr, flush=True)
        last, first = now, now if number == 0 else first
    return {name: round((last[name] - first[name]) / 1e6, 2) for name in pids}


if __name__ == "__main__":
    main()
