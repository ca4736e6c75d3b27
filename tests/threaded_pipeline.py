"""The real stages, controller and channels as threads of this process: what Ray runs, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from typing import Any

from actors.adapter import AdapterVerifierStage
from actors.controller import Controller
from actors.drafter import Drafter
from actors.encoder import EventEncoderStage
from actors.handles import Stages
from actors.mid_verifier import MidVerifier
from actors.target import Target
from cascade_runtime.channels import ChannelSpec
from cascade_runtime.config import Recipe
from cascade_runtime.errors import DeadlineExceeded


class ThreadStage:
    """A `StageHandle` over an object and a thread pool; futures among the arguments are waited for, as Ray does."""

    def __init__(self, stage: Any) -> None:
        self.stage = stage
        self.pool = ThreadPoolExecutor(32)

    def start(self, method: str, *args: Any) -> Future[Any]:
        def call() -> Any:
            return getattr(self.stage, method)(*(arg.result() if isinstance(arg, Future) else arg for arg in args))

        return self.pool.submit(call)

    def result(self, reference: Future[Any], timeout_s: float) -> Any:
        try:
            return reference.result(timeout_s)
        except FutureTimeout:
            raise DeadlineExceeded("no answer in time") from None


@contextmanager
def threaded_pipeline(
    recipe: Recipe, wrap_spec: Callable[[ChannelSpec], ChannelSpec] = lambda spec: spec
) -> Iterator[Any]:
    """A running controller; `.language` holds its language stages, lightest first."""
    last = len(recipe.stages) - 1
    language: list[Any] = []
    for index in range(last + 1):
        if index == last:
            language.append(Target(recipe))
        else:
            language.append(MidVerifier(recipe, index) if index else Drafter(recipe))
    handles = [ThreadStage(stage) for stage in language]
    specs = [
        stage.listen(wrap_spec(ChannelSpec(backend="local", link=f"{k}-{k + 1}")))
        for k, stage in enumerate(language[:-1])
    ]
    links = [handle.start("link", specs[k - 1] if k else None, 10.0) for k, handle in enumerate(handles)]
    for link in links:
        link.result(10.0)
    encoder, adapter = ThreadStage(EventEncoderStage(recipe)), ThreadStage(AdapterVerifierStage(recipe))
    controller = Controller(recipe, Stages(encoder, adapter, handles[:-1], handles[-1]))
    controller.language = language  # type: ignore[attr-defined]
    try:
        yield controller
    finally:
        for stage in language:
            stage.stop()
        for handle in (*handles, encoder, adapter):
            handle.pool.shutdown(wait=False)
