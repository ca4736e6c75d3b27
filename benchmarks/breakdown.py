"""Where does the time of a question go? For the target alone and for light -> heavy, one question at a time, greedy.

    python -m benchmarks.breakdown [--questions N] [--drafts N] [--set TABLE.KEY=VALUE ...]

Every pass of every level is timed and put down as prefill (it feeds a prompt) or as a step (it does not). A second run
under PyTorch's profiler says what a pass consists of: products, attention, other operations, and the rest, which is
Python and PyTorch's dispatch; its shares are applied to the times of the first run. One thread. One JSON line last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.rivals.ours import Ours
from benchmarks.rivals.prompts import Task, prepare
from cascade_runtime.config import SamplingParams, load_recipe
from cascade_runtime.engine import Engine

PRODUCTS = ("linear", "addmm", "aten::mm", "matmul", "bmm")
ATTENTION = ("scaled_dot_product", "flash_attention", "softmax")
GREEDY = SamplingParams(max_tokens=96)


class Watch:
    """Times a decoder's passes by kind."""

    def __init__(self, name: str, decoder: Any) -> None:
        self.name, self.ms = name, defaultdict[str, list[float]](list)
        inner = decoder._logits

        def watched(plans: Sequence[Any], groups: Sequence[int]) -> torch.Tensor:
            kind = "prefill" if any(plan.prompt_count for plan in plans) else "step"
            start = time.perf_counter()
            with torch.profiler.record_function(f"pass:{name}:{kind}"):
                found = inner(plans, groups)
            self.ms[kind].append(1000 * (time.perf_counter() - start))
            return found

        decoder._logits = watched


def shares(seen: Any) -> dict[str, dict[str, float]]:
    """Of each kind of pass: the share of its time in products, attention, other operations and between them."""
    spent: dict[str, dict[str, float]] = {}
    for event in seen.events():
        if not event.name.startswith("pass:"):
            continue
        kinds = spent.setdefault(event.name.removeprefix("pass:"), defaultdict(float))
        kinds["all"] += event.cpu_time_total
        kinds["between"] += event.self_cpu_time_total
        waiting = list(event.cpu_children)
        while waiting:
            each = waiting.pop()
            waiting += each.cpu_children
            name = each.name.lower()
            kind = "products" if any(part in name for part in PRODUCTS) else "other operations"
            kinds["attention" if any(part in name for part in ATTENTION) else kind] += each.self_cpu_time_total
    return {
        name: {kind: us / kinds["all"] for kind, us in kinds.items() if kind != "all"} for name, kinds in spent.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--drafts", type=int, default=24)
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine.load(load_recipe("three_level", args.set))
    tasks = prepare(engine, -(-args.questions // 2)).tasks[: args.questions]
    runs = {
        "heavy alone": Ours(engine, ("heavy",), tasks, ()),
        f"light->heavy [{args.drafts}]": Ours(engine, ("light", "heavy"), tasks, (args.drafts,)),
    }
    result: dict[str, Any] = {}
    watches = {level.name: Watch(level.name, level.decoder) for level in engine.levels}
    for title, run in runs.items():
        result[title] = _one(title, run, tasks, watches)
    print(json.dumps(result))


def _one(title: str, run: Ours, tasks: Sequence[Task], watches: dict[str, Watch]) -> dict[str, Any]:
    run(tasks[:1], GREEDY)
    for watch in watches.values():
        watch.ms.clear()
    seconds, tokens = 0.0, 0
    for task in tasks:
        took, said = run([task], GREEDY)
        seconds, tokens = seconds + took, tokens + len(said[0])
    times = {f"{name}:{kind}": list(ms) for name, watch in watches.items() for kind, ms in watch.ms.items()}
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run(tasks[:2], GREEDY)
    parts = shares(seen)
    whole = 1000 * seconds
    print(f"\n{title}: {len(tasks)} questions, {tokens} tokens, {tokens / seconds:.0f} tokens/s")
    told: dict[str, Any] = {"tokens_per_s": round(tokens / seconds, 1)}
    for name, ms in times.items():
        inside = {kind: round(share, 2) for kind, share in sorted(parts.get(name, {}).items(), key=lambda x: -x[1])}
        print(
            f"  {name:<16}{len(ms):>5} passes of {statistics.median(ms):>7.2f} ms{sum(ms) / whole:>7.0%} of the time   "
            + ", ".join(f"{kind} {share:.0%}" for kind, share in inside.items())
        )
        told[name] = {
            "passes": len(ms),
            "ms": round(statistics.median(ms), 3),
            "share": round(sum(ms) / whole, 3),
        } | inside
    rest = 1 - sum(sum(ms) for ms in times.values()) / whole
    print(f"  outside passes (choices, bookkeeping){rest:>10.0%}", flush=True)
    return told | {"outside": round(rest, 3)}


if __name__ == "__main__":
    main()
