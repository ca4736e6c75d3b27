"""`ThreadedTransport`: the stages of a recipe as threads of this process, with neither Ray nor supervision.

    run -> Controller -> encoder -> adapter -> light <-> mid <-> heavy      (<-> local channels, -> calls of a pool)

The same stages and controller as on Ray (`launch.py`), so that what needs stages that run apart works without it: a
core whose drafters are on edge boxes. They share one interpreter: where speed counts, it is Ray's.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from actors.controller import MAX_WAITING, Controller
from actors.stage_kind import stage_kind
from cascade_runtime.api import Answer, GenerateRequest, Health, Piece, ServedModel
from cascade_runtime.channels import ChannelSpec
from cascade_runtime.config import Recipe, links_between
from cascade_runtime.decoding.level import check_one_vocabulary
from cascade_runtime.errors import DeadlineExceeded, StageDied, StageError
from cascade_runtime.transports import MAX_CONCURRENCY, RecentAnswers, Update
from cascade_runtime.transports.side_by_side import Tell, side_by_side

_CALLS = 8  # at a time, beside those that wait for an answer
_TELL_S = 60.0


class ThreadStage:
    """A `StageHandle` over an object; futures among the arguments are waited for, `wait_s` at most."""

    def __init__(self, name: str, stage: Any, threads: int, wait_s: float) -> None:
        self.name, self.stage, self._wait_s = name, stage, wait_s
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"calls-{name}")

    def start(self, method: str, *args: Any) -> Future[Any]:
        """Begin a call."""
        try:
            return self._pool.submit(self._call, method, args)
        except RuntimeError:  # the pool was shut down
            raise StageDied(self.name, "-", "the stage was stopped") from None

    def result(self, reference: Future[Any], timeout_s: float) -> Any:
        """Wait for a call. Raises its error, or `DeadlineExceeded`."""
        try:
            return reference.result(timeout_s)
        except FutureTimeout:
            raise DeadlineExceeded(f"stage {self.name}: no answer in time") from None

    def close(self) -> None:
        """Take no more calls."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _call(self, method: str, args: tuple[Any, ...]) -> Any:
        given = [arg.result(self._wait_s) if isinstance(arg, Future) else arg for arg in args]
        return getattr(self.stage, method)(*given)


class ThreadedTransport:
    """A pipeline in this process. Raises `ConfigError` where the recipe cannot run apart, or not here."""

    def __init__(self, recipe: Recipe) -> None:
        recipe.check_runs_apart()
        self.recipe = recipe
        limits = _CALLS + recipe.cascade.slots, recipe.deadlines.request_s
        made: dict[str, Any] = {}
        for name in itertools.chain(*recipe.members.values()):
            kind, arguments = stage_kind(recipe, name)
            made[name] = kind(*arguments)
        check_one_vocabulary({name: made[name].info()["tokenizer"] for name in recipe.level_members})
        self.stages = {name: ThreadStage(name, stage, *limits) for name, stage in made.items()}
        self._link()
        self.controller = Controller(recipe, self.stages)
        self._pool = ThreadPoolExecutor(recipe.cascade.slots + MAX_WAITING, thread_name_prefix="requests")
        self._recent = RecentAnswers()

    async def run(
        self,
        requests: Sequence[GenerateRequest],
        timeout_s: float | None,
        stream: bool,
        concurrency: int = MAX_CONCURRENCY,
    ) -> AsyncIterator[Update]:
        """Answer requests side by side. Leaving the iterator early cancels those that still run."""
        loop = asyncio.get_running_loop()

        async def ask(request: GenerateRequest, tell: Tell) -> Answer:
            async def pass_on(piece: Piece) -> None:
                await tell(piece)

            def say(piece: Piece) -> None:
                asyncio.run_coroutine_threadsafe(pass_on(piece), loop).result(_TELL_S)

            try:
                return await loop.run_in_executor(self._pool, self._answer, request, timeout_s, say if stream else None)
            except asyncio.CancelledError:
                self._pool.submit(self.controller.cancel, request.request_id)
                raise

        async for index, update in side_by_side(requests, concurrency, ask):
            if isinstance(update, Answer):
                self._recent.keep(update)
            yield index, update

    async def models(self) -> tuple[ServedModel, ...]:
        """The one recipe."""
        return (ServedModel(self.recipe.cascade.name, self.recipe.cascade.levels),)

    async def health(self) -> Health:
        """Ready while the target's loop runs; another that has ended only makes it slower, and is named."""
        ended = [name for name in self.recipe.level_members if not self._runs(name)]
        ready = not set(self.recipe.target.members) <= set(ended)
        return Health(ready, f"no answer from {', '.join(ended)}" if ended else "ok")

    async def trace(self, request_id: str) -> dict[str, Any]:
        """What every stage did for one of the last answers."""
        return self._recent.trace(request_id)

    async def close(self) -> None:
        """Drain and stop the pipeline."""
        await asyncio.to_thread(self._close)

    def _answer(self, request: GenerateRequest, timeout_s: float | None, say: Any) -> Answer:
        if say is None:
            return self.controller.generate(request, timeout_s)
        for update in self.controller.stream(request, timeout_s):
            if isinstance(update, Answer):
                return update
            say(update)
        raise StageError("controller", request.request_id, "ended without an answer")

    def _link(self) -> None:
        """Connect neighbours: the lighter one listens."""
        wait_s = self.recipe.deadlines.start_s
        specs: dict[str, list[ChannelSpec]] = {name: [] for name in self.recipe.level_members}
        for lighter, heavier in itertools.pairwise(self.recipe.stages):
            for (light, heavy), epoch in links_between(lighter.members, heavier.members).items():
                spec = ChannelSpec(backend="local", link=f"{light}-{heavy}", epoch=epoch)
                number = heavier.members.index(heavy)
                specs[heavy].append(self.stages[light].stage.listen(spec, number))
        links = {name: self.stages[name].start("link", specs[name], wait_s) for name in specs}
        for name, linked in links.items():
            self.stages[name].result(linked, wait_s)

    def _runs(self, name: str) -> bool:
        try:
            self.stages[name].stage.pulse()
        except StageDied:
            return False
        return True

    def _close(self) -> None:
        self.controller.drain(self.recipe.deadlines.drain_s)
        for name in self.recipe.level_members:
            self.stages[name].stage.stop()
        for stage in self.stages.values():
            stage.close()
        self._pool.shutdown(wait=False)
