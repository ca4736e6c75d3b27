"""Stages and the controller that are started anew at the same time wait for one another, and not in a circle."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from cascade_runtime.config import Recipe, load_recipe
from cascade_runtime.errors import DeadlineExceeded, StageDied
from cluster.supervision.ray_crew import RayCrew

SLOW_S = 0.4


def recipe() -> Recipe:
    return load_recipe("three_level", ["deadlines.control_s=0.1", "deadlines.start_s=20.0"])


class Handle:
    """A stage as `RayStage` shows it; its actor answers once `there` is set, and one that is None is dead."""

    def __init__(self, name: str) -> None:
        self.name, self.actor, self.there, self.asked = name, "first", threading.Event(), list[str]()
        self.there.set()

    def start(self, method: str, *args: Any) -> str:
        return method

    def result(self, method: str, timeout_s: float) -> None:
        self.asked.append(method)
        if self.actor is None:
            raise StageDied(self.name, "-", "its process has died")
        if not self.there.wait(timeout_s):
            raise DeadlineExceeded(f"stage {self.name}: no answer in time")

    def ask(self, timeout_s: float, method: str, *args: Any) -> None:
        self.result(method, timeout_s)


def crew_of(handles: dict[str, Handle], made: list[int]) -> RayCrew:
    def create(first: int) -> str:
        assert handles["heavy"].actor is not None and handles["adapter"].actor is not None
        made.append(first)
        return "second"

    reserved: Any = SimpleNamespace()
    return RayCrew(recipe(), reserved, handles, lambda stage: f"new {stage}", create)


def all_handles() -> dict[str, Handle]:
    return {name: Handle(name) for name in ("encoder", "adapter", "light", "mid", "heavy", "controller")}


def test_a_stage_that_is_up_waits_for_a_controller_that_is_still_starting() -> None:
    handles = all_handles()
    handles["controller"].there.clear()
    crew = crew_of(handles, [])
    with ThreadPoolExecutor(1) as pool:
        resumed = pool.submit(crew.resume, "heavy", 1)
        time.sleep(SLOW_S)  # longer than a control call may take
        assert not resumed.done()
        handles["controller"].there.set()
        assert resumed.result(10) is None
    handles["controller"].actor = None  # nor is it the fault of a stage if there is none
    crew.resume("heavy", 1)


def test_a_controller_is_made_once_those_it_asks_are_there() -> None:
    handles, made = all_handles(), list[int]()
    handles["heavy"].actor = handles["adapter"].actor = None
    crew = crew_of(handles, made)
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(crew.start, "controller")
        time.sleep(SLOW_S)
        assert not started.done() and not made
        handles["adapter"].actor = "second"
        time.sleep(SLOW_S)
        assert not made
        there_at = time.monotonic()
        handles["heavy"].actor = "second"
        assert started.result(10) >= there_at  # what it waited for is no loading
    assert len(made) == 1 and handles["controller"].actor == "second"
    assert [method for method, _ in itertools.groupby(handles["heavy"].asked)] == ["evict", "info"]


def test_a_controller_is_made_where_one_replica_of_those_it_asks_is_there() -> None:
    handles, made = all_handles(), list[int]()
    handles |= {name: Handle(name) for name in ("adapter.2", "heavy.2")}
    handles["heavy.2"].actor = handles["adapter"].actor = None
    crew = RayCrew(
        load_recipe("three_level", ["deadlines.start_s=1.0", "stages.heavy.replicas=2", "adapter.replicas=2"]),
        SimpleNamespace(),  # type: ignore[arg-type]
        handles,
        lambda stage: f"new {stage}",
        lambda first: made.append(first) or "second",
    )
    crew.start("controller")
    handles["heavy.2"].actor, handles["heavy"].actor = "second", None
    crew.start("controller")
    assert len(made) == 2


def test_a_controller_loads_while_those_it_asks_do() -> None:
    handles, made = all_handles(), list[int]()
    handles["heavy"].there.clear()
    crew = crew_of(handles, made)
    began = time.monotonic()
    assert crew.start("controller") >= began and handles["controller"].actor == "second"
    assert len(made) == 1 and not handles["heavy"].there.is_set()
