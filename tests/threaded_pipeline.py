"""The real stages, controller and channels as threads of this process: what Ray runs, without Ray."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager, suppress
from typing import Any

from actors.controller import Controller
from actors.stage_kind import stage_kind
from cascade_runtime.channels import ChannelSpec
from cascade_runtime.config import Recipe, links_between, stage_of
from cascade_runtime.errors import DeadlineExceeded, FeaturesLost, StageDied


class ThreadStage:
    """A `StageHandle` over an object and a thread pool; futures among the arguments are waited for, as Ray does. `kill`
    is what a dead process is to those who hold its handle: every call fails, those under way as well.
    """

    def __init__(self, stage: Any, name: str = "stage") -> None:
        self.stage, self.name = stage, name
        self.pool = ThreadPoolExecutor(32)
        self._lock = threading.Lock()
        self._open: set[Future[Any]] = set()
        self._dead = False

    def start(self, method: str, *args: Any) -> Future[Any]:
        outcome: Future[Any] = Future()

        def call() -> None:
            try:
                try:
                    given = [arg.result() if isinstance(arg, Future) else arg for arg in args]
                except StageDied as error:
                    raise FeaturesLost(self.name, "-", str(error)) from error
                result = getattr(self.stage, method)(*given)
            except BaseException as error:  # noqa: BLE001  it belongs to the caller
                with suppress(InvalidStateError):  # it was killed meanwhile
                    outcome.set_exception(error)
            else:
                with suppress(InvalidStateError):
                    outcome.set_result(result)
            self._open.discard(outcome)

        with self._lock:
            if self._dead:
                outcome.set_exception(StageDied(self.name, "-", "its process has died"))
                return outcome
            self._open.add(outcome)
        self.pool.submit(call)
        return outcome

    def result(self, reference: Future[Any], timeout_s: float) -> Any:
        try:
            return reference.result(timeout_s)
        except FutureTimeout:
            raise DeadlineExceeded("no answer in time") from None

    def kill(self) -> None:
        with self._lock:
            self._dead = True
            under_way, self._open = self._open, set()
        for outcome in under_way:
            with suppress(InvalidStateError):
                outcome.set_exception(StageDied(self.name, "-", "its process has died"))
        if hasattr(self.stage, "links"):
            self.stage._stopping.set()
            self.stage.links.close()
            self.stage._bell.ring()


class ThreadCrew:
    """A `Crew` for `Supervisor` over such stages: a restart is a new object behind a new handle, as it is for Ray."""

    def __init__(self, recipe: Recipe, handles: dict[str, ThreadStage], controller: Controller) -> None:
        self.recipe, self.handles, self.controller = recipe, handles, controller

    def kill(self, stage: str, pulse: object) -> None:
        self.handles[stage].kill()

    def start(self, stage: str) -> float:
        begun_at = time.monotonic()
        self.handles[stage] = ThreadStage(make_stage(self.recipe, stage), stage)
        if stage in self.recipe.level_members:
            self.handles[stage].stage.link((), 1.0)
        return begun_at

    def fell(self, stage: str, incarnation: int, ago_s: float) -> None:
        self.controller.fell(stage, incarnation, ago_s)

    def resume(self, stage: str, incarnation: int) -> None:
        self.controller.renew(stage, self.handles[stage], incarnation)

    def wire(self, light: str, heavy: str, epoch: int) -> None:
        spec = ChannelSpec(backend="local", link=f"{light}-{heavy}", epoch=epoch)
        above, below = (self.recipe.members[stage_of(member)].index(member) for member in (light, heavy))
        spec = self.handles[light].stage.listen(spec, below)
        joins = [
            self.handles[light].start("join_downstream", 5.0, below),
            self.handles[heavy].start("join_upstream", spec, 5.0, above),
        ]
        for join in joins:
            join.result(10.0)

    def give_up(self, stage: str, reason: str) -> None:
        self.controller.give_up(stage, reason)


def make_stage(recipe: Recipe, name: str) -> Any:
    """The stage, or replica of one, of this name."""
    kind, arguments = stage_kind(recipe, name)
    return kind(*arguments)


@contextmanager
def threaded_pipeline(
    recipe: Recipe, wrap_spec: Callable[[ChannelSpec], ChannelSpec] = lambda spec: spec
) -> Iterator[Any]:
    """A running controller; `.language` holds its language stages, lightest first, `.crew` who can restart them."""
    levels = recipe.level_members
    names = [member for members in recipe.members.values() for member in members]
    handles = {name: ThreadStage(make_stage(recipe, name), name) for name in names}
    language = [handles[name].stage for name in levels]
    specs: dict[str, list[ChannelSpec]] = {name: [] for name in levels}
    for lighter, heavier in itertools.pairwise(recipe.stages):
        for (light, heavy), epoch in links_between(lighter.members, heavier.members).items():
            spec = wrap_spec(ChannelSpec(backend="local", link=f"{light}-{heavy}", epoch=epoch))
            specs[heavy].append(handles[light].stage.listen(spec, heavier.members.index(heavy)))
    links = [handles[name].start("link", specs[name], 10.0) for name in levels]
    for link in links:
        link.result(10.0)
    controller = Controller(recipe, handles)
    controller.language = language  # type: ignore[attr-defined]
    controller.crew = ThreadCrew(recipe, handles, controller)  # type: ignore[attr-defined]
    try:
        yield controller
    finally:
        for name in levels:
            handles[name].stage.stop()
        for handle in handles.values():
            handle.pool.shutdown(wait=False)
