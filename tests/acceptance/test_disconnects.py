"""A client that goes frees its slot: who waits gets it while the others go on. How soon is printed, not asserted.

From closing the connection until the server knew its slots free, by the same wall clock: through Serve's proxy, the
replica, the controller and the stages, and back to the replica, which writes `ended_at`.
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


def told_of(server: Served, name: str) -> dict[str, Any]:
    return json.loads(server.get(f"/v1/cascade/requests/{name}")[1])


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
        told = [told_of(light_heavy, f"inside-{n}")["status"] for n in range(many)]
        assert told == ["cancelled"] + ["running"] * (many - 1)  # it did not wait for one of them to end
    for connection in inside[1:]:
        connection.close()
    light_heavy.until(lambda: light_heavy.metric("cascade:stage_free_slots") == LEVELS * many)


@pytest.mark.parametrize("others", [0, 3])
@pytest.mark.parametrize("stream", [True, False])
def test_how_soon_a_slot_is_free(light_heavy: Served, stream: bool, others: int) -> None:
    """others: requests that go on meanwhile."""
    every = LEVELS * slots(light_heavy)

    def all_left() -> bool:  # the controller's count too: of one that has not reached the stages yet
        return light_heavy.metric("cascade:stage_free_slots") == every and light_heavy.metric(RUNNING) == 0

    light_heavy.until(all_left)
    took_ms = list[float]()
    for turn in range(15):
        name = f"leaves-{stream}-{others}-{turn}"
        staying = [light_heavy.opened(ENDLESS | {"stream": True}) for _ in range(others)]
        leaving: Any = light_heavy.opened(ENDLESS | {"stream": stream}, X_Request_Id=name)
        light_heavy.until(lambda: light_heavy.metric(RUNNING) == others + 1)
        if stream:
            leaving.getresponse().read(2000)  # it is being told its answer
        at = time.time()
        leaving.close()
        light_heavy.until(lambda name=name: told_of(light_heavy, name)["status"] == "cancelled")
        took_ms.append(1000 * (told_of(light_heavy, name)["ended_at"] - at))
        assert light_heavy.metric(RUNNING) == others
        for connection in staying:
            connection.close()
        light_heavy.until(all_left)
    what, median = "a stream" if stream else "a whole answer", statistics.median
    print(f"\n{what}, {others} others: free after p50 {median(took_ms):.0f} ms, worst {max(took_ms):.0f} ms")
