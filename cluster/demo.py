"""`cascade demo`: one simulated scene, one question, the target alone and the cascade side by side.

Both answers come from the same running stages; "alone" is the same request with speculation off. They are asked turn
about and the medians are compared. Time is the caller's, from the question (recording in memory) to the whole answer,
with all that Ray carries to and fro; the first token's is what the answer reports, from the request's arrival.
"identical" is printed only after the token ids were compared and are equal.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO

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
class Timed:
    """An answer and the caller's milliseconds from the question to all of it."""

    answer: Answer
    total_ms: float


@dataclass(frozen=True)
class Comparison:
    """Answers of one question, turn about: the target alone and the cascade, ROUNDS of each."""

    alone: list[Timed]
    cascade: list[Timed]

    @property
    def identical(self) -> bool:
        """Whether every answer has the same token ids."""
        return len({timed.answer.token_ids for timed in (*self.alone, *self.cascade)}) == 1

    @property
    def speedup(self) -> float:
        """Median time of the target alone over median time of the cascade."""
        return median_ms(self.alone) / median_ms(self.cascade)


def median_ms(answers: list[Timed]) -> float:
    """The median of the caller's times."""
    return statistics.median(timed.total_ms for timed in answers)


class Progress:
    """What is being asked, on a stream: one line that is rewritten on a terminal and wiped at the end, else a line for
    each phase.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rewrites = stream.isatty()
        self._phase = ""
        self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._rewrites:
            self._rewrite("")

    def show(self, phase: str, counts: str) -> None:
        """Say where things stand. Without a terminal the counts are left out, and a phase is named once."""
        if self._rewrites:
            self._rewrite(f"{phase}: {counts}")
        elif phase != self._phase:
            print(phase, "...", file=self._stream, flush=True)
        self._phase = phase

    def _rewrite(self, line: str) -> None:
        self._stream.write(f"\r{line:<{self._width}}" + ("" if line else "\r"))
        self._stream.flush()
        self._width = len(line)


def compare(
    ask: Callable[[bool], Answer],
    rounds: int = ROUNDS,
    show: Callable[[str, int, int, int], None] = lambda phase, alone, cascade, rounds: None,
) -> Comparison:
    """`ask(speculate)` once each to warm up, then `rounds` times turn about, timed.

    show(phase, alone, cascade, rounds) is told how many of the phase's answers of each kind are there, before each one
    and at the end.
    """

    def timed(speculate: bool) -> Timed:
        start = time.perf_counter()
        answer = ask(speculate)
        return Timed(answer, 1000 * (time.perf_counter() - start))

    for warmed, speculate in enumerate((False, True)):
        show("warming up", warmed, 0, 1)
        ask(speculate)
    alone: list[Timed] = []
    cascade: list[Timed] = []
    for _ in range(rounds):
        for answers, speculate in ((alone, False), (cascade, True)):
            show("asking", len(alone), len(cascade), rounds)
            answers.append(timed(speculate))
    show("asking", len(alone), len(cascade), rounds)
    return Comparison(alone, cascade)


def run_demo(*, target: str, seed: int, question: str | None, recipe: Recipe, color: bool) -> int:
    """Show the demo on stdout, progress on stderr. Exit code 0 only if the answers were identical."""
    question = question or QUESTION
    scene = simulate_scene(seed)
    print(_paint(_BOLD, "A scene in front of a simulated event camera", color))
    print(_scene(scene, color), flush=True)
    started = time.perf_counter()
    where = f"{len(recipe.stages) + 2} Ray stages" if target == "ray" else "this process"  # and encoder, adapter
    print(f"loading {', '.join(recipe.cascade.levels)} into {where} ...", file=sys.stderr, flush=True)
    with CascadeClient(target=target, recipe=recipe) as client:
        print(f"ready after {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
        print(f"\n{_paint(_BOLD, 'Q', color)}  {question}\n", flush=True)
        name = f"{recipe.cascade.levels[-1]} alone"

        def ask(speculate: bool) -> Answer:
            return client.generate(scene.events, question, speculate=speculate)

        with Progress(sys.stderr) as progress:
            comparison = compare(
                ask,
                show=lambda phase, alone, cascade, rounds: progress.show(
                    phase, f"{name} {alone}/{rounds}, cascade {cascade}/{rounds}"
                ),
            )
    print(_result(comparison, color))
    return 0 if comparison.identical else 1


def _scene(scene: Scene, color: bool) -> str:
    events, facts = scene.events, scene.facts
    told = [f"{name} {facts.name(name)}" for name in facts.names() if getattr(facts, name) >= 0]
    picture = [preview(events, 64)] if color else []
    size = f"{len(events):,} events in {events.duration_us / 1000:.0f} ms on {events.width} x {events.height} pixels"
    return "\n".join([*picture, size, _paint(_DIM, f"the simulator knows: {', '.join(told)}", color)])


def _result(comparison: Comparison, color: bool) -> str:
    alone, cascade = comparison.alone[0].answer, comparison.cascade[0].answer
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


def _row(name: str, answers: list[Timed]) -> str:
    first, time_ms = answers[0].answer, median_ms(answers)
    ttft_ms = statistics.median(timed.answer.timings.ttft_ms for timed in answers)
    count = len(first.token_ids)
    return (
        f"{name:<13} {count} tokens in {time_ms:.0f} ms, {1000 * count / time_ms:.0f} tokens/s, "
        f"first after {ttft_ms:.0f} ms, {first.target_passes} passes of {first.levels[-1]}"
    )


def _verdict(comparison: Comparison, color: bool) -> str:
    count = len(comparison.cascade[0].answer.token_ids)
    if not comparison.identical:
        return _paint(_RED, "DIFFERENT: the token ids of the answers are not the same", color)
    same = f"identical: {count} of {count} token ids, in {2 * len(comparison.alone)} answers compared"
    return _paint(_BOLD, f"{comparison.speedup:.2f}x as fast, {same}", color)


def _paint(code: str, text: str, color: bool) -> str:
    return f"{code}{text}{_OFF}" if color else text
