"""What does running all stages at once bring, and what does it cost?

    python -m benchmarks.pipeline [--quick] [--only NAME ...] [--rounds N]

Pipelines of Ray actors that differ in one thing, turn about in one run, medians of rounds:

    lockstep    real models, 16 streams: the adaptive pipeline beside the same actors in lock step (one stage at a time,
                the recipe's blocks), tokens per second from the first request to the last answer
    one_stream  real models, 1 stream: the adaptive pipeline beside lock step at every block length tried, the best counts
    idle        cores burnt by all actors of a pipeline that has nothing to do, from /proc
    useless     a drafter of random weights: the adaptive pipeline beside the target alone

From the stages' own clocks: latency hidden = 1 - (wall - longest busy) / (sum of busy - longest busy). Coordination is
what a stage's loop spends awake outside passes, over its time in passes. Every answer of every pipeline is compared with
the target's own: the benchmark fails where token ids differ. One JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import PolicyConfig, Recipe, SamplingParams, load_recipe
from cascade_runtime.events import Events
from cluster.launch import Pipeline, launch

QUESTIONS = (
    "What are the key elements in this scene?",
    "What is happening in this recording?",
    "Describe the motion.",
    "Which way is it moving?",
)
FIRST_SCENE = 6_000_000  # far from the seeds of training
BLOCKS = (2, 4, 8, 12, 16)


@dataclass
class Run:
    """One workload through one pipeline. busy_s and awake_s per language stage."""

    tokens: int
    wall_s: float
    answers: tuple[tuple[int, ...], ...]
    busy_s: dict[str, float] = field(default_factory=dict)
    awake_s: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.wall_s

    @property
    def hidden(self) -> float:
        """Share of what could overlap that did."""
        total, longest = sum(self.busy_s.values()), max(self.busy_s.values())
        return 1 - (self.wall_s - longest) / (total - longest)

    @property
    def coordination(self) -> float:
        """Time the busiest stage's loop is awake outside passes, over its time in passes."""
        name = max(self.busy_s, key=lambda each: self.busy_s[each])
        return (self.awake_s[name] - self.busy_s[name]) / self.busy_s[name]


