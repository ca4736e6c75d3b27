"""A client that goes frees its slot: who waits gets it while the others go on. How soon is printed, not asserted.

The figure is from closing the connection to the end of the first scrape of /metrics that tells the slot free, through
Serve's proxy: an upper bound, which a scrape's own time, printed beside it, is part of.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from acceptance.served import Served, messages

pytestmark = pytest.mark.skipif("CASCADE_ACCEPTANCE" not in os.environ, reason="heavy: set CASCADE_ACCEPTANCE=1")
ENDLESS = {"messages": messages(), "max_tokens": 900, "ignore_eos": True, "cascade": {"speculate": False}}
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
LEVELS = 2


def slots(server: Served) -> int:
    return json.loads(server.get("/v1/models")[1])["data"][0]["cascade"]["slots"]


def test_who_waits_gets_the_slot_of_one_who_has_gone(light_heavy: Served) -> None:
    many = slots(light_heavy)
    inside = [light_heavy.opened(ENDLESS | {"stream": True}, X_Request_Id=f"inside-{n}") for n in range(many)]
    light_heavy.until(lambda: light_heavy.metric(RUNNING) == many)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(light_heavy.chat, {"messages": messages(), "max_tokens": 1}, X_Request_Id="waits")
        light_heavy.until(lambda: light_heavy.metric(WAITING) == 1)
        assert light_heavy.metric(RUNNING) == many and not waiting.done()
        inside[0].close()
        status, answer = waiting.result(60)
        assert status == 200 and answer["usage"]["completion_tokens"] == 1
        told = [json.loads(light_heavy.get(f"/v1/cascade/requests/inside-{n}")[1])["status"] for n in range(many)]
        assert told == ["cancelled"] + ["running"] * (many - 1)  # it did not wait for one of them to end
    for connection in inside[1:]:
        connection.close()
    light_heavy.until(lambda: light_heavy.metric("cascade:stage_free_slots") == LEVELS * many)


@pytest.mark.parametrize("others", [0, 3])
@pytest.mark.parametrize("stream", [True, False])
def test_how_soon_a_slot_is_free(light_heavy: Served, stream: bool, others: int) -> None:
    """others: requests that go on meanwhile."""
    every = LEVELS * slots(light_heavy)
    light_heavy.until(lambda: light_heavy.metric("cascade:stage_free_slots") == every)
    took_ms, scrape_ms = list[float](), list[float]()
    for _ in range(15):
        staying = [light_heavy.opened(ENDLESS | {"stream": True}) for _ in range(others)]
        leaving: Any = light_heavy.opened(ENDLESS | {"stream": stream})
        light_heavy.until(lambda: light_heavy.metric(RUNNING) == others + 1)
        if stream:
            leaving.getresponse().read(2000)  # it is being told its answer
        at = time.perf_counter()
        assert light_heavy.metric(RUNNING) == others + 1
        scrape_ms.append(1000 * (time.perf_counter() - at))
        at = time.perf_counter()
        leaving.close()
        light_heavy.until(lambda: light_heavy.metric(RUNNING) == others)
        took_ms.append(1000 * (time.perf_counter() - at))
        for connection in staying:
            connection.close()
        light_heavy.until(lambda: light_heavy.metric("cascade:stage_free_slots") == every)
    what, median = "a stream" if stream else "a whole answer", statistics.median
    print(f"\n{what}, {others} others: free after p50 {median(took_ms):.0f} ms, worst {max(took_ms):.0f} ms;", end="")
    print(f" a scrape takes {median(scrape_ms):.0f} ms")
