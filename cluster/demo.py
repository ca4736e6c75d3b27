"""`cascade demo`: one simulated scene, one question, the target alone and the cascade side by side.

Both answers come from the same running stages; "alone" is the same request with speculation off. They are timed turn
about, the medians are compared, and "identical" is printed only after the token ids were compared and are equal.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from cascade_runtime.api import Answer
from cascade_runtime.api.answer import legend
from cascade_runtime.client import CascadeClient
from cascade_runtime.config import Recipe
from cascade_runtime.events.picture import preview
from cascade_runtime.training.scenes import Scene, simulate_scene

QUESTION = "What are the key elements in this scene?"
ROUNDS = 5
_DIM, _BOLD, _RED, _OFF = "\x1b[2m", "\x1b[1m", "\x1b[31m", "\x1b[0m"


@dataclass(frozen=True)
class Comparison:
    """Answers of one question, turn about: the target alone and the cascade, ROUNDS of each."""

    alone: list[Answer]
    cascade: list[Answer]

    @property
    def identical(self) -> bool:
        """Whether every answer has the same token ids."""
        return len({answer.token_ids for answer in (*self.alone, *self.cascade)}) == 1

    @property
    def speedup(self) -> float:
        """Median time of the target alone over median time of the cascade, from request to last token."""
        return median_ms(self.alone) / median_ms(self.cascade)


def median_ms(answers: list[Answer]) -> float:
    """The median of the answers' total times."""
    return statistics.median(answer.timings.total_ms for answer in answers)


def compare(ask: Callable[[bool], Answer], rounds: int = ROUNDS) -> Comparison:
    """`ask(speculate)` once each to warm up, then turn about."""
    for speculate in (False, True):
        ask(speculate)
    alone, cascade = [], []
    for _ in range(rounds):
        alone.append(ask(False))
        cascade.append(ask(True))
    return Comparison(alone, cascade)


def run_demo(*, target: str, seed: int, question: str | None, recipe: Recipe, color: bool) -> int:
    """Show the demo on stdout, progress on stderr. Exit code 0 only if the answers were identical."""
    question = question or QUESTION
    scene = simulate_scene(seed)
    print(_paint(_BOLD, "A scene in front of a simulated event camera", color))
    print(_scene(scene, color))
    started = time.perf_counter()
    where = "five Ray stages" if target == "ray" else "this process"
    print(f"loading {', '.join(recipe.cascade.levels)} into {where} ...", file=sys.stderr, flush=True)
    with CascadeClient(target=target, recipe=recipe) as client:
        print(f"ready after {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
        print(f"\n{_paint(_BOLD, 'Q', color)}  {question}\n")

        def ask(speculate: bool) -> Answer:
            return client.generate(scene.events, question, speculate=speculate)

        comparison = compare(ask)
    print(_result(comparison, color))
    return 0 if comparison.identical else 1


def _scene(scene: Scene, color: bool) -> str:
    events, facts = scene.events, scene.facts
    told = [f"{name} {facts.name(name)}" for name in facts.names() if getattr(facts, name) >= 0]
    picture = [preview(events, 64)] if color else []
    size = f"{len(events):,} events in {events.duration_us / 1000:.0f} ms on {events.width} x {events.height} pixels"
    return "\n".join([*picture, size, _paint(_DIM, f"the simulator knows: {', '.join(told)}", color)])


def _result(comparison: Comparison, color: bool) -> str:
    alone, cascade = comparison.alone[0], comparison.cascade[0]
    lines = [
        _row(f"{alone.levels[-1]} alone", comparison.alone),
        f"    {alone.text}\n",
        _row("cascade", comparison.cascade),
        f"    {cascade.colored() if color else cascade.text}",
        *([f"    {_paint(_DIM, 'said first by', color)}  {legend(cascade.levels)}"] if color else []),
        "",
        _verdict(comparison, color),
    ]
    for edge in cascade.edges:
        lines.append(
            f"{edge.edge:<13} accepted {edge.num_accepted_tokens} of {edge.num_draft_tokens} draft tokens, "
            f"{edge.mean_acceptance_length:.1f} tokens a verified block"
        )
    if cascade.gate is not None:
        lines.append(f"gate          cosine per frame {cascade.gate['cosines']}: {cascade.gate['verdicts']}")
    return "\n".join([*lines, *(f"note: {note}" for note in cascade.notes)])


def _row(name: str, answers: list[Answer]) -> str:
    count, time_ms = len(answers[0].token_ids), median_ms(answers)
    ttft_ms = statistics.median(answer.timings.ttft_ms for answer in answers)
    return (
        f"{name:<13} {count} tokens in {time_ms:.0f} ms, {1000 * count / time_ms:.0f} tokens/s, "
        f"first after {ttft_ms:.0f} ms, {answers[0].target_passes} passes of {answers[0].levels[-1]}"
    )


def _verdict(comparison: Comparison, color: bool) -> str:
    count = len(comparison.cascade[0].token_ids)
    if not comparison.identical:
        return _paint(_RED, "DIFFERENT: the token ids of the answers are not the same", color)
    same = f"identical: {count} of {count} token ids, in {2 * len(comparison.alone)} answers compared"
    return _paint(_BOLD, f"{comparison.speedup:.2f}x as fast, {same}", color)


def _paint(code: str, text: str, color: bool) -> str:
    return f"{code}{text}{_OFF}" if color else text
