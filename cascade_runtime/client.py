"""`CascadeClient`: ask questions about recordings.

    with CascadeClient() as client:                         # in this process
        answer = client.generate("recording.npy", "What is moving?")
    client = CascadeClient(target="ray")                    # the same on five Ray stages

`AsyncCascadeClient` is the core; `CascadeClient` runs it on an event loop of its own in a background thread.
`generate` takes one recording or a list (with a progress bar), `stream` yields pieces of text and then the answer.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, SamplingParams, load_recipe
from cascade_runtime.errors import CascadeError, InputError, StageError
from cascade_runtime.events import Events, read_events
from cascade_runtime.transports import Transport, open_transport

EventsLike = Events | str | Path | Mapping[str, Any] | np.ndarray | pa.RecordBatch
T = TypeVar("T")

_VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm")


def to_events(source: EventsLike) -> Events:
    """A recording from what a user has: Events, a path, an Arrow batch, a dict or structured array with t, x, y, p.

    Paths of videos and of folders of frames are turned into events by the simulator. Raises `InputError`.
    """
    try:
        return _to_events(source)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # what numpy and pathlib make of nonsense
        raise InputError(
            "events", f"{type(source).__name__}: {error}", "numbers named t, x, y, p, or a path"
        ) from error


def _to_events(source: EventsLike) -> Events:
    if isinstance(source, Events):
        return source
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if path.suffix.lower() in _VIDEOS or path.is_dir():
            from cascade_runtime.events.video_to_events import video_to_events

            return video_to_events(path)
        return read_events(path)
    if isinstance(source, pa.RecordBatch):
        return Events.from_record_batch(source)
    if isinstance(source, np.ndarray) and source.dtype.names:
        source = {name: source[name] for name in source.dtype.names}
    if isinstance(source, Mapping):
        missing = [name for name in ("t", "x", "y", "p") if name not in source]
        if missing:
            raise InputError("events", sorted(map(str, source)), f"also {', '.join(missing)}")
        x, y = np.asarray(source["x"]), np.asarray(source["y"])
        width = int(source.get("width", int(x.max()) + 1 if x.size else 1))
        height = int(source.get("height", int(y.max()) + 1 if y.size else 1))
        return Events.from_arrays(source["t"], x, y, source["p"], width=width, height=height)
    raise InputError("events", type(source).__name__, "Events, a path, an Arrow batch, or arrays named t, x, y, p")


class AsyncCascadeClient:
    """The asynchronous client. target: "in-process" or "ray"; recipe: a name, a TOML file or a `Recipe`."""

    def __init__(
        self,
        target: str = "in-process",
        *,
        recipe: Recipe | str | Path = "three_level",
        timeout_s: float | None = None,
    ) -> None:
        self.recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
        self.timeout_s = timeout_s
        self._transport: Transport = open_transport(target, self.recipe)

    async def generate(
        self, events: EventsLike, prompt: str, *, sampling: SamplingParams | None = None, speculate: bool = True
    ) -> Answer:
        """Answer one question about one recording. Raises the typed error of whatever went wrong."""
        request = self.request(events, prompt, sampling, speculate)
        async for _, update in self._transport.run([request], self.timeout_s, False):
            if isinstance(update, CascadeError):
                raise update
            if isinstance(update, Answer):
                return update
        raise AssertionError("a transport ended without an answer")

    async def stream(
        self, events: EventsLike, prompt: str, *, sampling: SamplingParams | None = None, speculate: bool = True
    ) -> AsyncIterator[str | Answer]:
        """Pieces of text as the target confirms them, then the answer."""
        request = self.request(events, prompt, sampling, speculate)
        async for _, update in self._transport.run([request], self.timeout_s, True):
            if isinstance(update, CascadeError):
                raise update
            yield update

    async def generate_many(
        self,
        events: Sequence[EventsLike],
        prompts: str | Sequence[str],
        *,
        sampling: SamplingParams | None = None,
        speculate: bool = True,
        progress: bool = False,
    ) -> list[Answer | CascadeError]:
        """Answer questions about many recordings, in order; one that fails gives its error in its place."""
        if isinstance(prompts, str):
            prompts = [prompts] * len(events)
        if len(prompts) != len(events):
            raise InputError("prompts", len(prompts), f"one prompt, or one per recording ({len(events)})")
        from tqdm import tqdm

        results: dict[int, Answer | CascadeError] = {}
        requests: dict[int, GenerateRequest] = {}
        for index, (source, prompt) in enumerate(zip(events, prompts, strict=True)):
            try:
                requests[index] = self.request(source, prompt, sampling, speculate)
            except CascadeError as error:
                results[index] = error
        order = list(requests)
        with tqdm(total=len(events), initial=len(results), unit="answer", disable=not progress) as bar:
            async for position, update in self._transport.run(list(requests.values()), self.timeout_s, False):
                if isinstance(update, Answer | CascadeError):
                    results[order[position]] = update
                    bar.update()
        return [results[index] for index in range(len(events))]

    async def close(self) -> None:
        """Stop what this client started."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncCascadeClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    @staticmethod
    def request(events: EventsLike, prompt: str, sampling: SamplingParams | None, speculate: bool) -> GenerateRequest:
        """The validated request for a recording and a question."""
        sampling = sampling or SamplingParams()
        return GenerateRequest(events=to_events(events), question=prompt, sampling=sampling, speculate=speculate)


class CascadeClient:
    """The synchronous client: `AsyncCascadeClient` on an event loop in a background thread."""

    def __init__(
        self,
        target: str = "in-process",
        *,
        recipe: Recipe | str | Path = "three_level",
        timeout_s: float | None = None,
    ) -> None:
        self._async = AsyncCascadeClient(target, recipe=recipe, timeout_s=timeout_s)
        self.recipe = self._async.recipe
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
    ) -> list[Answer | CascadeError]: ...

    def generate(
        self,
        events: EventsLike | list[EventsLike],
        prompt: str | Sequence[str],
        *,
        sampling: SamplingParams | None = None,
        speculate: bool = True,
        progress: bool = True,
    ) -> Answer | list[Answer | CascadeError]:
        """Answer one question about one recording, or about each of a list (one prompt, or one per recording).

        With `speculate` off the target decodes alone: the same tokens, for comparison. A list shows a progress bar
        and gives a request that failed its error in its place; a single request raises it.
        """
        if isinstance(events, list):
            many = self._async.generate_many(events, prompt, sampling=sampling, speculate=speculate, progress=progress)
            return self._wait(many)
        if not isinstance(prompt, str):
            raise InputError("prompt", type(prompt).__name__, "a text")
        return self._wait(self._async.generate(events, prompt, sampling=sampling, speculate=speculate))

    def stream(
        self, events: EventsLike, prompt: str, *, sampling: SamplingParams | None = None, speculate: bool = True
    ) -> Iterator[str | Answer]:
        """Pieces of text as the target confirms them, then the answer. Leaving the loop early cancels the request."""
        updates: queue.Queue[Any] = queue.Queue()

        async def pump() -> None:
            async for update in self._async.stream(events, prompt, sampling=sampling, speculate=speculate):
                updates.put(update)

        future = self._start(pump())
        future.add_done_callback(lambda _: updates.put(None))
        try:
            while (update := updates.get()) is not None:
                yield update
            future.result()
        except CancelledError:
            raise StageError("client", "-", "the client was closed") from None
        finally:
            future.cancel()

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
