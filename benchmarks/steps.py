"""What does one step of each level cost, by its rows and tokens? The ratio decides what a cascade can gain.

    python -m benchmarks.steps [--rounds N] [--context N] [--rows N ...]

`Decoder.extend` on rows of the bundled family (or any recipe, --set): 1 token a row is a decode step, 5 and 9 verify 4
and 8 drafts. Rows are ragged: each holds one position more than the one before it. One thread; levels take turns
within a round; medians. Ends in one JSON line: "ms" and "ratio" are of one row, "ms_by_rows" of each number of rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import replace

import torch

from cascade_runtime.config import SamplingParams, load_recipe
from cascade_runtime.decoding.decoder import Extension, PromptEmbeds, Row
from cascade_runtime.decoding.level import Level

TOKENS = (1, 5, 9)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1, 4, 16], help="rows in one pass; 1 is always measured"
    )
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE")
    args = parser.parse_args()
    if min(args.rows) < 1:
        parser.error(f"--rows: {min(args.rows)} is not a number of rows, 1 or more")
    torch.set_num_threads(1)
    batches = sorted({1, *args.rows})
    recipe = load_recipe("three_level", args.set)
    cascade = replace(recipe.cascade, slots=max(recipe.cascade.slots, *batches))
    levels = [Level.load(stage, cascade) for stage in recipe.stages]
    rows = {level.name: [_row(level, args.context + i) for i in range(batches[-1])] for level in levels}
    times: dict[str, dict[int, dict[int, list[float]]]] = {
        level.name: {batch: {count: [] for count in TOKENS} for batch in batches} for level in levels
    }
    for _ in range(args.rounds + 2):
        for level in levels:
            for batch, each in times[level.name].items():
                for count, taken in each.items():
                    taken.append(_step_ms(level, rows[level.name][:batch], count))
    medians = {
        name: {
            batch: {count: statistics.median(taken[2:]) for count, taken in each.items()}
            for batch, each in by_batch.items()
        }
        for name, by_batch in times.items()
    }
    print(
        f"{platform.machine()}, {os.cpu_count()} cores; torch {torch.__version__}; one thread, context {args.context}"
    )
    print(
        f"{'ms per pass':<12}{'rows':>6}" + "".join(f"{count:>4} token{'s' if count > 1 else ' '}" for count in TOKENS)
    )
    for name, by_batch in medians.items():
        for batch, each in by_batch.items():
            print(f"{name:<12}{batch:>6}" + "".join(f"{each[count]:>11.2f}" for count in TOKENS))
    base = medians[levels[0].name][1][1]
    ratio = [round(medians[level.name][1][1] / base, 2) for level in reversed(levels)]
    print(f"ratio of one-row, one-token steps, heaviest first: {' : '.join(map(str, ratio))}")
    one = {name: by_batch[1] for name, by_batch in medians.items()}
    print(json.dumps({"ms": one, "ratio": ratio, "ms_by_rows": medians}))


def _row(level: Level, context: int) -> Row:
    """A row whose prompt is `context` positions of small noise."""
    embeds = torch.randn(context, level.model.language.hidden_size) * 0.02
    return level.decoder.admit(PromptEmbeds(embeds, torch.arange(context), context), SamplingParams(max_tokens=64))


def _step_ms(level: Level, rows: list[Row], count: int) -> float:
    """One pass that feeds `count` tokens to every row, after one that rolls them back to where they stood."""
    level.decoder.extend([Extension(row, [1]) for row in rows])
    step = [Extension(row, [1, 2], [3] * (count - 1)) for row in rows]
    start = time.perf_counter()
    level.decoder.extend(step)
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
