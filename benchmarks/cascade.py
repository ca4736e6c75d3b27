"""How fast is the cascade, beside its own target and beside the library's own decoding, on the same checkpoints?

    python -m benchmarks.cascade [--scenes N] [--rounds N] [--no-ray] [--set stages.light.checkpoint=...]

Every contestant answers the same questions, each about another simulated scene, greedily, turn about, in one run:
transformers `generate` and assisted generation (light drafts for heavy; it drafts without seeing the video), the
target alone, light->heavy and light->mid->heavy, in one process and as Ray stages. All answers of a question must
have the same token ids, else the benchmark says so and fails. One thread per model; Ray stages overlap, so they use
as many cores as there are. Medians over questions and rounds. Time is the caller's, from the question (recording in
memory) to the whole answer; TTFT is what the answer reports, from the request's arrival.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cascade_runtime.api import Answer
from cascade_runtime.client import CascadeClient
from cascade_runtime.config import Recipe, SamplingParams, load_recipe
from cascade_runtime.events import Events
from cascade_runtime.events.representations.window import render
from cascade_runtime.metrics import EdgeCounters, merge_edges
from cascade_runtime.models import load_checkpoint
from cascade_runtime.models.stage_source import checkpoint_path
from cascade_runtime.training.scenes import simulate_scene
from cluster.launch import FOREGROUND

QUESTIONS = (
    "What are the key elements in this scene?",
    "What is happening in this recording?",
    "Which way is it moving?",
    "How high is the event rate?",
)
SAMPLING = SamplingParams(max_tokens=96)
FIRST_SCENE = 5_000_000  # far from the seeds of training


@dataclass(frozen=True)
class Run:
    """One answer of one contestant."""

    tokens: tuple[int, ...]
    total_s: float
    ttft_s: float | None
    edges: tuple[EdgeCounters, ...] = ()


@dataclass
class Contestant:
    """A way to answer; `runs` by question."""

    name: str
    ask: Callable[[Events, str], Run]
    runs: dict[int, list[Run]] = field(default_factory=dict)

    def tokens_per_s(self) -> float:
        """Median over questions and rounds."""
        return statistics.median(len(run.tokens) / run.total_s for runs in self.runs.values() for run in runs)

    def ttft_ms(self) -> float | None:
        times = [1000 * run.ttft_s for runs in self.runs.values() for run in runs if run.ttft_s is not None]
        return statistics.median(times) if times else None

    def edges(self) -> dict[str, EdgeCounters]:
        """Each edge's counters, summed over everything."""
        return merge_edges(edge for runs in self.runs.values() for run in runs for edge in run.edges)


def _asker(client: CascadeClient, speculate: bool) -> Callable[[Events, str], Run]:
    def ask(events: Events, question: str) -> Run:
        start = time.perf_counter()  # the caller's clock, as for the library: everything between question and answer
        answer = client.generate(events, question, sampling=SAMPLING, speculate=speculate)
        total_s = time.perf_counter() - start
        assert isinstance(answer, Answer)
        return Run(answer.token_ids, total_s, answer.timings.ttft_ms / 1000, answer.edges)

    return ask


def library(recipe: Recipe, drafter: str | None) -> Contestant:
    """The library's own class and `generate` on the target's directory, given the very same pixels and prompt."""
    from transformers import LlavaOnevisionForConditionalGeneration as Onevision

    path = checkpoint_path(recipe.target)
    front = load_checkpoint(path, parts=("projector",))
    model = Onevision.from_pretrained(path, dtype=torch.float32, local_files_only=True).eval()
    extra: dict[str, Any] = {}
    if drafter is not None:
        light = checkpoint_path(recipe.stage(drafter))
        assistant = Onevision.from_pretrained(light, dtype=torch.float32, local_files_only=True).eval()
        assistant.resize_token_embeddings(model.get_input_embeddings().num_embeddings)  # it refuses unequal rows
        extra["assistant_model"] = assistant

    @torch.inference_mode()
    def ask(events: Events, question: str) -> Run:
        start = time.perf_counter()
        rule, options = front.pixels.event_representation
        window = events.densest_window(100_000) if events.duration_us >= 100_000 else events
        pixels = front.pixels(render(window, rule, options))
        prompt = front.prompts.build(question, num_visual=None, frames=pixels.frames)
        out = model.generate(
            input_ids=prompt.input_ids[None],
            attention_mask=torch.ones_like(prompt.input_ids[None]),
            pixel_values_videos=pixels.values[None],
            do_sample=False,
            max_new_tokens=SAMPLING.max_tokens,
            **extra,
        )
        return Run(tuple(out[0, len(prompt.input_ids) :].tolist()), time.perf_counter() - start, None)

    return Contestant(f"transformers {'assisted (' + drafter + ')' if drafter else 'generate'}", ask)


