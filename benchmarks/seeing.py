"""What does a drafter lose by seeing less, and what does it save? (`sees` of a stage, `cascade_runtime/config/sees.py`)

    python -m benchmarks.seeing [--quick] [--scenes N] [--drafter light]

agreement   light -> heavy on held-out simulated scenes (32 patches and a newline): how many of heavy's greedy tokens
            the drafter chooses itself, tokens per pass of heavy, and what a prompt costs the drafter. The recipes of
            this folder that stand for published systems are among the rows, and every answer of every row is compared
            with heavy's own. `placed` and `closed up`: agreement with the position ids of the whole prompt, and with
            ids that count what is left.
length      what a long video costs a drafter of that shape: 392 frames of 16 patches and a newline, 6,273 positions
            (as many as 32 frames of LLaVA-OneVision), features of noise. Prefill (what is needed to choose patches
            included), a step after it, and memory of keys and values.

One thread, one process, medians; ends in one JSON line. Exits with 1 if any answer is not heavy's own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, SamplingParams, Sees, load_recipe
from cascade_runtime.decoding.attention_scores import attention_scores
from cascade_runtime.decoding.level import Level
from cascade_runtime.decoding.row import Extension, PromptEmbeds, Row
from cascade_runtime.decoding.sight import Sight
from cascade_runtime.engine import Engine
from cascade_runtime.errors import ConfigError
from cascade_runtime.events.cell_counts import CELLS
from cascade_runtime.models.prompts import Prompt
from cascade_runtime.training.questions import WORDINGS
from cascade_runtime.training.scenes import simulate_scene
from cascade_runtime.vision.features import VisualFeatures

RECIPES = Path(__file__).parent / "recipes" / "seeing"
FIRST_SCENE = 6_000_000  # far from the seeds of training
SAMPLING = SamplingParams(max_tokens=96)
KEPT = (16, 32, 64, 128)
SHORT = (4, 8, 16, 24)
LONG_FRAMES, PATCHES = 392, 64  # before the projector pools them to 16
METHODS = ("events", "uniform", "attention")


@dataclass
class Tally:
    """What one row of the first table adds up."""

    sees: str
    visual: int = 0
    positions: list[int] = field(default_factory=list)
    tokens: int = 0
    agreed: int = 0
    agreed_closed: int = 0
    answer_tokens: int = 0
    passes: int = 0
    prefill_ms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few scenes, one round")
    parser.add_argument("--scenes", type=int, default=None)
    parser.add_argument("--drafter", default="light", choices=("light", "mid"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    scenes = args.scenes or (4 if args.quick else 40)
    base = load_recipe("light_heavy", [f"stages.light.checkpoint=family:{args.drafter}", "stages.light.sees=events:8"])
    engine = Engine.load(base)
    rows, same = agreement(engine, base, scenes)
    lengths = length(base, 1 if args.quick else 5)
    print(json.dumps({"drafter": args.drafter, "scenes": scenes, "identical": same, "rows": rows, "length": lengths}))
    if not same:
        raise SystemExit(1)


# -- agreement -----------------------------------------------------------------------------------------------------


class _Placeholders(Level):
    """What a drafter gets that is handed the prompt's token ids and no video: the video token, again and again."""

    def prompt(self, question: str, features: VisualFeatures) -> PromptEmbeds:
        """The whole prompt."""
        whole = self.model.prompts.build(question, num_visual=None, frames=features.frames, grid=features.grid)
        return PromptEmbeds(
            self.model.language.embed(whole.input_ids.tolist()), whole.position_ids, whole.next_position
        )


