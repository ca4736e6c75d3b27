"""Pipelines whose five stages share one device by Ray's books, and requests sent through them."""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.gpu.answers import say
from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, load_recipe
from cluster.launch import FOREGROUND, Pipeline, launch
from cluster.placement import places

_STORE_BYTES = 1_000_000_000
_ANSWER_S = 600.0
_STARTS = 3  # pipelines that load at a time
WAITING = (
    "deadlines.start_s=400",  # five processes import, load and compile at once
    "deadlines.request_s=300",
    "supervision.restarts=1000",
)


@contextmanager
def ray_with_one_gpu(device: str) -> Generator[None]:
    """A local Ray whose books have one GPU, on a CPU too, and room for the cores of several pipelines."""
    import ray

    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    store = _STORE_BYTES if device == "cuda" else _STORE_BYTES // 5
    ray.init(address="local", num_cpus=64, num_gpus=1, object_store_memory=store, _system_config=FOREGROUND, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def gpus_found_by_ray() -> int:
    """How many GPUs Ray counts on this machine where nobody tells it."""
    from ray._private.accelerators import NvidiaGPUAcceleratorManager

    return NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()


def on_device(source: str, device: str, dtype: str, share: float = 1.0, changes: Sequence[str] = ()) -> Recipe:
    """A recipe, all of it on one device and in one type; the target asks for `share` of a GPU, and the others live
    beside it. A recipe without encoder and adapter has its adapter there anyway.
    """
    plain = load_recipe(source, [*WAITING, *changes])
    home = plain.target.name
    overrides = [f"stages.{home}.num_gpus={int(1e4 * share) / 1e4}"]  # Ray counts ten thousandths
    for name, place in places(plain).items():
        where = name if name in ("encoder", "adapter") else f"stages.{name}"
        if place in (plain.encoder, plain.adapter, *plain.stages):
            overrides += [f"{where}.device={device}", f"{where}.dtype={dtype}"]
            overrides += [f"{where}.beside={home}"] if name != home else []
    return load_recipe(source, [*WAITING, *changes, *overrides])


@contextmanager
def launched(recipes: Mapping[str, Recipe], at_once: int = _STARTS) -> Generator[dict[str, Pipeline]]:
    """Pipelines of these recipes, started side by side."""
    began = time.perf_counter()
    with ExitStack() as stack, ThreadPoolExecutor(at_once) as pool:
        starting = {name: pool.submit(_launch, name, recipe) for name, recipe in recipes.items()}
        started = {name: each.result() for name, each in starting.items() if each.exception() is None}
        for pipeline in started.values():
            stack.callback(pipeline.close)
        for each in starting.values():
            each.result()
        say(f"  {len(recipes)} pipelines up after {time.perf_counter() - began:.1f} s; GPU: {used_gb():.2f} GB used")
        yield started


def _launch(name: str, recipe: Recipe) -> Pipeline:
    began = time.perf_counter()
    pipeline = launch(recipe, report=lambda line: say(f"    {name}, {time.perf_counter() - began:5.1f} s: {line}"))
    say(f"  {name}: up after {time.perf_counter() - began:.1f} s")
    return pipeline


def used_gb() -> float:
    """Memory of the GPU that all processes hold, in GB; 0 without one."""
    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 1e9


@dataclass
class Sent:
    """What came of some requests. passes, fed: of each level meanwhile."""

    answers: tuple[Answer, ...]
    wall_s: float
    passes: dict[str, int]
    fed: dict[str, int]

    @property
    def tokens(self) -> tuple[tuple[int, ...], ...]:
        """Of each answer."""
        return tuple(answer.token_ids for answer in self.answers)

    @property
    def tokens_per_s(self) -> float:
        """All streams together, from the first request to the last answer."""
        return sum(map(len, self.tokens)) / self.wall_s

    @property
    def ttft_ms(self) -> float:
        """Median time to the first token."""
        return statistics.median(answer.timings.ttft_ms for answer in self.answers)

    @property
    def tpot_ms(self) -> float:
        """Median time per token after the first."""
        return statistics.median(
            (answer.timings.total_ms - answer.timings.ttft_ms) / max(1, len(answer.token_ids) - 1)
            for answer in self.answers
        )

    @property
    def per_pass(self) -> float:
        """Tokens of the answers for every pass of the target that gave some."""
        return sum(map(len, self.tokens)) / max(1, sum(answer.target_passes for answer in self.answers))

    @property
    def edges(self) -> str:
        """Accepted of drafted tokens, by edge."""
        sums: dict[str, list[int]] = {}
        for answer in self.answers:
            for edge in answer.edges:
                told = sums.setdefault(edge.edge, [0, 0])
                told[0] += edge.num_accepted_tokens
                told[1] += edge.num_draft_tokens
        return ", ".join(f"{edge} {accepted}/{drafted}" for edge, (accepted, drafted) in sums.items()) or "no drafts"


def send(pipeline: Pipeline, work: Sequence[GenerateRequest], streams: int) -> Sent:
    """Each of `streams` clients asks its next question as soon as it has an answer."""
    before = pipeline.stats()

    def ask(request: GenerateRequest) -> Answer:
        fresh = replace(request, request_id=os.urandom(8).hex())
        return pipeline.controller.result(pipeline.controller.start("generate", fresh, None), _ANSWER_S)

    start = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        answers = tuple(pool.map(ask, work))
    wall_s, after = time.perf_counter() - start, pipeline.stats()
    spent = {
        key: {name: after[name].get(key, 0) - before[name].get(key, 0) for name in pipeline.recipe.level_members}
        for key in ("passes", "tokens_fed")
    }
    return Sent(answers, wall_s, spent["passes"], spent["tokens_fed"])


def row(name: str, runs: Sequence[Sent]) -> dict[str, Any]:
    """Medians of some runs, said and returned."""
    last = runs[-1]
    told = {
        "tokens_per_s": round(statistics.median(run.tokens_per_s for run in runs), 1),
        "ttft_ms": round(statistics.median(run.ttft_ms for run in runs), 2),
        "tpot_ms": round(statistics.median(run.tpot_ms for run in runs), 3),
        "tokens_per_pass": round(statistics.median(run.per_pass for run in runs), 2),
    }
    cells = (
        f"{told['tokens_per_s']:>9.1f} tokens/s   first {told['ttft_ms']:>8.1f} ms   then {told['tpot_ms']:>7.2f} ms"
    )
    passes = ", ".join(f"{level} {count}" for level, count in last.passes.items())
    say(f"  {name:<34}{cells}   {told['tokens_per_pass']:.2f} a pass   passes {passes}   accepted {last.edges}")
    return told


def at_once(args: argparse.Namespace) -> int:
    """Pipelines that may start side by side."""
    return _STARTS if args.device == "cuda" else 1
