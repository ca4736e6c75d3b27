"""One workload through one pipeline, and the figures that follow from its answers and from what the stages recorded."""

from __future__ import annotations

import itertools
import math
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import SamplingParams
from cascade_runtime.metrics import EdgeCounters, merge_edges
from cascade_runtime.tracing import Trace
from cascade_runtime.tracing.occupancy import Occupancy, occupancy
from cascade_runtime.training.scenes import simulate_scene
from cluster.launch import Pipeline
from cluster.traced_run import QUESTIONS

SCENES = 12


@dataclass(frozen=True)
class Run:
    """The answers to a workload, in order; seconds from the first question to the last answer; what stages recorded."""

    answers: Sequence[Answer]
    wall_s: float
    traces: Sequence[Trace] = ()

    @property
    def tokens_per_s(self) -> float:
        return sum(len(answer.token_ids) for answer in self.answers) / self.wall_s

    @property
    def occupancy(self) -> Occupancy:
        """Busy shares and latency hidden."""
        return occupancy(self.traces)


@dataclass(frozen=True)
class Side:
    """One contestant: its runs, a round each."""

    name: str
    runs: Sequence[Run]

    @property
    def answers(self) -> list[Answer]:
        return [answer for run in self.runs for answer in run.answers]

    @property
    def tokens_per_s(self) -> float:
        """Median over rounds."""
        return statistics.median(run.tokens_per_s for run in self.runs)

    @property
    def ttft_ms(self) -> list[float]:
        """From a request's arrival to its first token, every answer, ascending."""
        return sorted(answer.timings.ttft_ms for answer in self.answers)

    @property
    def tpot_ms(self) -> list[float]:
        """Per answer of at least two tokens: from its first token to its last, over the tokens after the first."""
        return sorted(
            (answer.timings.total_ms - answer.timings.ttft_ms) / (len(answer.token_ids) - 1)
            for answer in self.answers
            if len(answer.token_ids) > 1
        )

    @property
    def edges(self) -> dict[str, EdgeCounters]:
        """Edges on which something was drafted, lightest first, so that the target's comes last."""
        merged = merge_edges(edge for answer in self.answers for edge in answer.edges)
        names = [f"{light}-{heavy}" for light, heavy in itertools.pairwise(self.answers[0].levels)]
        return {name: merged[name] for name in names if name in merged and merged[name].num_drafts}

    @property
    def said_by(self) -> dict[str, int]:
        """Stage -> tokens of answers that it was the first to propose."""
        names = [name for answer in self.answers for name in answer.produced_by]
        return {level: names.count(level) for level in self.answers[0].levels}

    def to_dict(self) -> dict[str, Any]:
        """Plain figures."""
        busy = [run.occupancy for run in self.runs]
        hidden = [each.latency_hidden for each in busy if each.latency_hidden is not None]
        return {
            "tokens_per_s": round(self.tokens_per_s, 1),
            "ttft_ms_p50": _rounded(percentile(self.ttft_ms, 50)),
            "ttft_ms_p95": _rounded(percentile(self.ttft_ms, 95)),
            "tpot_ms_p50": _rounded(percentile(self.tpot_ms, 50)),
            "tpot_ms_p95": _rounded(percentile(self.tpot_ms, 95)),
            "busy_share": {
                stage: round(statistics.median(each.busy_share[stage] for each in busy), 3)
                for stage in busy[0].busy_share
            },
            "latency_hidden": _rounded(statistics.median(hidden)) if hidden else None,
            "target_passes": sum(answer.target_passes for answer in self.answers),
            "tokens": sum(len(answer.token_ids) for answer in self.answers),
        }


def percentile(ascending: Sequence[float], percent: float) -> float | None:
    """Of values in ascending order, the nearest rank; None of none."""
    if not ascending:
        return None
    return ascending[max(0, math.ceil(len(ascending) * percent / 100) - 1)]


def questions(count: int, seed: int, max_tokens: int) -> list[GenerateRequest]:
    """Questions about simulated scenes, always the same ones for a seed."""
    scenes = [simulate_scene(seed + number).events for number in range(min(count, SCENES))]
    return [
        GenerateRequest(
            events=scenes[number % len(scenes)],
            question=QUESTIONS[(number + number // len(scenes)) % len(QUESTIONS)],
            sampling=SamplingParams(max_tokens=max_tokens),
        )
        for number in range(count)
    ]


def drive(pipeline: Pipeline, work: Sequence[GenerateRequest], streams: int, *, speculate: bool) -> Run:
    """Each of `streams` clients asks its next question when it has an answer."""

    def ask(request: GenerateRequest) -> Answer:
        return pipeline.generate(replace(request, request_id=os.urandom(8).hex(), speculate=speculate))

    began_ns, start = time.time_ns(), time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        answers = list(pool.map(ask, work))
    wall_s = time.perf_counter() - start
    return Run(answers, wall_s, [trace.since(began_ns) for trace in pipeline.trace()])


def sides(pipeline: Pipeline, work: Sequence[GenerateRequest], streams: int, rounds: int) -> tuple[Side, Side]:
    """The target alone and the cascade, turn about, after a round of each to warm up."""
    both: dict[bool, list[Run]] = {False: [], True: []}
    for number in range(-1, rounds):
        for speculate, runs in both.items():
            run = drive(pipeline, work, streams, speculate=speculate)
            if number >= 0:
                runs.append(run)
    target = pipeline.recipe.cascade.levels[-1]
    return Side(f"{target} alone", both[False]), Side("cascade", both[True])


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
