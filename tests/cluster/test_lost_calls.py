"""Calls to the controller that are lost on their way: asked again, answered once. No cluster: the actor is a script."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from client.scripted import ANSWER
from ray.exceptions import (
    ActorUnavailableError,
    ObjectStoreFullError,
    OutOfDiskError,
    RayTaskError,
)
from toy_family import toy_events

from cascade_runtime.api import GenerateRequest
from cascade_runtime.config import load_recipe
from cascade_runtime.errors import CallLost, CapacityError, FeaturesLost, InputError, StageError
from cluster import ray_transport
from cluster.launch import RayStage, plain_error
from cluster.ray_transport import RayTransport

_BUSY = InputError("request_id", "r", "an id that is not being answered already")
BUSY = RayTaskError("generate", "traceback", _BUSY).as_instanceof_cause()


class Actor:
    """A controller that gives what it is told to, one thing a call."""

    def __init__(self, *script: Any) -> None:
        self.script, self.asked = list(script), list[str]()
        self.generate = SimpleNamespace(remote=self._call)
        self.cancel = SimpleNamespace(remote=lambda request_id: None)

    async def _call(self, request: GenerateRequest, timeout_s: float | None) -> Any:
        self.asked.append(request.request_id)
        told = self.script.pop(0)
        if isinstance(told, Exception):
            raise told
        return told


def outcome(actor: Actor, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, RayTransport]:
    monkeypatch.setattr(ray_transport, "_PAUSE_S", 0.001)

    async def ask() -> tuple[Any, RayTransport]:
        supervisor = SimpleNamespace(given_up={})
        controller = SimpleNamespace(actor=actor, start=lambda *args: None)
        pipeline = SimpleNamespace(
            recipe=load_recipe("three_level"), controller=controller, supervisor=supervisor, closed=False
        )
        monkeypatch.setattr(ray_transport, "launch", lambda recipe, report: pipeline)
        transport = RayTransport(pipeline.recipe)
        told = [
            update async for update in transport.run([GenerateRequest(events=toy_events(), question="?")], 5.0, False)
        ]
        assert len(told) == 1
        return told[0][1], transport

    return asyncio.run(ask())


def test_leaving_a_request_waits_until_its_slots_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        free, cancelled = asyncio.Event(), list[str]()

        async def cancel(request_id: str) -> bool:
            cancelled.append(request_id)
            await free.wait()
            return True

        async def never(request: GenerateRequest, timeout_s: float | None) -> Any:
            await asyncio.sleep(60)

        actor = SimpleNamespace(generate=SimpleNamespace(remote=never))
        controller = SimpleNamespace(actor=actor, start=lambda method, request_id: cancel(request_id))
        pipeline = SimpleNamespace(
            recipe=load_recipe("three_level"), controller=controller, supervisor=None, closed=False
        )
        monkeypatch.setattr(ray_transport, "launch", lambda recipe, report: pipeline)
        request = GenerateRequest(events=toy_events(), question="?")
        asked = asyncio.create_task(_all(RayTransport(pipeline.recipe).run([request], 5.0, False)))
        await asyncio.sleep(0.02)
        asked.cancel()
        await asyncio.sleep(0.05)
        assert cancelled == [request.request_id] and not asked.done()
        free.set()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(check())


async def _all(updates: Any) -> list[Any]:
    return [update async for update in updates]


def lost() -> ActorUnavailableError:
    return ActorUnavailableError("the call was lost", None)


def test_a_lost_call_is_asked_again_under_the_same_id(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = Actor(lost(), lost(), ANSWER)
    answer, transport = outcome(actor, monkeypatch)
    assert answer is ANSWER and transport.retried == 1
    assert len(actor.asked) == 3 and len(set(actor.asked)) == 1


def test_who_was_answered_by_silence_waits_for_the_call_that_is_still_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = Actor(lost(), BUSY, BUSY, ANSWER)
    assert outcome(actor, monkeypatch)[0] is ANSWER and not actor.script
    first = Actor(BUSY, ANSWER)  # nothing of ours was lost: somebody else has this id
    refused = outcome(first, monkeypatch)[0]
    assert isinstance(refused, InputError) and first.script == [ANSWER]


@pytest.mark.parametrize("error", [ObjectStoreFullError("full"), OutOfDiskError("full")])
def test_a_full_object_store_is_no_fault_of_a_stage_and_may_be_tried_later(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    for told in (error, RayTaskError("view", "traceback", error)):
        plain = plain_error(told, "encoder")
        assert isinstance(plain, CapacityError) and plain.retryable and "object store is full" in str(plain)
    assert isinstance(outcome(Actor(error), monkeypatch)[0], CapacityError)


class Lossy(RayStage):
    """A stage whose first calls are lost."""

    def __init__(self, losses: int) -> None:
        super().__init__("mid", None)
        self.losses, self.started = losses, list[tuple[object, ...]]()

    def start(self, method: str, *args: Any) -> int:
        self.started.append((method, *args))
        return len(self.started)

    def result(self, reference: int, timeout_s: float) -> str:
        if reference <= self.losses:
            raise plain_error(lost(), self.name)
        return "told"


def test_control_calls_that_may_be_made_twice_are() -> None:
    stage = Lossy(3)
    assert stage.ask(5.0, "listen", "spec") == "told" and stage.started == [("listen", "spec")] * 4
    begun = Lossy(1)
    assert begun.ask(5.0, "info", begun=begun.start("info")) == "told" and begun.started == [("info",)] * 2
    with pytest.raises(CallLost):
        Lossy(10**9).ask(0.01, "info")


def test_other_errors_stay_what_they_are() -> None:
    assert isinstance(plain_error(RayTaskError("f", "t", lost()), "mid"), FeaturesLost)
    plain = plain_error(RayTaskError("f", "t", ValueError("odd")), "mid")
    assert type(plain) is StageError and "odd" in str(plain)
