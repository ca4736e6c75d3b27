"""`DraftExchange`: between the sessions of edges that draft and the pipeline's relay (`actors/edge_relay.py`).

    sessions --offer-->  newest block of each running request  --drafted-->   relay
             <--tell---  by request                             <--verdicts--

Two tasks, each with one call to the relay under way: however much edges say, the relay is asked no more than it
answers. A relay that is down is tried again; the windows meanwhile go on without drafts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from actors.handles import StageHandle
from cascade_runtime.errors import CascadeError
from cascade_runtime.messages import DraftBlock, Verdict, decode, encode

log = logging.getLogger(__name__)

_POLL_S = 0.5  # that a call for verdicts waits at the relay
_ANSWER_S = 5.0
_PAUSE_S = 0.25  # between tries while the relay is down
_MOST = 128  # blocks in one call

Tell = Callable[[Verdict], None]


class DraftExchange:
    """Used within one event loop, but for the calls themselves."""

    def __init__(self, relay: StageHandle) -> None:
        self._relay = relay
        self._tells: dict[str, Tell] = {}
        self._due: dict[str, bytes] = {}
        self._offered = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Pass messages on inside."""
        threads = ThreadPoolExecutor(2, thread_name_prefix="draft-exchange")
        tasks = [asyncio.create_task(each(threads)) for each in (self._up, self._down)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(threads.shutdown)  # else a call still under way takes what is for the next one

    def open(self, request_id: str, tell: Tell) -> None:
        """A request with an edge that drafts for it is about to run; its verdicts go there."""
        self._tells[request_id] = tell

    def close(self, request_id: str) -> None:
        """It has ended."""
        self._tells.pop(request_id, None)
        self._due.pop(request_id, None)

    def offer(self, request_id: str, block: DraftBlock) -> None:
        """The newest block for a request that is open."""
        if request_id in self._tells:
            self._due[request_id] = encode(block)
            self._offered.set()

    async def _up(self, threads: ThreadPoolExecutor) -> None:
        while True:
            await self._offered.wait()
            blocks = list(self._due.items())[:_MOST]
            for request_id, _ in blocks:
                del self._due[request_id]
            if not blocks:
                self._offered.clear()
            elif await self._call(threads, _ANSWER_S, "drafted", blocks) is None:
                await asyncio.sleep(_PAUSE_S)  # the blocks are lost; boxes say them again

    async def _down(self, threads: ThreadPoolExecutor) -> None:
        while True:
            told: list[tuple[str, bytes]] | None = await self._call(threads, _POLL_S + _ANSWER_S, "verdicts", _POLL_S)
            if told is None:
                await asyncio.sleep(_PAUSE_S)
            for request_id, frame in told or ():
                for verdict in decode(frame):
                    if request_id in self._tells and isinstance(verdict, Verdict):
                        self._tells[request_id](verdict)

    async def _call(self, threads: ThreadPoolExecutor, timeout_s: float, method: str, *args: Any) -> Any:
        """What the relay gives, () for nothing; None where it is down."""

        def call() -> Any:
            return self._relay.result(self._relay.start(method, *args), timeout_s)

        try:
            given = await asyncio.get_running_loop().run_in_executor(threads, call)
        except CascadeError as error:
            log.warning("drafts of edges are not passed on: %s", error)
            return None
        return () if given is None else given
