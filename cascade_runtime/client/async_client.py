"""`AsyncCascadeClient`: the client itself. It makes requests of what users hand over and passes them to a transport."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from cascade_runtime.api import Answer, GenerateRequest, Health, Piece, ServedModel, WindowAnswer
from cascade_runtime.client.recording import EventsLike, to_events
from cascade_runtime.client.session import AsyncSession
from cascade_runtime.config import Recipe, SamplingOptions, SamplingParams, load_recipe
from cascade_runtime.config.checks import integer, number
from cascade_runtime.errors import CascadeError, ConfigError, InputError
from cascade_runtime.transports import (
    MAX_CONCURRENCY,
    NewestWindows,
    Remote,
    SessionTerms,
    SessionTransport,
    Transport,
    Window,
    answer_windows,
    is_remote,
    open_transport,
)

API_KEY = "CASCADE_API_KEY"
"""The environment variable that holds the key for addresses, where none is given."""

_MAX_TIMEOUT_S = 1e6


class AsyncCascadeClient:
    """The asynchronous client.

    target: None or "in-process"; "ray" for stages on a Ray of this client's own, "ray://HOST:PORT" or "ray://auto" on a
    cluster of which this machine is a node; or the address of a server. recipe: a name, a TOML file or a `Recipe` of
    what to start here ("three_level" if none is given); a server has its own. api_key: for an address; else that of the
    environment. timeout: seconds for one request, all its tries included; None leaves it to the recipe, and is two
    minutes for an address. max_retries: of one request to an address. Raises `ConfigError`.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        recipe: Recipe | str | Path | None = None,
        api_key: str | None = None,
        timeout: float | None = None,
        max_retries: int = 2,
    ) -> None:
        target = "in-process" if target is None else target
        if timeout is not None:
            number(ConfigError, "timeout", timeout, 0.001, _MAX_TIMEOUT_S)
        self.timeout_s = timeout
        self._transport: Transport
        if is_remote(target):
            if recipe is not None:
                raise ConfigError("recipe", "a recipe for an address", "none: the server has its own")
            key = (os.environ.get(API_KEY) or None) if api_key is None else api_key
            self._transport = open_transport(target, Remote(url=target, api_key=key, max_retries=max_retries))
            return
        if api_key is not None:
            raise ConfigError("api_key", "a key without an address", "none: what runs here needs no key")
        recipe = "three_level" if recipe is None else recipe
        self._transport = open_transport(target, recipe if isinstance(recipe, Recipe) else load_recipe(recipe))

    async def generate(
        self,
        events: EventsLike,
        prompt: str,
        *,
        sampling: SamplingParams | None = None,
        speculate: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> Answer:
        """Answer one question about one recording. options: fields of `sampling` one by one, as in max_tokens=40.
        Raises the typed error of whatever went wrong.
        """
        request = self.request(events, prompt, sampling, speculate, **options)
        async for _, update in self._transport.run([request], self.timeout_s, False, 1):
            if isinstance(update, CascadeError):
                raise update
            if isinstance(update, Answer):
                return update
        raise AssertionError("a transport ended without an answer")

    async def stream(
        self,
        events: EventsLike,
        prompt: str,
        *,
        sampling: SamplingParams | None = None,
        speculate: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> AsyncIterator[Piece | Answer]:
        """Pieces of text as the target confirms them, then the answer."""
        request = self.request(events, prompt, sampling, speculate, **options)
        async for _, update in self._transport.run([request], self.timeout_s, True, 1):
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
        concurrency: int = 16,
        progress: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> list[Answer | CascadeError]:
        """Answer questions about many recordings, in order and at most `concurrency` at a time; one that fails gives
        its error in its place.
        """
        integer(InputError, "concurrency", concurrency, 1, MAX_CONCURRENCY)
        if isinstance(prompts, str):
            prompts = [prompts] * len(events)
        if len(prompts) != len(events):
            raise InputError("prompts", len(prompts), f"one prompt, or one per recording ({len(events)})")
        from tqdm import tqdm

        results: dict[int, Answer | CascadeError] = {}
        requests: dict[int, GenerateRequest] = {}
        for index, (source, prompt) in enumerate(zip(events, prompts, strict=True)):
            try:
                requests[index] = self.request(source, prompt, sampling, speculate, **options)
            except CascadeError as error:
                results[index] = error
        order = list(requests)
        running = self._transport.run(list(requests.values()), self.timeout_s, False, concurrency)
        with tqdm(total=len(events), initial=len(results), unit="answer", disable=not progress) as bar:
            async for position, update in running:
                if isinstance(update, Answer | CascadeError):
                    results[order[position]] = update
                    bar.update()
        return [results[index] for index in range(len(events))]

    def session(
        self,
        prompt: str,
        *,
        sampling: SamplingParams | None = None,
        speculate: bool = True,
        waiting: int = 1,
        **options: Unpack[SamplingOptions],
    ) -> AsyncSession:
        """One question about a live source, answered for window after window; see `AsyncSession`. waiting: how many
        windows wait for the one that is being answered; of more, the oldest are dropped and counted.
        """
        terms = SessionTerms(question=prompt, sampling=_sampling(sampling, options), speculate=speculate)

        def answers(windows: NewestWindows[Window]) -> AsyncIterator[WindowAnswer]:
            if isinstance(self._transport, SessionTransport):
                return self._transport.session(windows, terms, self.timeout_s, waiting)
            return answer_windows(self._transport, windows, terms, self.timeout_s)

        return AsyncSession(waiting, answers)

    async def models(self) -> tuple[ServedModel, ...]:
        """What may be asked at this target."""
        return await self._transport.models()

    async def health(self) -> Health:
        """Whether requests would be answered now."""
        return await self._transport.health()

    async def trace(self, request_id: str) -> dict[str, Any]:
        """What was done when for a request that was answered lately, as a Chrome trace for ui.perfetto.dev.

        Raises `NotFound` for one that is not remembered.
        """
        return await self._transport.trace(request_id)

    async def close(self) -> None:
        """Stop what this client started."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncCascadeClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    @staticmethod
    def request(
        events: EventsLike,
        prompt: str,
        sampling: SamplingParams | None,
        speculate: bool,
        **options: Unpack[SamplingOptions],
    ) -> GenerateRequest:
        """The validated request for a recording and a question."""
        chosen = _sampling(sampling, options)
        return GenerateRequest(events=to_events(events), question=prompt, sampling=chosen, speculate=speculate)


def _sampling(sampling: SamplingParams | None, options: SamplingOptions) -> SamplingParams:
    """With the fields that were given one by one."""
    for name in options.keys() - SamplingOptions.__annotations__.keys():
        raise InputError(name, options[name], f"sampling, speculate, {', '.join(SamplingOptions.__annotations__)}")
    return replace(sampling or SamplingParams(), **options)  # type: ignore[arg-type]  # texts become a tuple
