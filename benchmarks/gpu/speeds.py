"""Cascades of the bundled family beside the target alone, all on one device, turn about."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from benchmarks.gpu.answers import say
from benchmarks.gpu.one_device import Sent, at_once, launched, on_device, row, send
from benchmarks.pipeline.run import requests

ALONE = "heavy"


def speed(args: argparse.Namespace, told: dict[str, Any]) -> None:
    """Tokens per second, time to the first token and per token; medians of rounds, ratios of neighbours in time."""
    names = ("light_heavy", ALONE) if args.toy else ("three_level", "light_heavy", ALONE)
    share = 1 / len(names)
    with launched({name: on_device(name, args.device, args.dtype, share) for name in names}, at_once(args)) as up:
        for streams in (1, 8):
            work = requests(args.questions * streams, args.max_tokens)
            runs: dict[str, list[Sent]] = {name: [] for name in names}
            for name in names:  # shapes are captured as they come up
                first, again = (send(up[name], work, streams).tokens_per_s for _ in range(2))
                say(f"  {name}, {streams} streams, warming: {first:.0f}, then {again:.0f} tokens/s")
                told[f"{name}, {streams}, first run"] = round(first, 1)
            for number in range(args.rounds):
                if number and time.perf_counter() > args.end:
                    break
                for name in names:
                    runs[name].append(send(up[name], work, streams))
            for name in names:
                told[f"{name}, {streams}"] = row(f"{name}, {streams} streams", runs[name])
                pairs = zip(runs[name], runs[ALONE], strict=True)
                ratio = statistics.median(mine.tokens_per_s / alone.tokens_per_s for mine, alone in pairs)
                told[f"{name}, {streams}"]["vs_alone"] = round(ratio, 3)
                if name != ALONE:
                    say(f"    {ratio:.3f} of the target alone")
        told["decided"] = {name: _decisions(up[name]) for name in names}
        say(f"  decided: {told['decided']}")


def _decisions(pipeline: Any) -> dict[str, Any]:
    return {name: pipeline.stats()[name].get("decision") for name in pipeline.recipe.cascade.levels[1:]}
