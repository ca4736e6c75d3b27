"""Answers of one process, and how far two lists of answers are the same. Without Ray."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.pipeline.run import requests
from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.engine import Engine

Tokens = list[tuple[int, ...]]


def say(line: str) -> None:
    """At once, whatever becomes of what follows."""
    print(line, flush=True)


def mixed(count: int, max_tokens: int) -> list[GenerateRequest]:
    """Questions about simulated scenes, every other one sampled."""
    sampled = [SamplingParams(max_tokens=max_tokens, temperature=0.8, seed=seed) for seed in range(count)]
    work = requests(count, max_tokens)
    return [replace(each, sampling=sampled[i]) if i % 2 else each for i, each in enumerate(work)]


def one_process(recipe: Recipe, work: Sequence[GenerateRequest], label: str) -> Tokens:
    """The tokens of `Engine`, which is taken away again. Raises what one of the requests fails with."""
    began, held = time.perf_counter(), _gpu_gb()
    engine = Engine.load(recipe)
    loaded, held = time.perf_counter(), _gpu_gb() - held
    tokens: Tokens = []
    for answer in engine.generate(work):
        if not isinstance(answer, Answer):
            raise answer
        tokens.append(answer.token_ids)
    done = time.perf_counter()
    del engine
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    speed = f"{sum(map(len, tokens)) / (done - loaded):.0f} tokens/s"
    say(f"  {label}: loaded in {loaded - began:.1f} s, {held:.2f} GB of the GPU, {speed}")
    return tokens


def matching(mine: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> dict[str, Any]:
    """How many answers are the same token for token, and how much of all tokens lies before the first that is not."""
    same = sum(tuple(a) == tuple(b) for a, b in zip(mine, other, strict=True))
    before, total = 0, 0
    for a, b in zip(mine, other, strict=True):
        total += max(len(a), len(b))
        before += next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return {"identical": same, "of": len(mine), "tokens_before_difference": round(before / max(1, total), 4)}


def compare(told: dict[str, Any], label: str, mine: Tokens, other: Tokens) -> None:
    """Say it, and keep it under this label."""
    told[label] = found = matching(mine, other)
    share = found["tokens_before_difference"]
    say(f"  {label}: {found['identical']} of {found['of']} identical; {share:.4f} of tokens before a difference")


def _gpu_gb() -> float:
    return sum(torch.cuda.memory_allocated(index) for index in range(torch.cuda.device_count())) / 1e9
