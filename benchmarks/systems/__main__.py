"""Every system with a published rule that runs here, beside the target alone: tokens a pass, speed, exactness.

    python -m benchmarks.systems [--quick] [--only NAME ...] [--rounds N] [--scenes N] [--temperature T ...]

Each row is a recipe of `benchmarks/recipes/systems/` or `benchmarks/recipes/seeing/`, run in one process on held-out
simulated scenes, three questions about each, one thread, with a run of the target alone before every few. What the
recordings look like to the models is computed once and outside the measured time; prompts are inside it. But
sequential_loading answers all in one batch, and its time holds all it does, the loading of models included. Rows of
`benchmarks/recipes/schedules/`, which say who runs when, are pipelines of actors on a local Ray, beside the target
alone in such actors; their recordings are looked at inside the measured time.

tokens per pass   of the target, over whole answers, prompts' passes included
speedup           tokens per second over the target alone, median of rounds
agreement         share of tested drafts that the target (or the last verifier) kept
exact             the answers have the target's own token ids, each one; rows named lossy need not, and rows "in law"
                  sample other tokens of the same law at a temperature: see tests/decoding/test_rejection.py

Rows of the field that are not recipes here are listed with the reason. One JSON line last.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.systems.one_process import System, compare
from benchmarks.systems.schedules import MEASURES, compare_schedules
from cascade_runtime.api import GenerateRequest
from cascade_runtime.config import SamplingParams
from cascade_runtime.training.scenes import simulate_scene

RECIPES = Path(__file__).parents[1] / "recipes"
FIRST_SCENE = 7_500_000  # far from the seeds of training
QUESTIONS = (
    "What are the key elements in this scene?",
    "What is happening in this recording?",
    "Which way is it moving?",
)
ALONE = "autoregressive"
ELSEWHERE = {
    "DSI, several servers": "no row runs on two targets here; as a closed form: benchmarks.schedules",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few scenes, one round, greedy")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these rows, and the target alone")
    parser.add_argument("--rounds", type=int, default=0, help="default 2, with --quick 1")
    parser.add_argument("--scenes", type=int, default=0, help="default 4, with --quick 2")
    parser.add_argument("--temperature", type=float, nargs="+", help="default 0 and 0.8, with --quick 0")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rounds, scenes = args.rounds or (1 if args.quick else 2), args.scenes or (2 if args.quick else 4)
    temperatures = args.temperature or ([0.0] if args.quick else [0.0, 0.8])
    others = sorted(path for kind in ("seeing", "systems") for path in (RECIPES / kind).glob("*.toml"))
    paths = [RECIPES / "systems" / f"{ALONE}.toml", *(path for path in others if path.stem != ALONE)]
    chosen = [path for path in paths if not args.only or path.stem in (ALONE, *args.only)]
    schedules = sorted((RECIPES / "schedules").glob("*.toml"))
    if args.only:
        asked = {path.stem for path in schedules} & set(args.only)
        schedules = [path for path in schedules if path.stem in asked | {MEASURES}] if asked else []
    systems = [System(path) for path in chosen]
    recordings = [simulate_scene(FIRST_SCENE + number).events for number in range(scenes)]
    result: dict[str, Any] = {}
    for temperature in temperatures:
        sampling = SamplingParams(max_tokens=96, temperature=temperature, seed=3)
        requests = [GenerateRequest(events=e, question=q, sampling=sampling) for e in recordings for q in QUESTIONS]
        result |= compare(systems, requests, temperature, rounds)
    systems.clear()
    if schedules:
        sampling = SamplingParams(max_tokens=96)
        requests = [GenerateRequest(events=e, question=q, sampling=sampling) for e in recordings for q in QUESTIONS]
        result |= compare_schedules(schedules, requests, rounds)
    print("\nnot a recipe here:")
    for name, reason in ELSEWHERE.items():
        print(f"  {name:<28}{reason}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
