"""What the page's lanes are drawn from: what every stage is doing, for who watches."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from cascade_runtime.metrics import EdgeCounters
from cluster.serving.pipeline_view import PipelineView, view
from cluster.serving.refusals import Refusal


def told(busy_s: float, passes: int) -> dict[str, dict[str, Any]]:
    edge = EdgeCounters("light-heavy")
    edge.observe(4, 3)
    facts = {"active_rows": 1, "slots": 8, "tokens_fed": 5 * passes, "edge": edge.to_dict()}
    return {
        "controller": {"running": 1, "waiting": 2},
        "light": {"name": "light", "problem": "silent"},
        "heavy": {"name": "heavy", "busy_s": busy_s, "passes": passes, **facts},
    }


def test_busy_is_the_share_of_the_time_since_the_event_before() -> None:
    heavy = {"name": "heavy", "alive": True, "rows": 1, "slots": 8, "passes": 2, "tokens": 10, "drafted": 4}
    first = view(told(1.0, 2), {}, 5.0)
    assert first == {
        "running": 1,
        "waiting": 2,
        "stages": [{"name": "light", "alive": False}, {**heavy, "busy": None, "accepted": 3}],
    }
    assert view(told(1.05, 3), told(1.0, 2), 0.2)["stages"][1]["busy"] == 0.25
    assert view(told(9.0, 3), told(1.0, 2), 0.2)["stages"][1]["busy"] == 1.0  # a long pass that has just ended
    assert view(told(0.0, 0), told(1.0, 2), 0.2)["stages"][1]["busy"] == 0.0  # it was started anew


def test_watchers_are_few_and_their_places_come_back() -> None:
    class Vitals:
        async def stats(self) -> dict[str, dict[str, Any]]:
            return told(1.0, 2)

    async def check() -> None:
        watched = PipelineView(Vitals())
        streams = []
        for _ in range(8):
            stream = (await watched.watch(None))._events  # type: ignore[arg-type, attr-defined]
            data = (await anext(stream)).decode()
            assert json.loads(data.removeprefix("data: "))["stages"][1]["passes"] == 2
            streams.append(stream)
        with pytest.raises(Refusal) as caught:
            await watched.watch(None)  # type: ignore[arg-type]
        assert caught.value.status == 503
        await streams.pop().aclose()
        await watched.watch(None)  # type: ignore[arg-type]
        for stream in streams:
            await stream.aclose()

    asyncio.run(check())
