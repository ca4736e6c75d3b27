"""What does one step of each level cost, by how many tokens it feeds? The ratio decides what a cascade can gain.

    python -m benchmarks.steps [--rounds N] [--context N]

`Decoder.extend` on one row of the bundled family (or any recipe, --set): 1 token is a decode step, 5 and 9 verify 4
and 8 drafts. One thread; levels take turns within a round; medians. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time

import torch

from cascade_runtime.config import SamplingParams, load_recipe
from cascade_runtime.decoding.decoder import Extension, PromptEmbeds
from cascade_runtime.decoding.level import Level

TOKENS = (1, 5, 9)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe("three_level", args.set)
    levels = [Level.load(stage, recipe.cascade) for stage in recipe.stages]
    times: dict[str, dict[int, list[float]]] = {level.name: {count: [] for count in TOKENS} for level in levels}
    rows = []
    for level in levels:
        hidden = level.model.language.hidden_size
        prompt = PromptEmbeds(torch.randn(args.context, hidden) * 0.02, torch.arange(args.context), args.context)
        rows.append(level.decoder.admit(prompt, SamplingParams(max_tokens=64)))
    for _ in range(args.rounds + 2):
        for level, row in zip(levels, rows, strict=True):
            for count in TOKENS:
                level.decoder.extend([Extension(row, [1])])
                start = time.perf_counter()
                level.decoder.extend([Extension(row, [1, 2], [3] * (count - 1))])
                times[level.name][count].append(1000 * (time.perf_counter() - start))
    medians = {
        name: {count: statistics.median(values[2:]) for count, values in each.items()} for name, each in times.items()
    }
    print(
        f"{platform.machine()}, {os.cpu_count()} cores; torch {torch.__version__}; one thread, context {args.context}"
    )
    print(f"{'ms per pass':<12}" + "".join(f"{count:>4} token{'s' if count > 1 else ' '}" for count in TOKENS))
    for name, each in medians.items():
        print(f"{name:<12}" + "".join(f"{each[count]:>11.2f}" for count in TOKENS))
    base = medians[levels[0].name][1]
    ratio = [round(medians[level.name][1] / base, 2) for level in reversed(levels)]
    print(f"ratio of one-token steps, heaviest first: {' : '.join(map(str, ratio))}")
    print(json.dumps({"ms": medians, "ratio": ratio}))


if __name__ == "__main__":
    main()