def drafters(base: Recipe, target: Level, asked: list[VisualFeatures]) -> Iterator[tuple[str, Level]]:
    """Every row's drafter: the recipes first, then by how many patches stay. asked: the target's features of the
    question at hand, last.
    """
    yield "all", Level.load(replace(base.stages[0], sees="all"), base.cascade)
    for path in sorted(RECIPES.glob("*.toml")):
        recipe = load_recipe(path)
        stage = replace(recipe.stages[0], checkpoint=base.stages[0].checkpoint)
        yield f"{recipe.name} ({stage.sees})", Level.load(stage, base.cascade)
    level = Level.load(replace(base.stages[0], sees="all"), base.cascade)
    yield "video tokens without a video", _Placeholders(level.name, level.model, level.decoder)
    for keep in SHORT:
        for method in METHODS:
            sees = f"{method}:{keep}"
            yield sees, Level.load(replace(base.stages[0], sees=sees), base.cascade)
        level = Level.load(replace(base.stages[0], sees="all"), base.cascade)
        level.sight = Sight(Sees.parse(f"attention:{keep}"), level.model, scores=_scores_of(target, asked))
        yield f"attention:{keep} of heavy", level
    for sees in ("pool:4", "pool:16", "conv", "resampler"):
        try:
            yield sees, Level.load(replace(base.stages[0], sees=sees), base.cascade)
        except ConfigError as error:
            print(f"without {sees}: {error}")


def _scores_of(target: Level, asked: list[VisualFeatures]) -> Any:
    """Attention of the target instead of the drafter: what verifier-guided pruning reads."""

    def scores(prompt: Prompt, embeds: torch.Tensor) -> torch.Tensor:
        own = target.model.embed_prompt(prompt, target.model.projector.project(asked[-1].tensor()))
        first = int(prompt.visual_mask.nonzero()[-1]) + 1
        return attention_scores(target.model.language, own, prompt.position_ids, first)

    return scores


def agreement(engine: Engine, base: Recipe, scenes: int) -> tuple[dict[str, Any], bool]:
    """The first table: figures by row, and whether all answers were heavy's own."""
    target, asked, same = engine.levels[-1], list[VisualFeatures](), True
    everyone = dict(drafters(base, target, asked))
    tallies = {name: Tally(str(level.sight.sees) if level.sight else "all") for name, level in everyone.items()}
    wordings = [wording.questions[0] for wording in WORDINGS]
    for scene in range(scenes):
        events = simulate_scene(FIRST_SCENE + scene).events
        seen = engine.front_end.see(events)
        drafts = seen.features[0]
        assert drafts is not None
        asked[:] = [seen.for_target]
        for turn in range(3):
            question = wordings[(3 * scene + turn) % len(wordings)]
            request = GenerateRequest(events=events, question=question, sampling=SAMPLING)
            (alone,) = engine.generate([replace(request, speculate=False)])
            assert isinstance(alone, Answer), alone
            for name, level in everyone.items():
                _measure(tallies[name], level, question, drafts, alone.token_ids)
                engine.levels[0] = level
                (answer,) = engine.generate([request])
                assert isinstance(answer, Answer) and not answer.notes, answer
                tallies[name].answer_tokens += len(answer.token_ids)
                tallies[name].passes += answer.target_passes
                if answer.token_ids != alone.token_ids:
                    same = False
                    print(f"ANSWERS DIFFER: {name}, scene {scene}, {question}")
    return _table(tallies, everyone, scenes, same), same


def _measure(tally: Tally, level: Level, question: str, features: VisualFeatures, answer: Sequence[int]) -> None:
    """One question at one drafter: what it would say after each of the target's tokens, and what its prompt costs."""
    said = [*answer, level.ends[0]][: SAMPLING.max_tokens]
    start = time.perf_counter()
    prompt = level.prompt(question, features)
    row = level.decoder.admit(replace(prompt, prefix=""), SAMPLING)
    level.decoder.extend([Extension(row, [])])
    tally.prefill_ms.append(1000 * (time.perf_counter() - start))
    tally.agreed += _agreed(level, row, said)
    tally.tokens += len(said)
    tally.positions.append(len(prompt))
    tally.visual = _visual(prompt, level, question, features)
    start = time.perf_counter()
    level.decoder.extend([Extension(row, said)])
    tally.step_ms.append(1000 * (time.perf_counter() - start))
    level.decoder.release(row)
    closed = PromptEmbeds(prompt.embeds, torch.arange(len(prompt)), len(prompt))
    row = level.decoder.admit(closed, SAMPLING)
    tally.agreed_closed += _agreed(level, row, said)
    level.decoder.release(row)


def _agreed(level: Level, row: Row, said: Sequence[int]) -> int:
    (chosen,) = level.decoder.extend([Extension(row, [], said[:-1])])
    return sum(mine == theirs for mine, theirs in zip(chosen, said, strict=True))


