"""What an exchange asks of the relay, it has an answer to before it ends."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from cluster.edge.exchange import DraftExchange


class SlowRelay:
    """Answers calls for verdicts after a while."""

    name = "light"

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.under_way = 0

    def start(self, method: str, *args: Any) -> str:
        return method

    def result(self, reference: str, timeout_s: float) -> list[tuple[str, bytes]]:
        self.under_way += 1
        self.asked.set()
        time.sleep(0.2)
        self.under_way -= 1
        return []


def test_no_call_is_under_way_any_more_when_an_exchange_has_ended() -> None:
    relay = SlowRelay()

    async def test() -> None:
        async with DraftExchange(relay).running():  # type: ignore[arg-type]
            assert await asyncio.to_thread(relay.asked.wait, 5.0)
            assert relay.under_way == 1
        assert relay.under_way == 0

    asyncio.run(test())