def contestants(recipe: Recipe, use_ray: bool, stack: ExitStack) -> Iterator[Contestant]:
    """Everyone, loaded."""
    light, target = recipe.cascade.levels[0], recipe.cascade.levels[-1]
    two = without_middle(recipe)
    yield library(recipe, None)
    yield library(recipe, light)
    for where, label in (("in-process", "in process"), ("ray", "on Ray")):
        if where == "ray" and not use_ray:
            continue
        three = stack.enter_context(CascadeClient(target=where, recipe=recipe))
        yield Contestant(f"{target} alone, {label}", _asker(three, False))
        two_levels = stack.enter_context(CascadeClient(target=where, recipe=two))
        yield Contestant(f"{light}->{target}, {label}", _asker(two_levels, True))
        yield Contestant(f"{'->'.join(recipe.cascade.levels)}, {label}", _asker(three, True))


def _room_for_two_pipelines() -> Callable[[], None]:
    """A local Ray whose books have room for both pipelines at once; threads per stage are the recipe's all the same."""
    import ray

    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=32, _system_config=FOREGROUND, **quiet)
    return ray.shutdown


def without_middle(recipe: Recipe) -> Recipe:
    """The recipe with its lightest and heaviest level only."""
    cascade = recipe.cascade
    levels = (cascade.levels[0], cascade.levels[-1])
    two = replace(cascade, levels=levels, num_draft_tokens=(cascade.num_draft_tokens[0],))
    return replace(recipe, cascade=two, stages=(recipe.stages[0], recipe.stages[-1]))


def compete(everyone: Sequence[Contestant], tasks: Sequence[tuple[Events, str]], rounds: int) -> bool:
    """All tasks, turn about, after one task to warm up. Whether all answers of each task were the same."""
    for contestant in everyone:
        contestant.ask(*tasks[0])
    same = True
    for index, (events, question) in enumerate(tasks):
        for _ in range(rounds):
            for contestant in everyone:
                contestant.runs.setdefault(index, []).append(contestant.ask(events, question))
        said = {run.tokens for contestant in everyone for run in contestant.runs[index]}
        if len(said) > 1:
            same = False
            print(f"task {index} ({question}): {len(said)} different answers")
    return same


def main() -> None:
    """Run, print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE")
    args = parser.parse_args()
    recipe = load_recipe("three_level", args.set)
    torch.set_num_threads(1)
    scenes = [simulate_scene(FIRST_SCENE + seed).events for seed in range(args.scenes)]
    tasks = [(events, QUESTIONS[i % len(QUESTIONS)]) for i, events in enumerate(scenes)]
    with ExitStack() as stack:
        if not args.no_ray:
            stack.callback(_room_for_two_pipelines())
        everyone = list(contestants(recipe, not args.no_ray, stack))
        same = compete(everyone, tasks, args.rounds)
    report(everyone, recipe, len(tasks), args.rounds, same)


def report(everyone: Sequence[Contestant], recipe: Recipe, tasks: int, rounds: int, same: bool) -> None:
    """The table, and the JSON line last."""
    import transformers

    machine = f"{os.cpu_count()} CPU cores, {platform.machine()}"
    print(
        f"\n{machine}; torch {torch.__version__}, transformers {transformers.__version__}; one thread per model; fp32"
    )
    print(f"{tasks} questions x {rounds} rounds, greedy; num_draft_tokens {recipe.cascade.num_draft_tokens}")
    base = everyone[0].tokens_per_s()
    print(f"\n{'':<34}{'tokens/s':>9}{'vs generate':>13}{'TTFT ms':>9}  mean acceptance length, hazard per position")
    rows = {}
    for one in everyone:
        ttft = one.ttft_ms()
        edges = {name: edge for name, edge in one.edges().items() if edge.num_drafts}
        told = "; ".join(
            f"{name} {edge.mean_acceptance_length:.2f} [{' '.join(f'{h:.2f}' for h in edge.acceptance_hazard_per_pos)}]"
            for name, edge in edges.items()
        )
        print(
            f"{one.name:<34}{one.tokens_per_s():>9.1f}{one.tokens_per_s() / base:>12.2f}x"
            f"{'-' if ttft is None else format(ttft, '.0f'):>9}  {told}"
        )
        rows[one.name] = {
            "tokens_per_s": round(one.tokens_per_s(), 2),
            "ttft_ms": ttft and round(ttft, 1),
            "edges": [edge.to_dict() for edge in edges.values()],
        }
    print("\nall answers identical" if same else "\nANSWERS DIFFER")
    print(json.dumps({"machine": machine, "identical": same, "rows": rows}))
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
