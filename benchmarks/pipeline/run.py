"""What the parts share: one workload through one pipeline, turns, and the rows of their tables."""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.pipeline.processes import actors, cpu_s
from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.events import Events

if TYPE_CHECKING:  # `requests` serve machines without Ray
    from cluster.launch import Pipeline

QUESTIONS = (
    "What are the key elements in this scene?",
    "What is happening in this recording?",
    "Describe the motion.",
    "Which way is it moving?",
)
FIRST_SCENE = 6_000_000  # far from the seeds of training
COUNTERS = ("busy_s", "awake_s", "passes", "tokens_fed")


@dataclass
class Run:
    """One workload through one pipeline; counters per language stage, or replica of one."""

    tokens: int
    wall_s: float
    answers: tuple[tuple[int, ...], ...]
    busy_s: dict[str, float] = field(default_factory=dict)
    awake_s: dict[str, float] = field(default_factory=dict)
    passes: dict[str, float] = field(default_factory=dict)
    tokens_fed: dict[str, float] = field(default_factory=dict)
    cores: float = 0.0  # that all actors and the clients kept busy, on average

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.wall_s

    @property
    def hidden(self) -> float:
        """Share of what could overlap that did."""
        total, longest = sum(self.busy_s.values()), max(self.busy_s.values())
        return 1 - (self.wall_s - longest) / (total - longest) if total > longest else 1.0

    @property
    def coordination(self) -> float:
        """Time the busiest stage's loop is awake outside passes, over its time in passes."""
        name = max(self.busy_s, key=lambda each: self.busy_s[each])
        return (self.awake_s[name] - self.busy_s[name]) / self.busy_s[name]


@contextmanager
def local_ray() -> Generator[None]:
    """A local Ray whose books have room for several pipelines; threads per stage are the recipe's all the same."""
    import ray

    from cluster.launch import FOREGROUND

    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(address="local", num_cpus=64, _system_config=FOREGROUND, **quiet)
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


def drive(pipeline: Pipeline, work: Sequence[GenerateRequest], streams: int, *, batches: bool = False) -> Run:
    """Each of `streams` clients asks its next question as soon as it has an answer; with `batches`, as soon as all
    of them have theirs.
    """
    before, spent_s = pipeline.stats(), _core_s()

    def ask(request: GenerateRequest) -> Answer:
        fresh = replace(request, request_id=os.urandom(8).hex())
        return pipeline.controller.result(pipeline.controller.start("generate", fresh, None), 600.0)

    start = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        share = streams if batches else len(work)
        answers = [each for i in range(0, len(work), share) for each in pool.map(ask, work[i : i + share])]
    wall_s = time.perf_counter() - start
    cores, after = (_core_s() - spent_s) / wall_s, pipeline.stats()
    levels = pipeline.recipe.level_members
    spent = {key: {name: after[name].get(key, 0) - before[name].get(key, 0) for name in levels} for key in COUNTERS}
    tokens = tuple(answer.token_ids for answer in answers)
    return Run(sum(map(len, tokens)), wall_s, tokens, cores=cores, **spent)


def _core_s() -> float:
    return time.process_time() + sum(map(cpu_s, actors()))


def turn_about(contestants: dict[str, Callable[[], Run]], rounds: int, *, warm: bool = True) -> dict[str, list[Run]]:
    """One run each to warm up, then `rounds` of each in turn. Raises `SystemExit` where token ids differ."""
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    said = {run().answers for run in contestants.values()} if warm else set()
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
    deadlines = recipe.deadlines
    if mode == "lock_step":  # it waits for everybody, however long that takes
        deadlines = replace(deadlines, upstream_s=10.0)
    policy = replace(recipe.policy, mode=mode)
    return replace(recipe, policy=policy, deadlines=deadlines, cascade=replace(recipe.cascade, **cascade))


def show(name: str, runs: Sequence[Run]) -> None:
    """One row."""

    def median(of: Callable[[Run], float]) -> float:
        return statistics.median(of(run) for run in runs)

    busy = "  ".join(
        f"{stage} {median(lambda r, s=stage: r.busy_s[s] / r.wall_s):.2f}"
        f" ({median(lambda r, s=stage: r.passes[s]):.0f} passes, {median(lambda r, s=stage: r.tokens_fed[s]):.0f} fed)"
        for stage in runs[0].busy_s
    )
    print(
        f"  {name:<34}{median(lambda r: r.tokens_per_s):>8.1f} tokens/s   hidden {median(lambda r: r.hidden):>5.2f}"
        f"   coordination {median(lambda r: r.coordination):.3f}   cores {median(lambda r: r.cores):.2f}   busy {busy}",
        flush=True,
    )


def scenes_without_models(
    count: int, *, speculate: bool = True, seconds: Sequence[float] = (0.05,)
) -> list[GenerateRequest]:
    """Questions about recordings that only have a length, for emulated devices."""
    made = []
    for i in range(count):
        t = np.linspace(0, 1e6 * seconds[i % len(seconds)], 50).astype(np.int64)
        x = np.full(50, i % 100, np.uint16)
        events = Events(t, x, x, np.zeros(50, np.uint8), width=128, height=128)
        question = f"What is in clip {i}?"
        made.append(
            GenerateRequest(
                events=events, question=question, sampling=SamplingParams(max_tokens=64), speculate=speculate
            )
        )
    return made