@contextmanager
def local_ray() -> Iterator[None]:
    """A local Ray whose books have room for several pipelines; threads per stage are the recipe's all the same."""
    import ray

    ray.init(address="local", num_cpus=64, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def requests(count: int, max_tokens: int, *, speculate: bool = True) -> list[GenerateRequest]:
    """Questions about simulated scenes, always the same."""
    from cascade_runtime.training.scenes import simulate_scene

    scenes: list[Events] = [simulate_scene(FIRST_SCENE + seed).events for seed in range(min(count, 12))]
    sampling = SamplingParams(max_tokens=max_tokens)
    return [
        GenerateRequest(
            events=scenes[i % len(scenes)],
            question=QUESTIONS[(i + i // len(scenes)) % len(QUESTIONS)],
            sampling=sampling,
            speculate=speculate,
        )
        for i in range(count)
    ]


def drive(pipeline: Pipeline, work: Sequence[GenerateRequest], streams: int) -> Run:
    """Each of `streams` clients asks its next question as soon as it has an answer."""
    before = pipeline.stats()

    def ask(request: GenerateRequest) -> Answer:
        fresh = replace(request, request_id=os.urandom(8).hex())
        return pipeline.controller.result(pipeline.controller.start("generate", fresh, None), 600.0)

    start = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        answers = list(pool.map(ask, work))
    wall_s = time.perf_counter() - start
    after = pipeline.stats()
    levels = pipeline.recipe.cascade.levels
    spent = {key: {name: after[name][key] - before[name][key] for name in levels} for key in ("busy_s", "awake_s")}
    tokens = tuple(answer.token_ids for answer in answers)
    return Run(sum(map(len, tokens)), wall_s, tokens, **spent)


def turn_about(contestants: dict[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    """One run each to warm up, then `rounds` of each in turn. Raises `SystemExit` where token ids differ."""
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    said = {run().answers for run in contestants.values()}
    for _ in range(rounds):
        for name, run in contestants.items():
            runs[name].append(run())
            said.add(runs[name][-1].answers)
    if len(said) > 1:
        raise SystemExit(f"ANSWERS DIFFER among {', '.join(contestants)}")
    return runs


def ratio(runs: dict[str, list[Run]], one: str, other: str) -> float:
    """The median over rounds of the ratio of throughputs, each pair measured side by side."""
    return statistics.median(a.tokens_per_s / b.tokens_per_s for a, b in zip(runs[one], runs[other], strict=True))


def with_policy(recipe: Recipe, mode: str, **cascade: Any) -> Recipe:
    """The recipe under another policy; `cascade` replaces fields of its [cascade] table."""
    return replace(recipe, policy=PolicyConfig(mode=mode), cascade=replace(recipe.cascade, **cascade))


def show(name: str, runs: Sequence[Run]) -> None:
    """One row."""

    def median(of: Callable[[Run], float]) -> float:
        return statistics.median(of(run) for run in runs)

    busy = "  ".join(f"{stage} {median(lambda r, s=stage: r.busy_s[s] / r.wall_s):.2f}" for stage in runs[0].busy_s)
    print(
        f"  {name:<34}{median(lambda r: r.tokens_per_s):>8.1f} tokens/s   hidden {median(lambda r: r.hidden):>5.2f}"
        f"   coordination {median(lambda r: r.coordination):.3f}   busy {busy}",
        flush=True,
    )


def lockstep(args: argparse.Namespace) -> dict[str, Any]:
    """Real models, 16 streams."""
    recipe = load_recipe(args.recipe, ["cascade.slots=16", *args.set])
    work = requests(24 if args.quick else 48, args.max_tokens)
    print(f"\nlockstep: {recipe.name}, 16 streams, {len(work)} questions")
    with local_ray(), launch(with_policy(recipe, "adaptive")) as adaptive, launch(with_policy(recipe, "lock_step")) as lock:
        runs = turn_about(
            {"pipelined": lambda: drive(adaptive, work, 16), "lock step": lambda: drive(lock, work, 16)}, args.rounds
        )
        decisions = {name: adaptive.stats()[name]["decision"] for name in recipe.cascade.levels[1:]}
    for name, each in runs.items():
        show(name, each)
    print(f"  decided: {decisions}")
    return {
        "pipelined_vs_lockstep": round(ratio(runs, "pipelined", "lock step"), 3),
        "latency_hidden": round(statistics.median(run.hidden for run in runs["pipelined"]), 3),
    }


def one_stream(args: argparse.Namespace) -> dict[str, Any]:
    """Real models, one stream, lock step at every block length."""
    recipe = load_recipe(args.recipe, args.set)
    work = requests(6 if args.quick else 10, args.max_tokens)
    print(f"\none_stream: {recipe.name}, {len(work)} questions")
    edges = len(recipe.cascade.levels) - 1
    ratios: dict[int, float] = {}
    with local_ray(), launch(with_policy(recipe, "adaptive")) as adaptive:
        for block in (4, 12) if args.quick else BLOCKS:
            with launch(with_policy(recipe, "lock_step", num_draft_tokens=(block,) * edges)) as lock:
                runs = turn_about(
                    {"pipelined": lambda: drive(adaptive, work, 1), f"lock step, {block}": lambda: drive(lock, work, 1)},  # noqa: B023
                    args.rounds,
                )
            for name, each in runs.items():
                show(name, each)
            ratios[block] = ratio(runs, *runs)
    best = min(ratios, key=lambda block: ratios[block])
    print(f"  the best synchronous block is {best}")
    return {"async_vs_sync_one_stream": round(ratios[best], 3), "best_sync_block": best}


def idle(args: argparse.Namespace) -> dict[str, Any]:
    """All actors of a pipeline at rest."""
    recipe = load_recipe(args.recipe, args.set)
    seconds = 5.0 if args.quick else 20.0
    with local_ray(), launch(recipe) as pipeline:
        drive(pipeline, requests(2, args.max_tokens), 1)
        names = ("encoder", "adapter", *recipe.cascade.levels)
        pids = [pipeline.stages[name].result(pipeline.stages[name].start("info"), 30.0)["pid"] for name in names]
        pids.append(pipeline.controller.result(pipeline.controller.start("stats"), 30.0)["pid"])
        time.sleep(1.0)
        before = sum(map(_cpu_s, pids))
        time.sleep(seconds)
        share = (sum(map(_cpu_s, pids)) - before) / seconds
    print(f"\nidle: {len(pids)} actors burn {100 * share:.2f} % of a core")
    return {"idle_core_share": round(share, 4)}


def _cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "lockstep": lockstep,
    "one_stream": one_stream,
    "idle": idle,
}


def main() -> None:
    """Run the parts and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer questions, rounds and variants")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=0, help="default 5, with --quick 2")
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
