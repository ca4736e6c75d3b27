"""Every system with a published rule that runs here, beside the target alone: tokens a pass, speed, exactness.

    python -m benchmarks.systems [--quick] [--only NAME ...] [--rounds N] [--scenes N] [--temperature T ...]

Each row is a recipe of `benchmarks/recipes/systems/` or `benchmarks/recipes/seeing/`, run in one process on held-out
simulated scenes, three questions about each, one thread, with a run of the target alone before every few. What the
recordings look like to the models is computed once and outside the measured time; prompts are inside it.

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
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import SamplingParams, load_recipe
from cascade_runtime.decoding.lookup import LookupDecoder, Memory
from cascade_runtime.engine import Engine
from cascade_runtime.training.scenes import simulate_scene

RECIPES = Path(__file__).parent / "recipes"
FIRST_SCENE = 7_500_000  # far from the seeds of training
QUESTIONS = (
    "What are the key elements in this scene?",
    "What is happening in this recording?",
    "Which way is it moving?",
)
ALONE = "autoregressive"
_TOGETHER = 4  # systems that are compared with one run of the target alone
ELSEWHERE = {
    "PipeSpec": "asynchronous: the pipeline with policy.mode = fixed (benchmarks.simulator --pipespec)",
    "PEARL, DSI, SSD": "schedules: their overlap is what `actors/` do; acceptance is that of a chain",
    "DuoDecoding": "a placement (drafter on CPU, target on GPU): `stages.light.device = cpu`",
    "SpecRouter": "the adaptive policy chooses whether mid is in the loop from measured costs (benchmarks.policy)",
    "SLED": "an edge device's schedule: the recipe edge_drafts with `cascade edge --cut drafts` (benchmarks.edge)",
    "sequential loading": "a placement: `cascade plan --assume sequential`",
    "HiSpec": "early exit of one model: no exits were trained on the bundled family",
    "HiViS": "a head at text positions only, fed with the target's states: what EAGLE heads here are (eagle_tree)",
    "MSD, ViSpec, DREAM": "heads fed with the target's states and other visual inputs: not trained here",
    "Talon": "its constants are not published",
}


class System:
    """One recipe's engine; recordings are seen once."""

    def __init__(self, path: Path) -> None:
        self.name, self.recipe = path.stem, load_recipe(path)
        self.engine = Engine.load(self.recipe)
        see, seen = self.engine.front_end.see, dict[tuple[int, bool], Any]()

        def once(events: Any, *, speculate: bool = True) -> Any:
            key = (id(events), speculate)
            if key not in seen:
                seen[key] = see(events, speculate=speculate)
            return seen[key]

        self.engine.front_end.see = once  # type: ignore[method-assign]
        self.rate = 0.0  # tokens per second of the last run
        self.ratios: dict[float, list[float]] = {}  # beside the target alone, run shortly before
        self.answers: dict[float, list[Answer]] = {}

    @property
    def kind(self) -> str:
        """What its answers are promised to be."""
        rule = self.recipe.cascade.acceptance
        return "lossy" if rule.startswith("lossy") else "in law" if rule in ("ratio", "traversal") else "exact"

    def run(self, requests: Sequence[GenerateRequest], temperature: float) -> None:
        """Answer all, one at a time."""
        memory = self.engine.levels[0].decoder
        if isinstance(memory, LookupDecoder):
            memory.memory = Memory()  # it has not been asked these before
        start, answers = time.perf_counter(), []
        for request in requests:
            (answer,) = self.engine.generate([request])
            assert isinstance(answer, Answer), answer
            answers.append(answer)
        seconds = time.perf_counter() - start
        self.answers[temperature] = answers
        self.rate = sum(len(each.token_ids) for each in answers) / seconds

    def row(self, alone: System, temperature: float) -> dict[str, Any]:
        """Its figures at a temperature."""
        answers, told = self.answers[temperature], alone.answers[temperature]
        tokens, passes = sum(len(each.token_ids) for each in answers), sum(each.target_passes for each in answers)
        last = [each.edges[-1] for each in answers if each.edges]
        tested = sum(sum(edge.num_tested_tokens_per_pos) for edge in last)
        kept = sum(sum(edge.num_accepted_tokens_per_pos) for edge in last)
        return {
            "tokens_per_pass": round(tokens / passes, 3),
            "speedup": round(statistics.median(self.ratios[temperature]), 3),
            "exact": all(a.token_ids == b.token_ids for a, b in zip(answers, told, strict=True)),
            "agreement": round(kept / tested, 4) if tested else None,
            "promised": self.kind,
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
    paths = [RECIPES / "systems" / f"{ALONE}.toml"]
    paths += sorted(path for path in RECIPES.glob("s*/*.toml") if path.stem != ALONE)
    chosen = [path for path in paths if not args.only or path.stem in (ALONE, *args.only)]
    systems = [System(path) for path in chosen]
    recordings = [simulate_scene(FIRST_SCENE + number).events for number in range(scenes)]
    result: dict[str, Any] = {}
    for temperature in temperatures:
        sampling = SamplingParams(max_tokens=96, temperature=temperature, seed=3)
        requests = [GenerateRequest(events=e, question=q, sampling=sampling) for e in recordings for q in QUESTIONS]
        result |= _table(systems, requests, temperature, rounds)
    print("\nnot a recipe here:")
    for name, reason in ELSEWHERE.items():
        print(f"  {name:<28}{reason}")
    print(json.dumps(result))


def _table(
    systems: Sequence[System], requests: Sequence[GenerateRequest], temperature: float, rounds: int
) -> dict[str, Any]:
    alone = systems[0]
    for round_ in range(rounds + 1):  # the first to warm up
        for i, system in enumerate(systems):
            if not i % _TOGETHER:
                alone.run(requests, temperature)
            if system is not alone:
                system.run(requests, temperature)
            if round_:
                system.ratios.setdefault(temperature, []).append(system.rate / alone.rate)
    print(f"\ntemperature {temperature}, {len(requests)} questions, {rounds} rounds")
    print(f"  {'':<28}{'tokens/pass':>12}{'speedup':>9}{'agreement':>11}  promised, found", flush=True)
    told: dict[str, Any] = {}
    for system in systems:
        row = system.row(alone, temperature)
        agreement = f"{row['agreement']:.1%}" if row["agreement"] is not None else "-"
        found = "equal" if row["exact"] else "other tokens"
        print(
            f"  {system.name:<28}{row['tokens_per_pass']:>12.2f}{row['speedup']:>8.2f}x{agreement:>11}"
            f"  {row['promised']}, {found}",
            flush=True,
        )
        assert row["exact"] or row["promised"] != "exact", f"{system.name}: not the target's answers"
        told[system.name if not temperature else f"{system.name} at {temperature}"] = row
    return told


if __name__ == "__main__":
    main()
