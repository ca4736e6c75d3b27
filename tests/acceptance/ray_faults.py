"""A cascade on a Ray of its own whose calls are lost, as RAY_testing_rpc_failure in the environment says; with the
argument `full`, one whose object store others have filled, and which may not spill.

A program, with one line of JSON at the end.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "emulation")]

from emulated import emulated_table
from toy_family import toy_requests

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, recipe_from_dict
from cascade_runtime.engine import Engine
from cascade_runtime.errors import CascadeError
from cascade_runtime.events import Events
from cluster.ray_transport import RayTransport

REQUESTS = 24
STORE_BYTES = 80_000_000  # about the least that Ray takes
NO_SPILLING = {"automatic_object_spilling_enabled": False, "local_fs_capacity_threshold": 0.0001}
EVENTS = 200_000  # a recording of this many goes through the object store, a short one in the call


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


def full() -> dict[str, Any]:
    """Answers before the store is full, while it is, with some room again, and after."""
    ray.init(
        num_cpus=4,
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _system_config=NO_SPILLING,
    )
    requests = [longer(request) for request in toy_requests(6, seed=5, max_tokens=8)]
    expected, hog = clean(requests), list[Any]()
    transport = RayTransport(recipe())

    async def turns() -> dict[str, Any]:
        told: dict[str, Any] = {}
        for turn, left in (("before", 0), ("full", 10**6), ("tight", 90), ("after", 0)):
            fill(hog, left)
            named = [replace(request, request_id=f"{turn}-{at}") for at, request in enumerate(requests)]
            began = time.monotonic()
            told[turn] = compared(await ask(transport, named), expected)
            told[turn] |= {"seconds": round(time.monotonic() - began, 1), "slots": free_slots(transport)}
        return told

    try:
        told = asyncio.run(turns())
        supervisor = transport.pipeline.supervisor
        assert supervisor is not None
        return told | {"restarts": len(supervisor.recoveries)}
    finally:
        transport.pipeline.close()


def fill(hog: list[Any], most: int) -> None:
    """Half a megabyte in each of so many objects, or as many as there is room for."""
    del hog[most:]
    while len(hog) < most:
        try:
            hog.append(ray.put(np.zeros(500_000, np.uint8)))
        except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError):
            return


def longer(request: GenerateRequest) -> GenerateRequest:
    """The same scene, each event several times."""
    events = request.events
    assert isinstance(events, Events)
    at = np.linspace(0, len(events.t) - 1, EVENTS).astype(int)
    columns = (events.t[at], events.x[at], events.y[at], events.p[at])
    return replace(request, events=Events(*columns, width=events.width, height=events.height))


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
    print(json.dumps(full() if sys.argv[1:] == ["full"] else lost()))
