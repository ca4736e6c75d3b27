"""Several replicas on one page of metrics: every sample is there once, says whose it is, and can be read."""

from __future__ import annotations

import asyncio
from typing import Any

from client.http_servers import Alone
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request

from cascade_runtime.api import Answer, Timings
from cascade_runtime.errors import DeadlineExceeded
from cluster.serving.counters import ServerCounters
from cluster.serving.merged_metrics import merged
from cluster.serving.routes import build_app

ANSWER = Answer("r", "ab", (1, 2), ("a", "b"), "stop", ("light", "heavy"), (2, 2), Timings(1.0, 2.0))


def counted(answers: int, *, failed: bool = False) -> str:
    """What a replica with so many answers says."""
    counters = ServerCounters("cascade")
    for _ in range(answers):
        counters.ended(ANSWER)
        counters.responded(200)
    if failed:
        counters.ended(DeadlineExceeded("late"))
    return counters.text({"light": {"name": "light", "problem": "silent"}, "controller": _controller(answers)})


def _controller(running: int) -> dict[str, Any]:
    return {"name": "controller", "running": running, "waiting": 0, "cancelled": 0}


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """(name, labels) -> value, as Prometheus reads them; fails where one is there twice."""
    found: dict[Any, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def test_all_samples_of_all_replicas_are_told_with_whose_they_are() -> None:
    each = {"0": counted(3), "1": counted(5, failed=True)}
    together = samples(merged(each))
    expected = {
        (name, labels | {("replica", replica)}): value
        for replica, text in each.items()
        for (name, labels), value in samples(text).items()
    }
    assert together == expected
    answers = {
        dict(labels)["replica"]: n for (name, labels), n in together.items() if name == "vllm:request_success_total"
    }
    assert answers == {"0": 3.0, "1": 5.0}
    assert ("cascade:request_failures_total", frozenset({("replica", "1"), ("reason", "DeadlineExceeded")})) in together


def test_a_family_is_told_in_one_piece() -> None:
    """Prometheus' format wants all lines of a family together, and its type once."""
    lines = merged({"0": counted(1), "1": counted(2, failed=True)}).splitlines()
    types = [line for line in lines if line.startswith("# TYPE ")]
    assert len(types) == len(set(types)) > 5
    names = [line.split(" ")[2] for line in types]
    runs = [line.split(" ")[2] if line.startswith("#") else None for line in lines]
    assert [name for name, before in zip(runs, [None, *runs], strict=False) if name and name != before] == names


def test_a_scrape_of_one_of_several_is_told_about_all() -> None:
    class Two(Alone):
        async def metrics(self) -> dict[str, str]:
            return {"0": counted(3), "1": counted(5)}

    class Front:  # what of a gateway the route needs
        counters = ServerCounters("cascade")

    def scraped(elsewhere: Alone) -> str:
        app = build_app(Front(), Alone(), elsewhere)  # type: ignore[arg-type]
        (route,) = [route for route in app.routes if route.path == "/metrics"]  # type: ignore[attr-defined]
        scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": [], "query_string": b""}
        return asyncio.run(route.endpoint(Request(scope))).body.decode()  # type: ignore[attr-defined]

    assert scraped(Two()) == merged({"0": counted(3), "1": counted(5)})
    assert "replica=" not in scraped(Alone())
