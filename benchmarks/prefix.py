"""What does one prefix for many questions bring, and how long does a decode step wait for somebody's long prompt?

    python -m benchmarks.prefix [--rounds N] [--stage heavy] [--set ...]

questions   1, 4 and 16 questions about one recording at one level of the bundled family, prefilled and answered with 24
            tokens each, in one batch: with the prefix prefilled once and copied, and with a prefill for each question.
            Tokens are compared.
chunks      another request decodes while a prompt of 6,273 positions enters (32 frames of LLaVA-OneVision): its slowest
            step and the time until the prompt is in, by how many positions a pass may feed. Numbers of the prompt
            are noise.

One thread, medians of rounds; ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from typing import Any

import torch

from cascade_runtime.config import Recipe, SamplingParams, load_recipe
from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.level import Level
from cascade_runtime.decoding.row import Extension, PromptEmbeds
from cascade_runtime.engine import Engine
from cascade_runtime.training.questions import WORDINGS
from cascade_runtime.training.scenes import simulate_scene

TOKENS = 24
LONG = 6273
CHUNKS = (8192, 2048, 512, 128)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stage", default="heavy")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe("three_level", ["cascade.slots=16", *args.set])
    result = {"questions": _questions(recipe, args.stage, args.rounds), "chunks": _chunks(recipe, args.stage)}
    print(json.dumps(result))


def _questions(recipe: Recipe, stage: str, rounds: int) -> dict[str, Any]:
    engine = Engine.load(recipe)
    level = next(level for level in engine.levels if level.name == stage)
    asked = [question for wording in WORDINGS for question in wording.questions][:16]
    print(
        f"{stage}, questions about one recording, {TOKENS} tokens each\n"
        f"{'':<12}{'apart, ms':>12}{'shared, ms':>12}{'ratio':>8}"
    )
    out = {}
    for count in (1, 4, 16):
        taken: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(rounds + 1):
            seen = engine.front_end.see(simulate_scene(8_000_000 + turn).events).for_target
            said = []
            for shared in (False, True):
                prompts = [level.prompt(question, seen) for question in asked[:count]]
                seconds, tokens = _answer(level, prompts if shared else [replace(p, prefix="") for p in prompts])
                said.append(tokens)
                if turn:
                    taken[shared].append(seconds)
            if said[0] != said[1]:
                raise SystemExit("ANSWERS DIFFER")
        apart, shared_ms = (1000 * statistics.median(taken[shared]) for shared in (False, True))
        ratio = statistics.median(a / b for a, b in zip(taken[False], taken[True], strict=True))
        print(f"{count:<12}{apart:>12.1f}{shared_ms:>12.1f}{ratio:>7.2f}x")
        out[str(count)] = {"apart_ms": round(apart, 1), "shared_ms": round(shared_ms, 1), "ratio": round(ratio, 3)}
    return out


def _answer(level: Level, prompts: list[PromptEmbeds]) -> tuple[float, list[list[int]]]:
    """All prompts at once: the first goes ahead where the others will be given its prefix, as in a stage."""
    start = time.perf_counter()
    rows = [level.decoder.admit(prompt, SamplingParams(max_tokens=TOKENS)) for prompt in prompts]
    said: list[list[int]] = [[] for _ in rows]
    if prompts[0].prefix and len(rows) > 1:
        said[0] += level.decoder.extend([Extension(rows[0], [])])[0]
    while any(len(tokens) < TOKENS for tokens in said):
        short = [i for i, tokens in enumerate(said) if len(tokens) < TOKENS]
        for i, chosen in zip(short, level.decoder.extend([Extension(rows[i], said[i]) for i in short]), strict=True):
            said[i] += chosen
    seconds = time.perf_counter() - start
    for row in rows:
        level.decoder.release(row)
    return seconds, said


def _chunks(recipe: Recipe, stage: str) -> dict[str, Any]:
    language = Level.load(recipe.stage(stage), recipe.cascade).model.language
    language.max_positions = 2 * LONG  # more than the bundled family was trained on: its arithmetic is what counts here
    decoder, size = Decoder(language, slots=2, max_len=LONG + 64), language.hidden_size
    short, long = (
        PromptEmbeds(torch.randn(n, size, generator=torch.Generator().manual_seed(n)) * 0.02, torch.arange(n), n)
        for n in (64, LONG)
    )
    print(
        f"\n{stage}, a prompt of {LONG} positions enters\n"
        f"{'a pass feeds':<14}{'slowest step, ms':>18}{'prompt in, ms':>16}"
    )
    out = {}
    for chunk in CHUNKS:
        one = decoder.admit(short, SamplingParams(max_tokens=64))
        said = list(decoder.extend([Extension(one, [])])[0])
        other = decoder.admit(long, SamplingParams(max_tokens=8))
        steps = []
        while other.prompt_left:
            start = time.perf_counter()
            said += decoder.extend([Extension(one, said), Extension(other, [], prompt=chunk)])[0]
            steps.append(1000 * (time.perf_counter() - start))
        print(f"{chunk:<14}{max(steps):>18.1f}{sum(steps):>16.1f}", flush=True)
        out[str(chunk)] = {"slowest_step_ms": round(max(steps), 1), "prompt_in_ms": round(sum(steps), 1)}
        decoder.release(one)
        decoder.release(other)
    return out


if __name__ == "__main__":
    main()
