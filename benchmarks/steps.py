"""What does one step of each level cost, by its rows and tokens? The ratio decides what a cascade can gain.

    python -m benchmarks.steps [--rounds N] [--context N] [--rows N ...] [--products]

`Decoder.extend` on rows of the bundled family (or any recipe, --set): 1 token a row is a decode step, 5 and 9 verify 4
and 8 drafts. Rows are ragged: each holds one position more than the one before it. One thread; levels take turns
within a round; medians.

Beside each stands its share of the roofline (Williams et al. 2009): the time that the bytes of weights and KV it
must read take at the bandwidth measured here, or its operations at the rate measured here, whichever is longer, over
the time it took. Bandwidth is that of summing tensors of the model's own sizes, 256 MB in all; the rate that of a
large matrix product.

--products: heavy's four matrix products of a block in the library's order and in the one they are kept in.

Ends in one JSON line: "ms" and "ratio" are of one row, "ms_by_rows" of each number of rows, "roofline_share" likewise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.nn import functional as F

from cascade_runtime.config import SamplingParams, load_recipe
from cascade_runtime.decoding.level import Level
from cascade_runtime.decoding.row import Extension, PromptEmbeds, Row

TOKENS = (1, 5, 9)
SIZES = (1, 2, 5, 9, 16, 33, 100)  # rows of a product


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1, 4, 16], help="rows in one pass; 1 is always measured"
    )
    parser.add_argument("--products", action="store_true")
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
    bandwidth, rate = _bandwidth(), _rate()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores; torch {torch.__version__}; one thread, context {args.context}; "
        f"reads {bandwidth / 1e9:.1f} GB/s, multiplies {rate / 1e9:.0f} GFLOP/s"
    )
    print(f"{'ms per pass (share of the roofline)':<36}" + "".join(f"{count:>4} per row {'':<6}" for count in TOKENS))
    shares: dict[str, dict[int, dict[int, float]]] = {}
    for level in levels:
        for batch, each in medians[level.name].items():
            limits = {n: _limit_ms(level, batch, n, args.context, bandwidth, rate) for n in TOKENS}
            share = {n: round(limits[n] / each[n], 3) for n in TOKENS}
            shares.setdefault(level.name, {})[batch] = share
            print(
                f"{level.name:<12}{batch:>6} rows{'':<13}"
                + "".join(f"{each[n]:>9.2f} ({share[n]:.2f})  " for n in TOKENS)
            )
    if args.products:
        _products(levels[-1])
    base = medians[levels[0].name][1][1]
    ratio = [round(medians[level.name][1][1] / base, 2) for level in reversed(levels)]
    print(f"ratio of one-row, one-token steps, heaviest first: {' : '.join(map(str, ratio))}")
    one = {name: by_batch[1] for name, by_batch in medians.items()}
    print(json.dumps({"ms": one, "ratio": ratio, "ms_by_rows": medians, "roofline_share": shares}))


def _row(level: Level, context: int) -> Row:
    """A row whose prompt is `context` positions of small noise."""
    embeds = torch.randn(context, level.model.language.hidden_size) * 0.02
    return level.decoder.admit(PromptEmbeds(embeds, torch.arange(context), context), SamplingParams(max_tokens=64))


def _bandwidth() -> float:
    """Bytes per second that one thread reads, 1.5 MB at a time."""
    parts = [torch.ones(393_216) for _ in range(170)]
    return sum(part.nbytes for part in parts) / _best_s(lambda: [part.sum() for part in parts])


def _rate() -> float:
    """Operations per second of one thread in a product of 512 x 1024 by 1024 x 1024."""
    a, b = torch.randn(512, 1024), torch.randn(1024, 1024)
    return 2 * 512 * 1024 * 1024 / _best_s(lambda: a @ b)


def _best_s(work: Callable[[], object], times: int = 7) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _limit_ms(level: Level, rows: int, count: int, context: int, bandwidth: float, rate: float) -> float:
    """The roofline: what a pass must read and compute at the least."""
    language = level.model.language
    head = language.vocab_size * language.hidden_size
    weights = sum(block.nbytes for block in language.blocks) // 4 + head
    held = sum(context + i + 1 + count for i in range(rows))
    read = 4 * weights + held * language.kv_bytes_per_token
    attention = 4 * language.num_layers * language.heads * language.head_dim * held * count
    return 1000 * max(read / bandwidth, (2 * weights * rows * count + attention) / rate)


def _products(level: Level) -> None:
    """A block's four products over all blocks, in both orders."""
    print(f"\n{level.name}'s products, all blocks, ms" + "".join(f"{n:>8}" for n in SIZES))
    blocks = level.model.language.blocks
    kinds = ("query_key_value", "out", "gate_up", "down")
    stored = {kind: [getattr(block, kind).weight.contiguous() for block in blocks] for kind in kinds}
    for name in ("stored order", "kept order"):
        taken = []
        for n in SIZES:
            x = {kind: torch.randn(n, stored[kind][0].shape[1]) for kind in kinds}
            if name == "stored order":
                work = lambda x=x: [F.linear(x[kind], weight) for kind in kinds for weight in stored[kind]]  # noqa: E731
            else:
                work = lambda x=x: [getattr(block, kind)(x[kind]) for kind in kinds for block in blocks]  # noqa: E731
            taken.append(1000 * _best_s(work))
        print(f"  {name:<27}" + "".join(f"{ms:>8.2f}" for ms in taken))


def _step_ms(level: Level, rows: list[Row], count: int) -> float:
    """One pass that feeds `count` tokens to every row, after one that rolls them back to where they stood."""
    level.decoder.extend([Extension(row, [1]) for row in rows])
    step = [Extension(row, [1, 2], [3] * (count - 1)) for row in rows]
    start = time.perf_counter()
    level.decoder.extend(step)
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
