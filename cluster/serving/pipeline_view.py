"""`PipelineView`: what every stage is doing, a few times a second, for who watches: GET /v1/cascade/pipeline.

    data: {"running": 1, "waiting": 0, "stages": [{"name": "light", "alive": true, "busy": 0.63, "rows": 1, "slots": 8,
           "passes": 12, "tokens": 60, "drafted": 0, "accepted": 0}, ...]}

`busy` is the share of the time since the event before that the stage was in passes, null in the first event. All other
figures are counts since the stage started, of everybody's requests together: `tokens` went through it, `drafted` ones
it looked at for the stage before it, and `accepted` those that it kept. Of several replicas it is the one that was met.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from cluster.serving.event_stream import DONE, EventStream, event
from cluster.serving.refusals import overloaded

_EVERY_S = 0.2
_LONGEST_S = 600.0
_WATCHERS = 8
_EDGE = "spec_decode_num_"

Stats = Mapping[str, Mapping[str, Any]]


class Told(Protocol):
    """Who knows what the stages say of themselves."""

    async def stats(self) -> dict[str, dict[str, Any]]: ...


class PipelineView:
    """The watchers of one replica."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._watchers = 0

    async def watch(self, request: Request) -> Response:
        """The route."""
        if self._watchers >= _WATCHERS:
            raise overloaded(f"{_WATCHERS} are watching already", "overloaded")
        return EventStream(self._events())

    async def _events(self) -> AsyncIterator[bytes]:
        self._watchers += 1
        try:
            end = time.monotonic() + _LONGEST_S
            before, at = {}, 0.0
            while time.monotonic() < end:
                stats, now = await self._told.stats(), time.monotonic()
                yield event(view(stats, before, now - at))
                before, at = stats, now
                await asyncio.sleep(_EVERY_S)
            yield DONE
        finally:
            self._watchers -= 1


def view(stats: Stats, before: Stats, seconds: float) -> dict[str, Any]:
    """One event, of what the stages say now and said so many seconds before."""
    controller = stats.get("controller", {})
    return {
        "running": controller.get("running"),
        "waiting": controller.get("waiting"),
        "stages": [_stage(told, before.get(name), seconds) for name, told in stats.items() if name != "controller"],
    }


def _stage(told: Mapping[str, Any], before: Mapping[str, Any] | None, seconds: float) -> dict[str, Any]:
    if "problem" in told:
        return {"name": told["name"], "alive": False}
    busy = None
    if before is not None and "problem" not in before and seconds > 0:
        busy = round(min(1.0, max(0.0, (told["busy_s"] - before["busy_s"]) / seconds)), 3)
    return {
        "name": told["name"],
        "alive": True,
        "busy": busy,
        "rows": told["active_rows"],
        "slots": told["slots"],
        "passes": told["passes"],
        "tokens": told["tokens_fed"],
        "drafted": told["edge"][f"{_EDGE}draft_tokens"],
        "accepted": told["edge"][f"{_EDGE}accepted_tokens"],
    }
