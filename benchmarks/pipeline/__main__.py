"""What does running all stages at once bring, and what does it cost?

    python -m benchmarks.pipeline [--quick] [--only NAME ...] [--rounds N]

Pipelines of Ray actors that differ in one thing, turn about in one run, medians of rounds:

    lockstep    real models, 16 streams: the adaptive pipeline beside the same actors in lock step (one stage at a time,
                the recipe's blocks, 16 questions after the other 16), tokens per second from the first request to the
                last answer; and beside lock step that new rows may join at any round
    one_stream  real models, 1 stream: the adaptive pipeline beside lock step at several block lengths, the best counts
    emulated    devices of 5, 25 and 100 ms a pass (benchmarks/recipes/emulated_5_25_100.toml), 16 streams: how much of
                the time the bottleneck is in a pass, latency hidden, coordination
    measured    the same devices at 1, 4 and 16 streams, and the simulator beside them
    useless     drafters that are no use: random weights (real models), always wrong, ten times slower than the target,
                and dead (emulated, a target of 20 ms), at 1, 4 and 16 streams: the adaptive pipeline beside the same
                target alone
    clips       with --traces DIR: recorded stage times of two models, clips of 2 to 20 s (emulated): one clip after the
                other with the target alone, then pipelined with the target alone, then with drafts
    idle        what all actors of a pipeline that has nothing to do burn, beyond as many bare Ray actors, from /proc

From the stages' own clocks: latency hidden = 1 - (wall - longest busy) / (sum of busy - longest busy). Coordination is
what the busiest stage's loop spends awake outside passes, over its time in passes. All answers of a part are compared:
the benchmark fails where token ids differ. Emulated parts run no model: timed waits, made-up or recorded tokens, all
else real. One JSON line last.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.pipeline.clips import clips
from benchmarks.pipeline.emulated import emulated, measured
from benchmarks.pipeline.idle import idle
from benchmarks.pipeline.real_models import lockstep, one_stream
from benchmarks.pipeline.useless import useless

PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "lockstep": lockstep,
    "one_stream": one_stream,
    "emulated": emulated,
    "measured": measured,
    "useless": useless,
    "clips": clips,
    "idle": idle,
}


def main() -> None:
    """Run the parts and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer questions, rounds and variants")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=0, help="default 5, with --quick 2")
    parser.add_argument("--traces", type=Path, help="a folder with recorded stage times and answers, for `clips`")
    parser.add_argument("--measured", type=Path, help="where `measured` writes its runs")
    parser.add_argument("--recipe", default="three_level")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE")
    args = parser.parse_args()
    args.rounds = args.rounds or (2 if args.quick else 5)
    result: dict[str, Any] = {}
    for name in args.only:
        result |= PARTS[name](args)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
