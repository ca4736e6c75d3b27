"""What faults and overload cost, and whether an answer shows them.

    python -m benchmarks.faults [--only stages nodes drafters overload soak] [--times 20] [--nodes 10]

On emulated devices, steps of 5, 25 and 100 ms that need no core (benchmarks/recipes/emulated_5_25_100.toml); processes,
links, supervision and Ray are real:

    stages      SIGKILL to each of the five stages, then SIGSTOP to each until it is replaced (and SIGCONT to what is
                left of it after ten seconds), `--times` over, under load; every answer is compared
    nodes       a node of a Ray cluster of four nodes on this machine is removed with all that runs on it, another joins
    drafters    a pipeline whose light or mid is dead for good, beside its target alone, turn about
    overload    a server asked three times as much as it can answer
    soak        half an hour at 70 % of what the pipeline can do, without faults: what of its memory grows

Goals: 0 answers lost, duplicated or changed and 0 errors seen by clients; 95 % of recoveries, without the start of a
process and the loading of its model, within 3 s; without a drafter no more than 3 % slower than the target alone; all
that a flooded server takes is answered, the rest refused within 100 ms with Retry-After; memory grows by less than 5 MB
an hour, and no slot stays taken. One JSON line last; the exit status is 1 where an answer was lost, doubled or changed,
a client saw an error or a slot stayed taken.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.faults.drafters import dead_drafters
from benchmarks.faults.overload import overload
from benchmarks.faults.soak import soak
from benchmarks.faults.survival import nodes, stages
from cluster.arenas import keep_few_arenas

WRONG = {"lost", "duplicated", "changed", "client_visible_errors", "leaked_slots"}
PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "stages": stages,
    "nodes": nodes,
    "drafters": dead_drafters,
    "overload": overload,
    "soak": soak,
}


def main() -> None:
    """Run the parts and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--times", type=int, default=20, help="kills and hangs of each stage")
    parser.add_argument("--every", type=float, default=8.0, help="seconds from one kill or hang to the next, at least")
    parser.add_argument("--nodes", type=int, default=10, help="nodes that are lost")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which no fault is begun any more")
    parser.add_argument("--streams", type=int, default=8, help="who ask all the time")
    parser.add_argument("--rounds", type=int, default=3, help="turn about, of `drafters`")
    parser.add_argument("--seconds", type=float, default=20.0, help="of flood")
    parser.add_argument("--warm", type=int, default=3000, help="requests before `soak`, by the thousand")
    parser.add_argument("--minutes", type=float, default=30.0, help="of `soak`")
    parser.add_argument("--set", action="append", default=[], help="TABLE.KEY=VALUE, for `stages` and `nodes`")
    parser.add_argument("--max-tokens", type=int, default=32)
    args = parser.parse_args()
    keep_few_arenas()
    told: dict[str, Any] = {"cores": os.cpu_count()}
    for part in args.only:
        print(f"{part}", flush=True)
        told[part] = PARTS[part](args)
    print(json.dumps(told))
    sys.exit(1 if any(wrong(told)) else 0)


def wrong(told: Any) -> Iterator[int]:
    """Every count in what was told that has to be 0."""
    for name, value in told.items() if isinstance(told, dict) else ():
        yield from wrong(value)
        if name in WRONG:
            yield value


if __name__ == "__main__":
    main()
