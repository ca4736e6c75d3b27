"""Are a pipeline's answers those of one process, on the same device and on the CPU?"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.gpu.answers import compare, mixed, one_process, say
from benchmarks.gpu.one_device import at_once, launched, on_device, send
from cascade_runtime.config import load_recipe

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
        compare(told, f"{name}: one process, {args.device} and CPU", wanted[name, "float32"], wanted["heavy", "cpu"])
    kinds = [(name, dtype) for name in names for dtype in TYPES]
    recipes = {" ".join(kind): on_device(kind[0], args.device, kind[1], 1 / len(kinds)) for kind in kinds}
    with launched(recipes, at_once(args)) as pipelines:
        for kind in kinds:
            for streams in (1, 8):
                sent = send(pipelines[" ".join(kind)], work, streams)
                label = f"{' '.join(kind)}, {streams} streams"
                compare(told, f"{label}: pipeline and one process", list(sent.tokens), wanted[kind])
                if kind[1] == "float32":
                    compare(told, f"{label}: pipeline and CPU", list(sent.tokens), wanted["heavy", "cpu"])
                say(f"    drafts accepted: {sent.edges}; {sent.wall_s:.1f} s")


def _everywhere(name: str, device: str, dtype: str) -> list[str]:
    stages = load_recipe(name).stages
    return [
        f"stages.{each.name}.{key}={value}" for each in stages for key, value in (("device", device), ("dtype", dtype))
    ]
