"""`Scripted`: a transport that answers when a test says so, with what it says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from cascade_runtime.api import Answer, GenerateRequest, Health, Piece, ServedModel, Timings
from cascade_runtime.errors import CascadeError

LEVELS = ("light", "heavy")
ANSWER = Answer("-", "ab", (1, 2), ("a", "b"), "stop", LEVELS, (3, 2), Timings(1.0, 2.0))


class Scripted:
    """go: answers wait for it; started, ended: how many requests have; asked, timeouts: which, and for how long; error:
    given instead of an answer.
    """

    def __init__(self, error: CascadeError | None = None) -> None:
        self.go = threading.Event()
        self.go.set()
        self.started = self.ended = 0
        self.error = error
        self.asked: list[GenerateRequest] = []
        self.timeouts: list[float | None] = []

    async def run(
        self, requests: Sequence[GenerateRequest], timeout_s: float | None, stream: bool, concurrency: int = 1
    ) -> AsyncIterator[tuple[int, Any]]:
        for index, request in enumerate(requests):
            self.started += 1
            self.asked.append(request)
            self.timeouts.append(timeout_s)
            try:
                if stream:
                    yield index, Piece("a", (1,), (3,), ("a",))
                while not self.go.is_set():
                    await asyncio.sleep(0.002)
                yield index, self.error or replace(ANSWER, request_id=request.request_id)
            finally:
                self.ended += 1

    async def models(self) -> tuple[ServedModel, ...]:
        return (ServedModel("scripted", LEVELS),)

    async def health(self) -> Health:
        return Health(True, "ok")

    async def trace(self, request_id: str) -> dict[str, Any]:
        return {}

    async def close(self) -> None: ...
