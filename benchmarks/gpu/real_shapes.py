"""LLaVA-OneVision's shapes with random weights through a pipeline on one GPU: light (0.5B) drafts for heavy (7B).

useless   light's weights are random, as heavy's are: they never agree, and nothing is to be lost by asking light
equal     light's weights are heavy's own: every draft is right, and costs as much as a token of heavy's
fixed     the same, but heavy waits for four drafts whatever they cost: five tokens a pass, and how much of it overlaps
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.answers import matching, say
from benchmarks.gpu.killed import one_fault
from benchmarks.gpu.one_device import Sent, launched, on_device, row, send, used_gb
from benchmarks.gpu.random_checkpoint import write_checkpoint
from benchmarks.pipeline.run import requests
from cascade_runtime.api import GenerateRequest
from cascade_runtime.config import Recipe
from cluster.chaos.plan import Fault
from cluster.launch import Pipeline

STREAMS = (1, 4)
_LEAST = 6  # more recordings than slots: no run finds a prompt in one
VARIANTS = {"useless": ("0.5b", "adaptive"), "equal": ("7b", "adaptive"), "fixed": ("7b", "fixed")}
_RECIPE = """
[cascade]
name = "{name}"
levels = ["light", "heavy"]
num_draft_tokens = [4]
window = 16
slots = 4
max_len = {max_len}

[policy]
mode = "{mode}"

[stages.light]
checkpoint = "{light}"

[stages.heavy]
checkpoint = "{heavy}"
"""


def shapes(args: argparse.Namespace, told: dict[str, Any]) -> None:
    """All variants, one after the other."""
    folder = Path(tempfile.mkdtemp(prefix="shapes-", dir=args.folder))
    try:
        for number, size in enumerate(("0.5b", "7b")):
            began = time.perf_counter()
            made = write_checkpoint(size, folder / size, args.device, frames=args.frames, seed=number, toy=args.toy)
            say(f"  {size}: {made:.2f} GB written in {time.perf_counter() - began:.1f} s")
        for name in args.variants:
            if time.perf_counter() > args.end:
                say(f"  {name}: no time was left")
                continue
            recipe = _recipe(folder, name, args)
            began = time.perf_counter()
            with launched({name: recipe}) as pipelines:
                told[f"{name}, load_s"] = round(time.perf_counter() - began, 1)
                _beside_alone(pipelines[name], name, args, told)
                if name == "useless":
                    told["kill heavy"] = asyncio.run(one_fault(pipelines[name], Fault(0.0, "kill", "heavy")))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _recipe(folder: Path, name: str, args: argparse.Namespace) -> Recipe:
    per_frame = 196 if not args.toy else 4
    max_len = -(-(args.frames * per_frame + 64 + args.answer) // 128) * 128
    light, mode = VARIANTS[name]
    path = folder / f"{name}.toml"
    path.write_text(_RECIPE.format(name=name, mode=mode, light=folder / light, heavy=folder / "7b", max_len=max_len))
    return on_device(str(path), args.device, "bfloat16")


def _beside_alone(pipeline: Pipeline, name: str, args: argparse.Namespace, told: dict[str, Any]) -> None:
    """With drafts and without, turn about through the same stages."""
    for streams in STREAMS:
        with_drafts = _work(max(_LEAST, args.shape_questions * streams), args.answer)
        alone = [replace(request, speculate=False) for request in with_drafts]
        ways = {"cascade": with_drafts, "target alone": alone}
        runs: dict[str, list[Sent]] = {way: [] for way in ways}
        for turn in range(args.shape_rounds + 1):
            for way, work in ways.items():
                sent = send(pipeline, work, streams)
                if turn:
                    runs[way].append(sent)
                else:
                    say(f"  {name}, {streams} streams, {way}, warming: {sent.tokens_per_s:.1f} tokens/s")
        for way in ways:
            told[f"{name}, {streams}, {way}"] = row(f"{name}, {streams} streams, {way}", runs[way])
        pairs = zip(runs["cascade"], runs["target alone"], strict=True)
        ratio = statistics.median(mine.tokens_per_s / other.tokens_per_s for mine, other in pairs)
        found = matching(_all(runs["cascade"]), _all(runs["target alone"]))
        told[f"{name}, {streams}, vs_alone"], told[f"{name}, {streams}, same"] = round(ratio, 3), found
        say(f"    {ratio:.3f} of the target alone; {found}")
    stats = pipeline.stats()
    told[f"{name}, decided"] = stats["heavy"]["decision"]
    say(f"    decided: {stats['heavy']['decision']}; GPU: {used_gb():.2f} GB used")


def _work(count: int, tokens: int) -> list[GenerateRequest]:
    """Short questions whose answers have so many tokens, whatever the tokens are."""
    return [
        replace(request, sampling=replace(request.sampling, ignore_eos=True)) for request in requests(count, tokens)
    ]


def _all(runs: Sequence[Sent]) -> list[tuple[int, ...]]:
    return [tokens for run in runs for tokens in run.tokens]