def _visual(prompt: PromptEmbeds, level: Level, question: str, features: VisualFeatures) -> int:
    whole = level.model.prompts.build(question, num_visual=None, frames=features.frames, grid=features.grid)
    return len(prompt) - (len(whole.input_ids) - whole.num_visual)


def _table(tallies: dict[str, Tally], everyone: dict[str, Level], scenes: int, same: bool) -> dict[str, Any]:
    print(
        f"{scenes} scenes x 3 questions, greedy\n{'the drafter sees':<32}{'visual':>7}{'placed':>9}{'closed up':>11}"
        f"{'tokens/pass':>13}{'prefill ms':>12}{'step ms':>9}{'KV kB':>8}"
    )
    out = {}
    for name, tally in tallies.items():
        per_token = everyone[name].model.language.kv_bytes_per_token
        row = {
            "visual": tally.visual,
            "agreement": round(tally.agreed / tally.tokens, 4),
            "agreement_closed_up": round(tally.agreed_closed / tally.tokens, 4),
            "tokens_per_pass": round(tally.answer_tokens / tally.passes, 2),
            "prefill_ms": round(statistics.median(tally.prefill_ms), 2),
            "step_ms": round(statistics.median(tally.step_ms), 2),
            "kv_kb": round(statistics.median(tally.positions) * per_token / 1000, 1),
        }
        print(
            f"{name:<32}{row['visual']:>7}{100 * row['agreement']:>8.1f}%{100 * row['agreement_closed_up']:>10.1f}%"
            f"{row['tokens_per_pass']:>13.2f}{row['prefill_ms']:>12.2f}{row['step_ms']:>9.2f}{row['kv_kb']:>8.1f}"
        )
        out[name] = row
    print("all answers identical to heavy's own\n" if same else "ANSWERS DIFFER\n")
    return out


# -- length --------------------------------------------------------------------------------------------------------


def length(base: Recipe, rounds: int) -> dict[str, Any]:
    """The second table."""
    level = Level.load(replace(base.stages[0], sees="all"), replace(base.cascade, slots=1, max_len=32))
    language, size = level.model.language, level.model.projector.feature_size
    language.max_positions = 8192  # more than it was trained on: its arithmetic is what counts here
    rng = np.random.default_rng(0)
    data = rng.normal(size=(LONG_FRAMES, PATCHES, size)).astype(np.float32)
    density = rng.integers(0, 9, (LONG_FRAMES, CELLS, CELLS)).astype(np.float32)
    features = VisualFeatures(data, level.space, ("dense",), "00", density=density)
    level.decoder = type(level.decoder)(language, slots=1, max_len=6400)
    question = WORDINGS[0].questions[0]
    print(
        f"{LONG_FRAMES * 16 + 1} visual positions of noise\n{'the drafter sees':<20}{'positions':>10}"
        f"{'prefill ms':>12}{'step ms':>9}{'KV MB':>8}"
    )
    every = ["all", *(f"{m}:{k}" for m in METHODS for k in KEPT), "uniform:10%", "pool:4", "pool:16", "text"]
    out = {}
    for sees in every:
        chosen = Sees.parse(sees)
        level.sight = None if sees == "all" else Sight(chosen, level.model)
        prefills, steps, positions = [], [], 0
        for _ in range(rounds):
            start = time.perf_counter()
            row = level.decoder.admit(replace(level.prompt(question, features), prefix=""), SAMPLING)
            said = level.decoder.extend([Extension(row, [])])[0]
            prefills.append(1000 * (time.perf_counter() - start))
            positions = len(row.prompt)
            for _ in range(16):
                start = time.perf_counter()
                said += level.decoder.extend([Extension(row, said)])[0]
                steps.append(1000 * (time.perf_counter() - start))
            level.decoder.release(row)
        memory = positions * language.kv_bytes_per_token / 1e6
        prefill, step = statistics.median(prefills), statistics.median(steps)
        print(f"{sees:<20}{positions:>10}{prefill:>12.1f}{step:>9.2f}{memory:>8.2f}", flush=True)
        out[sees] = {"positions": positions, "prefill_ms": round(prefill, 1), "step_ms": round(step, 2)}
        out[sees]["kv_mb"] = round(memory, 2)
    return out


if __name__ == "__main__":
    main()
