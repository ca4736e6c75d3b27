"""`CascadeClient`: `AsyncCascadeClient` on an event loop of its own in a background thread."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any, TypeVar, Unpack, overload

from cascade_runtime.api import Answer, Health, Piece, ServedModel
from cascade_runtime.client.async_client import AsyncCascadeClient
from cascade_runtime.client.recording import EventsLike
from cascade_runtime.client.session import Session
from cascade_runtime.config import Recipe, SamplingOptions, SamplingParams
from cascade_runtime.errors import CascadeError, InputError, StageError

T = TypeVar("T")
_UNREAD = 256  # updates of a stream that nobody has taken yet; then it is not read on either


class CascadeClient:
    """The synchronous client; its options are those of `AsyncCascadeClient`. May be used from several threads."""

    def __init__(
        self,
        target: str | None = None,
        *,
        recipe: Recipe | str | Path | None = None,
        api_key: str | None = None,
        timeout: float | None = None,
        max_retries: int = 2,
    ) -> None:
        self._async = AsyncCascadeClient(
            target, recipe=recipe, api_key=api_key, timeout=timeout, max_retries=max_retries
        )
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cascade-client", daemon=True)
        self._thread.start()

    @overload
    def generate(
        self,
        events: EventsLike,
        prompt: str,
        *,
        sampling: SamplingParams | None = ...,
        speculate: bool = ...,
        progress: bool = ...,
        **options: Unpack[SamplingOptions],
    ) -> Answer: ...

    @overload
    def generate(
        self,
        events: list[EventsLike],
        prompt: str | Sequence[str],
        *,
        sampling: SamplingParams | None = ...,
        speculate: bool = ...,
        progress: bool = ...,
        **options: Unpack[SamplingOptions],
    ) -> list[Answer | CascadeError]: ...

    def generate(
        self,
        events: EventsLike | list[EventsLike],
        prompt: str | Sequence[str],
        *,
        sampling: SamplingParams | None = None,
        speculate: bool = True,
        progress: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> Answer | list[Answer | CascadeError]:
        """Answer one question about one recording, or about each of a list: that is `generate_many`.

        With `speculate` off the target decodes alone: the same tokens, for comparison. A list shows a progress bar.
        options: fields of `sampling` one by one, as in max_tokens=40.
        """
        if isinstance(events, list):
            return self.generate_many(
                events, prompt, sampling=sampling, speculate=speculate, progress=progress, **options
            )
        if not isinstance(prompt, str):
            raise InputError("prompt", type(prompt).__name__, "a text")
        return self._wait(self._async.generate(events, prompt, sampling=sampling, speculate=speculate, **options))

    def generate_many(
        self,
        events: Sequence[EventsLike],
        prompts: str | Sequence[str],
        *,
        sampling: SamplingParams | None = None,
        speculate: bool = True,
        concurrency: int = 16,
        progress: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> list[Answer | CascadeError]:
        """Answer many questions (one prompt, or one per recording), in order and at most `concurrency` at a time; one
        that fails gives its error in its place.
        """
        many = self._async.generate_many(
            events,
            prompts,
            sampling=sampling,
            speculate=speculate,
            concurrency=concurrency,
            progress=progress,
            **options,
        )
        return self._wait(many)

    def stream(
        self,
        events: EventsLike,
        prompt: str,
        *,
        sampling: SamplingParams | None = None,
        speculate: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Piece | Answer]:
        """Pieces of text as the target confirms them, then the answer. Leaving the loop early cancels the request."""
        updates: queue.Queue[Any] = queue.Queue()
        room = threading.Semaphore(_UNREAD)

        async def pump() -> None:
            stream = self._async.stream(events, prompt, sampling=sampling, speculate=speculate, **options)
            async for update in stream:
                while not room.acquire(blocking=False):
                    await asyncio.sleep(0.01)
                updates.put(update)

        future = self._start(pump())
        future.add_done_callback(lambda _: updates.put(None))
        try:
            while (update := updates.get()) is not None:
                room.release()
                yield update
            future.result()
        except CancelledError:
            raise StageError("client", "-", "the client was closed") from None
        finally:
            future.cancel()

    def session(
        self,
        prompt: str,
        *,
        sampling: SamplingParams | None = None,
        speculate: bool = True,
        waiting: int = 1,
        **options: Unpack[SamplingOptions],
    ) -> Session:
        """One question about a live source, answered for window after window; see `Session`. waiting: how many windows
        wait for the one that is being answered; of more, the oldest are dropped and counted.
        """
        session = self._async.session(prompt, sampling=sampling, speculate=speculate, waiting=waiting, **options)
        return Session(session, self._start)

    def models(self) -> tuple[ServedModel, ...]:
        """What may be asked at this target."""
        return self._wait(self._async.models())

    def health(self) -> Health:
        """Whether requests would be answered now."""
        return self._wait(self._async.health())

    def trace(self, request_id: str) -> dict[str, Any]:
        """What was done when for a request that was answered lately, as a Chrome trace for ui.perfetto.dev."""
        return self._wait(self._async.trace(request_id))

    def close(self) -> None:
        """Stop what this client started; calls that still wait raise `StageError`. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._async.close()

    def __enter__(self) -> CascadeClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        if self._closed:
            coroutine.close()
            raise StageError("client", "-", "the client is closed")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = self._start(coroutine)
        try:
            return future.result()
        except CancelledError:
            raise StageError("client", "-", "the client was closed") from None
        except BaseException:
            future.cancel()  # Ctrl-C while waiting ends the request too
            raise
