"""What does a drafter without weights bring, as answers pile up? (`cascade_runtime/decoding/lookup.py`)

    python -m benchmarks.lookup [--scenes N] [--set ...]

The same six questions about one simulated scene after another, greedy, each scene new: tokens per pass of heavy and
tokens per second, by how many scenes were asked about before, for lookup -> heavy, light -> heavy and heavy alone, turn
about for every question, in one process on one thread. `again` asks about the last scenes once more. Answers are
compared. One JSON line last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence

import torch

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import SamplingParams, load_recipe
from cascade_runtime.engine import Engine
from cascade_runtime.training.questions import WORDINGS
from cascade_runtime.training.scenes import simulate_scene

BLOCK = 8  # scenes of a row of the table
Told = dict[str, list[tuple[int, int, float]]]  # by cascade: tokens, passes, seconds of each question


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=32)
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    engines = {name: Engine.load(load_recipe(name, args.set)) for name in ("lookup_heavy", "light_heavy", "heavy")}
    questions = [wording.questions[0] for wording in WORDINGS][:6]
    print(
        f"{len(questions)} questions a scene; tokens per pass of heavy, tokens/s\n{'':<22}"
        + "".join(f"{n:>22}" for n in engines)
    )
    result: dict[str, dict[str, float]] = {}
    blocks = [(f"scenes {at} to {at + BLOCK - 1}", range(at, at + BLOCK)) for at in range(0, args.scenes, BLOCK)]
    for name, seeds in [*blocks, ("again", blocks[-1][1])]:
        result[name] = _row(name, _ask(engines, questions, [1000 + seed for seed in seeds]))
    print(json.dumps(result))


def _ask(engines: dict[str, Engine], questions: Sequence[str], seeds: Sequence[int]) -> Told:
    told: Told = {name: [] for name in engines}
    for seed in seeds:
        events = simulate_scene(seed=seed).events
        for question in questions:
            request, said = (
                GenerateRequest(events=events, question=question, sampling=SamplingParams(max_tokens=96)),
                set(),
            )
            for name, engine in engines.items():
                start = time.perf_counter()
                (answer,) = engine.generate([request])
                seconds = time.perf_counter() - start
                assert isinstance(answer, Answer), answer
                told[name].append((len(answer.token_ids), answer.target_passes, seconds))
                said.add(answer.token_ids)
            assert len(said) == 1, (seed, question)
    return told


def _row(title: str, told: Told) -> dict[str, float]:
    found, cells = {}, []
    for name, asked in told.items():
        per_pass = sum(tokens for tokens, _, _ in asked) / sum(passes for _, passes, _ in asked)
        rate = statistics.median(tokens / seconds for tokens, _, seconds in asked)
        found |= {f"{name}_tokens_per_pass": round(per_pass, 2), f"{name}_tokens_per_s": round(rate, 1)}
        cells.append(f"{per_pass:>12.2f}{rate:>10.1f}")
    print(f"{title:<22}{''.join(cells)}", flush=True)
    return found


if __name__ == "__main__":
    main()
