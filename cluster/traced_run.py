"""`cascade trace`: a few streams of questions through a pipeline, and what every stage did meanwhile.

    trace.json      all stages as one Chrome trace: open it in ui.perfetto.dev
    trace.svg       the same as a picture
    on stdout       per stage: passes, rows in them, drafts accepted, busy share; and how much of the latency was hidden

Each stream asks its next question when it has an answer, about scenes that are simulated. One question of every stream
comes before the trace begins, so that what is seen is a pipeline at work, not one that warms up.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe
from cascade_runtime.errors import ConfigError
from cascade_runtime.metrics import prometheus_text
from cascade_runtime.tracing import Trace
from cascade_runtime.tracing.arrows import arrows
from cascade_runtime.tracing.chrome import chrome_trace
from cascade_runtime.tracing.gantt import gantt
from cascade_runtime.tracing.occupancy import Occupancy, occupancy
from cluster.output_file import write_output

QUESTIONS = (
    "What are the key elements in this scene?",
    "What is happening in this recording?",
    "Describe the motion.",
    "Which way is it moving?",
)
FORMATS = (".json", ".svg")


class TracedPipeline(Protocol):
    """What is needed of a pipeline: answers, and what its stages recorded."""

    recipe: Recipe

    def generate(self, request: GenerateRequest) -> Answer:
        """Answer one request."""
        ...

    def trace(self) -> list[Trace]:
        """Every stage's records, in the order of the pipeline."""
        ...


@dataclass(frozen=True)
class TracedRun:
    """A run's answers, and what the stages recorded from its first question on."""

    answers: Sequence[Answer]
    traces: Sequence[Trace]

    @property
    def occupancy(self) -> Occupancy:
        """Busy shares and latency hidden."""
        return occupancy(self.traces)

    def text(self) -> str:
        """A line per stage, one for the whole."""
        busy, arrived = self.occupancy, [1e-6 * (arrow.end_ns - arrow.start_ns) for arrow in arrows(self.traces)]
        width = max(len(trace.stage) for trace in self.traces)
        lines = [f"{'':{width}}   busy  passes  rows a pass   ms a pass  drafts accepted"]
        for trace in self.traces:
            spans = trace.spans
            rows = statistics.fmean(len(span.shares) for span in spans) if spans else 0.0
            median_ms = statistics.median((span.end_ns - span.start_ns) / 1e6 for span in spans) if spans else 0.0
            drafts, accepted = sum(span.drafts for span in spans), sum(span.accepted for span in spans)
            said = f"{accepted} of {drafts}" if drafts else "-"
            share = busy.busy_share[trace.stage]
            lines.append(
                f"{trace.stage:{width}}  {share:5.0%}  {len(spans):6d}  {rows:11.1f}  {median_ms:10.2f}  {said:>15}"
            )
        tokens, hidden = sum(len(answer.token_ids) for answer in self.answers), busy.latency_hidden
        lines.append(
            f"{len(self.answers)} answers, {tokens} tokens in {1000 * busy.wall_s:.0f} ms"
            + (f"; latency hidden {hidden:.2f}" if hidden is not None else "")
            + (f"; {len(arrived)} messages, median {statistics.median(arrived):.2f} ms on their way" if arrived else "")
        )
        if dropped := sum(trace.dropped for trace in self.traces):
            lines.append(f"{dropped} of the oldest records were overwritten before they could be told")
        return "\n".join(lines)


def traced_run(pipeline: TracedPipeline, streams: int, requests: int, seed: int) -> TracedRun:
    """Let every stream ask `requests` questions, after one that is not traced. Raises whatever a request raises."""
    asked = list(_questions(streams * (requests + 1), seed))
    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(pipeline.generate, asked[:streams]))
        began_ns = time.time_ns()
        answers = list(pool.map(pipeline.generate, asked[streams:]))
    return TracedRun(answers, [trace.since(began_ns) for trace in pipeline.trace()])


def _questions(count: int, seed: int) -> Iterator[GenerateRequest]:
    from cascade_runtime.training.scenes import simulate_scene

    for number in range(count):
        scene, question = simulate_scene(seed + number), QUESTIONS[number % len(QUESTIONS)]
        yield GenerateRequest(events=scene.events, question=question)


def run_trace(
    recipe: Recipe, outputs: Sequence[Path], metrics: Path | None, streams: int, requests: int, seed: int, out: TextIO
) -> int:
    """Launch the recipe on Ray, trace a run, write the files, print the summary. Returns the exit code, 0.

    Raises `ConfigError` for an output of an unknown kind or a number below 1 before anything is started, `CascadeError`
    for a file that cannot be written.
    """
    from cluster.launch import launch

    for name, value in (("streams", streams), ("requests", requests)):
        if value < 1:
            raise ConfigError(name, value, "at least 1")
    for path in outputs:
        if path.suffix not in FORMATS:
            raise ConfigError("output", str(path), f"a name that ends in {' or '.join(FORMATS)}")
    with launch(recipe) as pipeline:
        run = traced_run(pipeline, streams, requests, seed)
        stats: dict[str, Any] = pipeline.stats() if metrics else {}
    print(run.text(), file=out)
    for path in outputs:
        if path.suffix == ".json":
            write_output(path, json.dumps(chrome_trace(run.traces)))
        else:
            title = f"{recipe.cascade.name}: {len(run.answers)} questions of {streams} streams"
            write_output(path, gantt(run.traces, title))
    if metrics is not None:
        write_output(metrics, prometheus_text(stats))
    return 0
