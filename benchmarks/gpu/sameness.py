"""Are a pipeline's answers those of one process, on the same device and on the CPU?"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.one_device import at_once, launched, matching, on_device, say, send
from benchmarks.pipeline.run import requests
from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, SamplingParams, load_recipe
from cascade_runtime.engine import Engine

Tokens = list[tuple[int, ...]]
RECIPES = ("three_level", "light_heavy")
TYPES = ("float32", "bfloat16")


def same(args: argparse.Namespace, told: dict[str, Any]) -> None:
    """Every other request greedy, the others sampled; one at a time and eight at a time."""
    work = mixed(args.requests, args.max_tokens)
    names = RECIPES[:1] if args.toy else RECIPES
    alone = "heavy, one process on the CPU, float32"
    wanted = {("heavy", "cpu"): one_process(load_recipe("heavy", _everywhere("heavy", "cpu", "float32")), work, alone)}
    for name in names:
        for dtype in TYPES:
            recipe = on_device(name, args.device, dtype)
            wanted[name, dtype] = one_process(recipe, work, f"{name}, one process on {args.device}, {dtype}")
    for name in names:
        _compare(told, f"{name}: one process, {args.device} and CPU", wanted[name, "float32"], wanted["heavy", "cpu"])
    kinds = [(name, dtype) for name in names for dtype in TYPES]
    recipes = {" ".join(kind): on_device(kind[0], args.device, kind[1], 1 / len(kinds)) for kind in kinds}
    with launched(recipes, at_once(args)) as pipelines:
        for kind in kinds:
            for streams in (1, 8):
                sent = send(pipelines[" ".join(kind)], work, streams)
                label = f"{' '.join(kind)}, {streams} streams"
                _compare(told, f"{label}: pipeline and one process", list(sent.tokens), wanted[kind])
                if kind[1] == "float32":
                    _compare(told, f"{label}: pipeline and CPU", list(sent.tokens), wanted["heavy", "cpu"])
                say(f"    drafts accepted: {sent.edges}; {sent.wall_s:.1f} s")


def mixed(count: int, max_tokens: int) -> list[GenerateRequest]:
    """Questions about simulated scenes, every other one sampled."""
    sampled = [SamplingParams(max_tokens=max_tokens, temperature=0.8, seed=seed) for seed in range(count)]
    work = requests(count, max_tokens)
    return [replace(each, sampling=sampled[i]) if i % 2 else each for i, each in enumerate(work)]


def one_process(recipe: Recipe, work: Sequence[GenerateRequest], label: str) -> Tokens:
    """The tokens of `Engine`, which is taken away again. Raises what one of the requests fails with."""
    began = time.perf_counter()
    engine = Engine.load(recipe)
    loaded = time.perf_counter()
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
    say(f"  {label}: loaded in {loaded - began:.1f} s, {sum(map(len, tokens)) / (done - loaded):.0f} tokens/s")
    return tokens


def _everywhere(name: str, device: str, dtype: str) -> list[str]:
    stages = load_recipe(name).stages
    return [
        f"stages.{each.name}.{key}={value}" for each in stages for key, value in (("device", device), ("dtype", dtype))
    ]


def _compare(told: dict[str, Any], label: str, mine: Tokens, other: Tokens) -> None:
    told[label] = found = matching(mine, other)
    share = found["tokens_before_difference"]
    say(f"  {label}: {found['identical']} of {found['of']} identical; {share:.4f} of tokens before a difference")
