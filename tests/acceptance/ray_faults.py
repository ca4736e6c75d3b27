"""A cascade on a Ray of its own whose calls are lost, as RAY_testing_rpc_failure in the environment says.

A program, with one line of JSON at the end.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "emulation")]

from emulated import emulated_table
from toy_family import toy_requests

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, recipe_from_dict
from cascade_runtime.engine import Engine
from cascade_runtime.errors import CascadeError
from cluster.ray_transport import RayTransport

REQUESTS = 24


def recipe() -> Recipe:
    """Three emulated levels."""
    table = emulated_table(["light", "mid"], {"agreement": [0.7, 0.7]})
    deadlines = {"start_s": 300.0, "request_s": 200.0}
    return recipe_from_dict({**table, "deadlines": deadlines})


def clean(requests: list[GenerateRequest]) -> list[Any]:
    """What the engine says."""
    return [answer.token_ids for answer in Engine.load(recipe()).generate(requests)]  # type: ignore[union-attr]


async def ask(transport: RayTransport, requests: list[GenerateRequest]) -> list[list[Answer | CascadeError]]:
    """Every last word that comes of each, eight at a time."""
    told: list[list[Answer | CascadeError]] = [[] for _ in requests]
    async for index, update in transport.run(requests, None, False, 8):
        if not isinstance(update, str):
            told[index].append(update)
    return told


def compared(told: list[list[Answer | CascadeError]], expected: list[Any]) -> dict[str, Any]:
    """Counts of what came."""
    answers = [(one[0], tokens) for one, tokens in zip(told, expected, strict=True) if isinstance(one[0], Answer)]
    errors = Counter(type(one[0]).__name__ for one in told if isinstance(one[0], CascadeError))
    return {
        "sent": len(told),
        "identical": sum(answer.token_ids == tokens for answer, tokens in answers),
        "changed": sum(answer.token_ids != tokens for answer, tokens in answers),
        "duplicated": sum(len(one) > 1 for one in told),
        "errors": dict(errors),
        "retryable": all(one[0].retryable for one in told if isinstance(one[0], CascadeError)),
        "said": [str(one[0])[:200] for one in told if isinstance(one[0], CascadeError)][:3],
    }


def lost() -> dict[str, Any]:
    """Answers while calls are lost."""
    requests = toy_requests(REQUESTS, seed=5, max_tokens=24)
    expected = clean(requests)
    transport = RayTransport(recipe())
    began = time.monotonic()
    try:
        told = asyncio.run(ask(transport, requests))
        supervisor = transport.pipeline.supervisor
        assert supervisor is not None
        restarts = [f"{each.stage}: {each.reason}" for each in supervisor.recoveries]
        seconds, slots = round(time.monotonic() - began, 1), free_slots(transport)
        return compared(told, expected) | {
            "retried": transport.retried,
            "restarts": restarts,
            "seconds": seconds,
            "slots": slots,
        }
    finally:
        transport.pipeline.close()


def free_slots(transport: RayTransport) -> list[int]:
    """Of every level, once all are free or ten seconds have passed."""
    levels, end = transport.pipeline.recipe.cascade.levels, time.monotonic() + 10
    while True:
        stats = transport.pipeline.stats()
        slots = [stats[name].get("free_slots", -1) for name in levels]
        if slots == [4] * len(levels) or time.monotonic() > end:
            return slots
        time.sleep(0.2)


if __name__ == "__main__":
    print(json.dumps(lost()))
