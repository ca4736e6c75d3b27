"""Our own contestants: one `Engine` over ready prompts, alone or as a cascade, in one process on one thread."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.rivals.prompts import Task
from cascade_runtime.api import Answer
from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.engine import Engine, _Live
from cascade_runtime.metrics import EdgeCounters
from cascade_runtime.vision.front_end import Seen


class PromptedEngine(Engine):
    """An engine whose requests bring their prompts along: what is measured is decoding, prefill included."""

    def over(self, tasks: Sequence[Task], seen: Seen) -> PromptedEngine:
        """The same levels over these tasks."""
        self._ready = {task.request.request_id: task for task in tasks}
        self._seen = seen
        return self

    def _admit(self, request):  # type: ignore[no-untyped-def]
        started, task = time.perf_counter(), self._ready[request.request_id]
        prompts = [replace(task.embeds[level.name], prefix="") for level in self.levels]  # shared with nobody
        rows = [
            level.decoder.admit(prompt, request.sampling) for level, prompt in zip(self.levels, prompts, strict=True)
        ]
        names = [level.name for level in self.levels]
        edges = [EdgeCounters(f"{light}-{heavy}") for light, heavy in itertools.pairwise(names)]
        stopper = self.levels[-1].stopper(request.sampling)
        return _Live(request, self._seen, rows, stopper, edges, started, [], len(rows[-1].prompt))


class Ours:
    """A cascade of some of an engine's levels; one level is plain autoregressive decoding."""

    def __init__(self, engine: Engine, names: Sequence[str], tasks: Sequence[Task], gammas: Sequence[int]) -> None:
        levels = [level for level in engine.levels if level.name in names]
        recipe: Recipe = replace(
            engine.recipe,
            cascade=replace(engine.recipe.cascade, levels=tuple(names), num_draft_tokens=tuple(gammas)),
            stages=tuple(engine.recipe.stage(name) for name in names),
        )
        seen = engine.front_end.see(tasks[0].request.events)  # type: ignore[arg-type]
        self.engine = PromptedEngine(recipe, levels, engine.front_end).over(tasks, seen)
        self.edges: list[EdgeCounters] = []

    def __call__(self, tasks: Sequence[Task], sampling: SamplingParams) -> tuple[float, list[list[int]]]:
        """Seconds, and the answers' token ids."""
        requests = [replace(task.request, sampling=sampling) for task in tasks]
        start = time.perf_counter()
        answers = self.engine.generate(requests)
        seconds = time.perf_counter() - start
        done = [answer for answer in answers if isinstance(answer, Answer)]
        assert len(done) == len(tasks), answers
        self.edges = [edge for answer in done for edge in answer.edges]
        return seconds, [list(answer.token_ids) for answer in done]
