"""How many tokens does a pass of the target bring, by the rule of acceptance? (`cascade_runtime/decoding/acceptance`)

    python -m benchmarks.acceptance [--scenes N] [--seeds N] [--temperature T] [--rules a,b,...] [--set ...]
    python -m benchmarks.acceptance --rules ratio,lossy_fuzzy,lossy_typical,lossy_cascade_opt

Questions about simulated scenes that training never drew, each sampled with several seeds, light -> heavy and
light -> mid -> heavy, in one process, in rounds. The default, shared noise, needs no laws on the wire; the ratio rule
keeps as many drafts as any rule can that gives the target's law position by position: the table shows what the former
costs. Answers under different rules are different draws, so figures carry a standard error, by jackknife over answers.
`--rules` takes lossy rules as well; theirs are not the target's answers. Nothing here is a time. One JSON line last.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence

import torch

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import SamplingParams, load_recipe
from cascade_runtime.engine import Engine
from cascade_runtime.metrics import merge_edges
from cascade_runtime.training.questions import WORDINGS
from cascade_runtime.training.scenes import simulate_scene

RECIPES = ("light_heavy", "three_level")
FIRST_SCENE = 6_000_000  # far from the seeds of training
REFERENCE = "ratio"
Counts = list[tuple[int, int]]  # per answer: tokens, passes of the target


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--rules", default="shared_noise,ratio")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    asked = questions(args.scenes, args.seeds, args.temperature)
    print(f"{len(asked)} answers a row, temperature {args.temperature}; tokens per pass of heavy, +- standard error")
    print(f"{'':<14}{'':<22}{'tokens/pass':>18}{'vs ratio':>18}  accepted per edge")
    rows = []
    for name in RECIPES:
        counts: dict[str, Counts] = {}
        for rule in sorted(args.rules.split(","), key=lambda rule: rule != REFERENCE):  # what is compared with, first
            engine = Engine.load(load_recipe(name, [*args.set, f"cascade.acceptance={rule}"]))
            answers = engine.generate(asked)
            counts[rule] = []
            for answer in answers:
                assert isinstance(answer, Answer), answer
                counts[rule].append((len(answer.token_ids), answer.target_passes))
            edges = merge_edges(edge for answer in answers if isinstance(answer, Answer) for edge in answer.edges)
            accepted = {edge.edge: round(edge.acceptance_rate, 3) for edge in edges.values()}
            rows.append(_row(name, rule, counts, accepted))
    print(json.dumps({"temperature": args.temperature, "answers": len(asked), "rows": rows}))


def questions(scenes: int, seeds: int, temperature: float) -> list[GenerateRequest]:
    """Six questions about each scene, each with several seeds."""
    made = []
    for scene in range(scenes):
        events = simulate_scene(FIRST_SCENE + scene).events
        for number, wording in enumerate(WORDINGS[:6]):
            for seed in range(seeds):
                sampling = SamplingParams(
                    temperature=temperature, seed=1000 * scene + 10 * number + seed, max_tokens=96
                )
                made.append(GenerateRequest(events=events, question=wording.questions[0], sampling=sampling))
    return made


def _row(name: str, rule: str, counts: dict[str, Counts], accepted: dict[str, float]) -> dict[str, object]:
    mine, other = counts[rule], counts.get(REFERENCE)
    rate, error = jackknife([mine])
    row: dict[str, object] = {"recipe": name, "rule": rule, "tokens_per_pass": round(rate, 3), "error": round(error, 3)}
    compared = ""
    if other is not None and rule != REFERENCE:
        times, times_error = jackknife([mine, other])
        row |= {"vs_ratio": round(times, 4), "vs_ratio_error": round(times_error, 4)}
        compared = f"{times:.3f} +- {times_error:.3f}"
    told = ", ".join(f"{edge} {share:.0%}" for edge, share in accepted.items())
    print(f"{name:<14}{rule:<22}{f'{rate:.2f} +- {error:.2f}':>18}{compared:>18}  {told}", flush=True)
    return row | {"accepted": accepted}


def jackknife(counts: Sequence[Counts]) -> tuple[float, float]:
    """Tokens per pass of the first, over that of the second if there is one, and its standard error."""
    size = len(counts[0])
    sums = [(sum(tokens for tokens, _ in each), sum(passes for _, passes in each)) for each in counts]

    def figure(without: int | None) -> float:
        rates = []
        for (tokens, passes), each in zip(sums, counts, strict=True):
            gone = (0, 0) if without is None else each[without]
            rates.append((tokens - gone[0]) / (passes - gone[1]))
        return rates[0] / rates[1] if len(rates) > 1 else rates[0]

    left_out = [figure(i) for i in range(size)]
    mean = sum(left_out) / size
    return figure(None), math.sqrt((size - 1) / size * sum((value - mean) ** 2 for value in left_out))


if __name__ == "__main__":
    main()
