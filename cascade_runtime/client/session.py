"""Sessions of a client: windows of a live source in, answers out.

    with client.session("What is moving?") as session:            async with client.session("...") as session:
        for window in camera:                                         session.send(window)
            session.send(window)                                      reply = await anext(session)
            for reply in session.ready():
                print(reply.number, reply.outcome)
        session.finish()
        for reply in session: ...                                 # what was still under way

One window is answered at a time. `send` never waits: while a window is being answered the newest `waiting` of the
others wait, and older ones are dropped; `WindowAnswer.dropped` counts them. A window without an answer has an error in
its place (one without events an `InputError`), and the session goes on.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

from cascade_runtime.api import WindowAnswer
from cascade_runtime.client.recording import EventsLike, to_events
from cascade_runtime.errors import StageError
from cascade_runtime.events import Events
from cascade_runtime.transports import NewestWindows, Window

_UNREAD = 256  # answers that nobody has taken yet; then no window is answered either


class AsyncSession:
    """Made by `AsyncCascadeClient.session`. Windows are answered while somebody iterates over it."""

    def __init__(self, waiting: int, answers: Callable[[NewestWindows[Window]], AsyncIterator[WindowAnswer]]) -> None:
        self._windows: NewestWindows[Window] = NewestWindows(waiting)
        self._answers = answers(self._windows)
        self._sent = 0
        self.ended = False  # or about to: `close` was called

    def send(self, events: EventsLike) -> int:
        """Hand over the next window; its number, from 0 on. Raises `InputError` for what is no recording."""
        self._windows.put(Window(self._sent, to_events(events)))
        self._sent += 1
        return self._sent - 1

    def finish(self) -> None:
        """No more windows: the iteration ends after the last answer."""
        self._windows.close()

    async def close(self) -> None:
        """End the session, and what is being answered."""
        self.ended = True
        self._windows.close()
        await self._answers.aclose()  # type: ignore[attr-defined]

    def __aiter__(self) -> AsyncSession:
        return self

    async def __anext__(self) -> WindowAnswer:
        return await anext(self._answers)

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


class Session:
    """Made by `CascadeClient.session`. Windows are answered in the background; may be used from two threads, one that
    sends and one that reads.
    """

    def __init__(self, session: AsyncSession, start: Callable[[Coroutine[Any, Any, Any]], Future[Any]]) -> None:
        self._session, self._start = session, start
        self._replies: queue.Queue[WindowAnswer | None] = queue.Queue()
        self._room = threading.Semaphore(_UNREAD)
        self._running = start(self._answer())
        self._running.add_done_callback(lambda _: self._replies.put(None))

    async def _answer(self) -> None:
        async with self._session:
            async for reply in self._session:
                while not self._room.acquire(blocking=False):
                    await asyncio.sleep(0.01)
                self._replies.put(reply)

    def send(self, events: EventsLike) -> int:
        """Hand over the next window; its number, from 0 on. Raises `InputError` for what is no recording, and what
        ended the session if that is over.
        """
        recording = to_events(events)
        if self._running.done():
            self._result()
        try:
            return self._start(self._send(recording)).result()
        except StageError:
            if self._session.ended:  # since the look above, and by what?
                self._result()
            raise

    async def _send(self, events: Events) -> int:
        return self._session.send(events)

    def finish(self) -> None:
        """No more windows: the iteration ends after the last answer."""
        self._start(self._finish()).result()

    async def _finish(self) -> None:
        self._session.finish()

    def ready(self) -> Iterator[WindowAnswer]:
        """The answers that are there; waits for none."""
        while not self._replies.empty():
            reply = self._take()
            if reply is None:
                return
            yield reply

    def __iter__(self) -> Iterator[WindowAnswer]:
        while (reply := self._take()) is not None:
            yield reply

    def close(self) -> None:
        """End the session, and what is being answered."""
        self._running.cancel()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _take(self) -> WindowAnswer | None:
        reply = self._replies.get()
        if reply is None:
            self._replies.put(None)  # for who asks again
            self._result()
        else:
            self._room.release()
        return reply

    def _result(self) -> None:
        """Raises what ended the session, where that was not its end."""
        try:
            self._running.result()
        except CancelledError:
            raise StageError("session", "-", "it was closed") from None
