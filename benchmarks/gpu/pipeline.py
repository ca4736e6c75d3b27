"""The whole pipeline, five Ray actors and their controller, on one GPU.

    python -m benchmarks.gpu.pipeline [--only PART ...] [--limit-s N] [--out FILE.json]

same      the bundled family on the device in float32: answers of `three_level` and `light_heavy`, half of them
          sampled, at 1 and 8 streams, beside one process on the same device and beside the CPU, token for token; in
          bfloat16 the share that is the same
speed     `three_level` and `light_heavy` beside `heavy` alone in such an actor, turn about, 1 and 8 streams: tokens
          per second, first token, time per token, what the first run with its captures was like
faults    SIGKILL to each of five stages and the controller, then SIGSTOP to each until it is replaced, one after the
          other under load: answers lost, doubled or changed, seconds until all are whole again, and the GPU's memory
          before, while and after
shapes    LLaVA-OneVision's 0.5B and 7B shapes with random weights in bfloat16, written to a temporary folder: with
          drafts that are never right, and with drafts that always are (by the adaptive policy, and by one that waits
          for four drafts), beside the target alone; and the target killed

Ray's books have one GPU, of which each pipeline asks a part; every process takes the memory it needs. Each figure is
printed as soon as it is known, and a part that fails ends alone. `--device cpu --toy` runs all of it at toy size on a
CPU, to show that it runs. One JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.answers import say
from benchmarks.gpu.killed import faults
from benchmarks.gpu.one_device import gpus_found_by_ray, ray_with_one_gpu, used_gb
from benchmarks.gpu.real_shapes import VARIANTS, shapes
from benchmarks.gpu.sameness import same
from benchmarks.gpu.speeds import speed
from cluster.arenas import keep_few_arenas

PARTS: dict[str, Callable[[argparse.Namespace, dict[str, Any]], None]] = {
    "same": same,
    "speed": speed,
    "faults": faults,
    "shapes": shapes,
}
_TOY = {
    "requests": 4,
    "max_tokens": 12,
    "questions": 1,
    "rounds": 1,
    "streams": 2,
    "frames": 2,
    "answer": 12,
    "shape_rounds": 1,
    "shape_questions": 1,
}
_TRACE_LINES = 12


def main() -> None:
    """Run the parts and print one JSON line; the exit status is 1 where one of them failed."""
    args = _arguments()
    keep_few_arenas()
    torch.set_num_threads(max(1, min(8, (os.cpu_count() or 2) // 2)))
    began = time.perf_counter()
    args.end = began + args.limit_s
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    say(f"{name}; torch {torch.__version__}; {os.cpu_count()} cores; Ray finds {gpus_found_by_ray()} GPUs by itself")
    told: dict[str, Any] = {"device": name, "torch": torch.__version__, "toy": args.toy, "failed": {}}
    with ray_with_one_gpu(args.device):
        for part in args.only:
            spent = time.perf_counter() - began
            if spent > args.limit_s:
                told["failed"][part] = "no time was left"
                continue
            say(f"\n{part} (after {spent:.0f} s; GPU: {used_gb():.2f} GB used)")
            try:
                PARTS[part](args, told.setdefault(part, {}))
            except Exception as error:  # noqa: BLE001  the other parts are run all the same
                told["failed"][part] = f"{type(error).__name__}: {error}"
                say("".join(traceback.format_exc().splitlines(keepends=True)[-_TRACE_LINES:]))
            if args.out is not None:
                args.out.write_text(json.dumps(told, indent=1, default=str))
    say(f"\nall of it took {time.perf_counter() - began:.0f} s")
    print(json.dumps(told, default=str))
    sys.exit(1 if told["failed"] else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--limit-s", type=float, default=3600.0, help="seconds after which nothing is begun any more")
    parser.add_argument("--out", type=Path, help="written anew after each part")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="tiny shapes and few requests")
    parser.add_argument("--dtype", default="auto", help="of `speed`; auto is the type that is stored")
    parser.add_argument("--requests", type=int, default=12, help="of `same`")
    parser.add_argument("--max-tokens", type=int, default=48, help="of an answer, but for `shapes`")
    parser.add_argument("--questions", type=int, default=6, help="of each stream in a run of `speed`")
    parser.add_argument("--rounds", type=int, default=5, help="of `speed`")
    parser.add_argument("--times", type=int, default=1, help="kills and hangs of each process in `faults`")
    parser.add_argument("--kinds", nargs="+", choices=("kill", "hang"), default=["kill", "hang"], help="of `faults`")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="of `shapes`")
    parser.add_argument("--streams", type=int, default=4, help="who ask all the time in `faults`")
    parser.add_argument("--folder", type=Path, help="where `shapes` writes 17 GB; default: the temporary folder")
    parser.add_argument("--frames", type=int, default=4, help="of a recording in `shapes`, 196 positions each")
    parser.add_argument("--answer", type=int, default=96, help="tokens of an answer in `shapes`")
    parser.add_argument("--shape-rounds", type=int, default=3, help="of `shapes`, each stream count")
    parser.add_argument("--shape-questions", type=int, default=3, help="of each stream in a run of `shapes`")
    args = parser.parse_args()
    if args.toy:
        for name, value in _TOY.items():
            setattr(args, name, value)
    return args


if __name__ == "__main__":
    main()
