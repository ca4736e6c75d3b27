"""A target split by layers over two unlike devices, the GPU and the processor: the same answers, and what it costs.

    python -m benchmarks.gpu.split [--only family shapes] [--requests 12] [--max-tokens 48] [--size 7b]
                                      [--devices cuda:0 cpu]

family   `heavy` and `three_level` in float32, the target first on one device, then split over both, in either order:
         the stages as threads of one process with eight requests at a time, then one process. Tokens are compared
         with one process on the processor alone; tokens per second of all, compiling and capturing within
shapes   a checkpoint of `size` with random weights in bfloat16, whole on the first device and split over both: memory
         of the GPU, tokens per second, share of tokens before a difference (either device rounds in its own way)

Two GPUs would be split by the same lines; this is a machine with one. No Ray. The last line is JSON; the exit status is
1 where an answer in float32 was another.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.answers import Tokens, compare, mixed, one_process, say
from benchmarks.gpu.random_checkpoint import write_checkpoint
from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, load_recipe
from cluster.threaded import ThreadedTransport

_RECIPES = ("heavy", "three_level")
_FRAMES, _ANSWER = 2, 24
_ALONE = """
[cascade]
name = "alone"
levels = ["heavy"]
slots = 4
max_len = 640

[stages.heavy]
checkpoint = "{folder}"
dtype = "bfloat16"
device = "{device}"
"""


def family(args: argparse.Namespace, told: dict[str, Any]) -> None:
    """The bundled models."""
    work = mixed(args.requests, args.max_tokens)
    first, second = args.devices
    here = one_process(_placed("heavy", "cpu", "cpu"), work, "heavy, one process on the processor")
    for name in reversed(_RECIPES):  # threads first, which compile and capture side by side
        for where in (first, f"{first}+{second}", f"{second}+{first}"):
            recipe = _placed(name, first, where)
            label = f"{name}, target on {where}"
            if name != "heavy":
                compare(told, f"{label}, threads", _threads(recipe, work, label), here)
            compare(told, f"{label}, one process", one_process(recipe, work, f"{label}, one process"), here)
    told["same"] = all(found["identical"] == found["of"] for found in told.values() if isinstance(found, dict))


def shapes(args: argparse.Namespace, told: dict[str, Any]) -> None:
    """Published shapes."""
    folder = Path(tempfile.mkdtemp(prefix="split-"))
    try:
        made = write_checkpoint(args.size, folder / "heavy", args.devices[0], frames=_FRAMES, seed=1, toy=False)
        say(f"  {args.size}: {made:.2f} GB")
        work = mixed(4, _ANSWER)
        found: dict[str, Tokens] = {}
        for where in (args.devices[0], "+".join(args.devices)):
            recipe = folder / "recipe.toml"
            recipe.write_text(_ALONE.format(folder=folder / "heavy", device=where))
            found[where] = one_process(load_recipe(str(recipe)), work, f"{args.size} on {where}")
        whole, split = found.values()
        compare(told, f"{args.size}: split and whole, bfloat16", split, whole)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _placed(name: str, others: str, target: str) -> Recipe:
    plain = load_recipe(name)
    changes = [f"stages.{each.name}.device={others}" for each in plain.stages[:-1]]
    changes += [f"stages.{each.name}.dtype=float32" for each in plain.stages]
    for each in filter(None, (plain.encoder, plain.adapter)):
        changes += [f"{each.where}.device={others}", f"{each.where}.dtype=float32"]
    return load_recipe(name, [*changes, f"stages.{plain.target.name}.device={target}"])


def _threads(recipe: Recipe, work: Sequence[GenerateRequest], label: str) -> Tokens:
    async def run() -> Tokens:
        transport = ThreadedTransport(recipe)
        tokens: dict[int, tuple[int, ...]] = {}
        began = time.perf_counter()
        try:
            async for index, update in transport.run(work, 300.0, False):
                if not isinstance(update, Answer):
                    assert isinstance(update, Exception)
                    raise update
                tokens[index] = update.token_ids
            total, took_s = sum(map(len, tokens.values())), time.perf_counter() - began
            say(f"  {label}, threads: {total / took_s:.0f} tokens/s")
        finally:
            await transport.close()
        return [tokens[index] for index in range(len(work))]

    return asyncio.run(run())


PARTS = {"family": family, "shapes": shapes}


def main() -> None:
    """The parts; one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--devices", nargs=2, default=["cuda:0", "cpu"], help="two of them")
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--size", default="7b", choices=("0.5b", "7b"))
    args = parser.parse_args()
    if any(device.startswith("cuda") for device in args.devices) and not torch.cuda.is_available():
        parser.error(f"--devices {' '.join(args.devices)}: there is no GPU here")
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    told: dict[str, Any] = {"devices": args.devices, "gpu": name, "torch": torch.__version__}
    say(f"{name}; torch {torch.__version__}; {os.cpu_count()} cores")
    failed = False
    for part in args.only:
        say(f"\n{part}")
        try:
            PARTS[part](args, told)
        except Exception as error:  # noqa: BLE001  the other part is run all the same
            failed = True
            told[f"{part} failed"] = f"{type(error).__name__}: {error}"
            say(f"  failed: {type(error).__name__}: {error}")
    print(json.dumps(told))
    sys.exit(failed or not told.get("same", True))


if __name__ == "__main__":
    main()
