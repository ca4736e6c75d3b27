"""`Run`: one execution of a request that several callers may follow. `SharedRuns`: the same key, the same answer.

    first call with a key   starts a run                 a second one with the same body follows it, from its beginning,
                                                         while it goes on and for ten minutes after it has ended well
    other body              refused                      a run that failed is forgotten: the next call starts anew

Nobody follows a run any more before it has ended: it is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable

from cascade_runtime.api import Answer, Piece
from cascade_runtime.errors import CascadeError, InputError, StageError
from cluster.serving.chat_answer import ChatHead

log = logging.getLogger(__name__)

_KEPT_S = 600.0
_KEPT = 256
Update = ChatHead | Piece | Answer  # in this order: one head, the pieces, the answer


class Run:
    """A task that reads a source to its end, and those who follow it. on_end is called once, with how it ended."""

    def __init__(self, source: AsyncIterator[Update], on_end: Callable[[Answer | CascadeError], None]) -> None:
        self._updates: list[Update] = []
        self._error: CascadeError | None = None
        self._news = asyncio.Event()
        self._followers = 0
        self.cancelled = False  # it ends, or has ended, since nobody wants it; its slots may not be free yet
        self._on_end = on_end
        self._task = asyncio.create_task(self._read(source))
        self._task.add_done_callback(self._ended)

    @property
    def failed(self) -> bool:
        """Whether it ended without an answer, or is going to."""
        return self._error is not None or self.cancelled

    @property
    def _answered(self) -> bool:
        return bool(self._updates) and isinstance(self._updates[-1], Answer)

    def cancel(self) -> None:
        """End it early; followers get the error of a cancelled request. Once: it waits for its slots then."""
        if not self.cancelled and not self._task.done():
            self.cancelled = True
            self._task.cancel()

    async def follow(self) -> AsyncIterator[Update]:
        """Everything from the beginning on. Raises the run's error."""
        self._followers += 1
        shown = 0
        try:
            while True:
                news = self._news
                while shown < len(self._updates):
                    shown += 1
                    yield self._updates[shown - 1]
                if self._error is not None:
                    raise self._error
                if self._answered:
                    return
                await news.wait()
        finally:
            self._followers -= 1
            if not self._followers and not self._answered:
                self.cancel()  # of a task that has ended: nothing

    async def _read(self, source: AsyncIterator[Update]) -> None:
        async for update in source:
            self._updates.append(update)
            if isinstance(update, Answer):
                self._on_end(update)  # before anybody has it and asks what became of the request
            self._tell()

    def _ended(self, task: asyncio.Task[None]) -> None:
        failure = StageError("server", "-", "cancelled") if task.cancelled() else task.exception()
        if self._answered:
            return
        if not isinstance(failure, CascadeError):
            log.error("a run ended without an answer", exc_info=failure)
            failure = StageError("server", "-", "ended without an answer")
        self._error = failure
        self._on_end(failure)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class SharedRuns:
    """Runs by caller and idempotency key, `_KEPT` of them at most."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._runs: OrderedDict[tuple[str, str], tuple[str, float, Run]] = OrderedDict()

    def find(self, caller: str, key: str, body_digest: str) -> Run | None:
        """The run of an earlier call, if it may be followed. Raises `InputError` where the body was another one."""
        found = self._runs.get((caller, key))
        if found is None:
            return None
        known_digest, until, run = found
        if run.failed or self._clock() >= until:
            del self._runs[caller, key]
            return None
        if known_digest != body_digest:
            raise InputError("Idempotency-Key", key, "the body that it came with before")
        return run

    def keep(self, caller: str, key: str, body_digest: str, run: Run) -> None:
        """Remember the run of a new call."""
        self._runs[caller, key] = (body_digest, self._clock() + _KEPT_S, run)
        while len(self._runs) > _KEPT:
            self._runs.popitem(last=False)
