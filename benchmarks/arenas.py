"""What an idle pipeline's processes gain, with malloc's arenas as glibc has them and with two (`cluster/arenas.py`).

    python -m benchmarks.arenas [--seconds 90]

An emulated cascade on Ray that is asked for nothing but its pulses, about twice as often as in earnest. Once
with sixteen arenas, as two cores have, once with two; each in a process of its own. A line per half minute: MB of
anonymous memory that each process has gained meanwhile. The last line is JSON: MB after the first half minute.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

from benchmarks.faults.recipe import recipe
from cluster.arenas import VARIABLE
from cluster.chaos.vital_signs import allocated_bytes
from cluster.launch import launch
from cluster.supervision import watch

PERIOD_S = 0.05
TURN_S = 30.0


def main() -> None:
    """Both, or with `--child` one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(_gained(args.seconds)))
        return
    told: dict[str, dict[str, float]] = {}
    for arenas in ("16", "2"):
        print(f"{arenas} arenas", flush=True)
        command = [sys.executable, "-m", "benchmarks.arenas", "--child", "--seconds", str(args.seconds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env={**os.environ, VARIABLE: arenas})
        told[arenas] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps({"benchmark": "arenas", "seconds": args.seconds, "mb": told}))


def _gained(seconds: float) -> dict[str, float]:
    watch.PERIOD_S = PERIOD_S
    with launch(recipe()) as pipeline:
        assert pipeline.supervisor is not None
        time.sleep(5.0)
        pids = {name: pulse.pid for name, pulse in pipeline.supervisor.pulses().items()} | {"driver": os.getpid()}
        first = last = {name: allocated_bytes([pid]) for name, pid in pids.items()}
        for turn in range(max(2, round(seconds / TURN_S))):
            time.sleep(TURN_S)
            now = {name: allocated_bytes([pid]) for name, pid in pids.items()}
            print("  ", {name: round((now[name] - last[name]) / 1e6, 2) for name in pids}, file=sys.stderr, flush=True)
            last, first = now, now if turn == 0 else first
    return {name: round((last[name] - first[name]) / 1e6, 2) for name in pids}


if __name__ == "__main__":
    main()
