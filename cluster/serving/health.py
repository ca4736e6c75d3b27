"""Is every stage there? `stage_stats`, `vision_stats`: what each says of itself, in time; `Canary`: one token through
all of them.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, cast

import numpy as np
from ray.exceptions import RayError

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import SamplingParams
from cascade_runtime.errors import CascadeError, DeadlineExceeded
from cascade_runtime.events import Events
from cascade_runtime.transports import Update
from cluster.launch import Pipeline, RayStage, plain_error

Asked = Callable[[Sequence[GenerateRequest], float | None, bool], AsyncIterator[Update]]
_CALL_S = 2.0
_CANARY_S = 4.0


async def stage_stats(pipeline: Pipeline, wait_s: float = _CALL_S) -> dict[str, dict[str, Any]]:
    """What controller and language stages say of themselves within wait_s; of one that is silent or dead, its
    `problem`.
    """
    stages = {"controller": pipeline.controller, **pipeline.stages}
    names = ("controller", *pipeline.recipe.level_members)
    told = await asyncio.gather(*(_call(stages[name], "stats", wait_s) for name in names))
    return dict(zip(names, told, strict=True))


async def vision_stats(pipeline: Pipeline, wait_s: float = _CALL_S) -> dict[str, dict[str, Any]]:
    """The same of encoder and adapter, as far as they say anything."""
    names = [member for stage in ("encoder", "adapter") for member in pipeline.recipe.members[stage]]
    told = await asyncio.gather(*(_call(pipeline.stages[name], "info", wait_s) for name in names))
    return dict(zip(names, told, strict=True))


def missing(told: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """Of what `stage_stats` and `vision_stats` give, the stages that are silent or dead."""
    return tuple(name for name, facts in told.items() if "problem" in facts)


async def _call(stage: RayStage, method: str, wait_s: float) -> dict[str, Any]:
    try:
        async with asyncio.timeout(wait_s):
            return await cast(Awaitable[dict[str, Any]], stage.start(method))
    except TimeoutError:
        return {"name": stage.name, "problem": "silent"}
    except RayError as error:
        return {"name": stage.name, "problem": str(plain_error(error, stage.name))}


class Canary:
    """Asks for one token every time somebody wants to know, and once for all who want to know at the same time."""

    def __init__(self, pipeline: Pipeline, ask: Asked) -> None:
        self._pipeline, self._ask = pipeline, ask
        self._running: asyncio.Task[dict[str, Any]] | None = None

    async def sing(self) -> dict[str, Any]:
        """{"status": "ok" or "failed", "ms", "stages": {name: "ok" or what is wrong}}, within five seconds or so."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._sing())
        return await asyncio.shield(self._running)

    async def _sing(self) -> dict[str, Any]:
        begun = time.monotonic()
        answer, stats, vision = await asyncio.gather(
            self._answer(), stage_stats(self._pipeline), vision_stats(self._pipeline)
        )
        gone = missing(stats | vision)
        stages = {name: "silent or dead" if name in gone else "ok" for name in stats | vision}
        for name in self._absent(answer):
            stages[name] = "did not take part"
        healthy = isinstance(answer, Answer) and set(stages.values()) == {"ok"}
        wrong = {} if isinstance(answer, Answer) else {"answer": type(answer).__name__}
        ms = round(1000 * (time.monotonic() - begun), 1)
        return {"status": "ok" if healthy else "failed", "ms": ms, "stages": stages, **wrong}

    async def _answer(self) -> Answer | CascadeError:
        t = np.arange(64) * 500
        events = Events(t, t % 32, t % 24, t % 2, width=32, height=24)
        request = GenerateRequest(
            events=events,
            question="?",
            sampling=SamplingParams(max_tokens=1),
            request_id=f"canary-{uuid.uuid4().hex}",
        )
        try:
            async with asyncio.timeout(_CANARY_S), aclosing(self._ask([request], _CANARY_S, False)) as updates:  # type: ignore[type-var]
                async for _, update in updates:
                    if not isinstance(update, str):
                        return update
        except TimeoutError:
            pass
        return DeadlineExceeded("the canary did not answer")

    def _absent(self, answer: Answer | CascadeError) -> list[str]:
        """Language stages without which the answer was made."""
        if not isinstance(answer, Answer):
            return []
        notes = [note.partition(":")[0] for note in answer.notes]
        return [name for name in self._pipeline.recipe.cascade.levels if f"without {name}" in notes]
