"""A crash of a stage is only held against requests that this incarnation of it may have been at."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from test_restarts import long_request, recipe_of, until
from threaded_pipeline import threaded_pipeline
from toy_family import toy_recipe, write_toy_family

from actors.incarnations import Incarnations
from cascade_runtime.api import Answer
from cascade_runtime.engine import Engine
from cascade_runtime.errors import Quarantined

LONG_AGO_S = 60.0


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def expected(family: Path) -> tuple[int, ...]:
    (answer,) = Engine.load(toy_recipe(family, [])).generate([long_request()])
    return answer.token_ids  # type: ignore[union-attr]


@pytest.fixture
def controller(family: Path) -> Iterator[Any]:
    """Without a supervisor: a test is its own."""
    with threaded_pipeline(recipe_of(family)) as running:
        yield running


def replaced(controller: Any, stage: str, incarnation: int, *, dead: bool = False) -> None:
    """This incarnation is there, or has died before anybody noticed that it was."""
    controller.crew.start(stage)
    if dead:
        controller.crew.kill(stage, None)
    controller.crew.resume(stage, incarnation)


def course_of(controller: Any) -> Any:
    assert until(lambda: bool(controller._inside))
    (course,) = controller._inside.values()
    return course


@pytest.mark.parametrize(("stage", "ago_s"), [("encoder", LONG_AGO_S), ("encoder", 0.0), ("target", LONG_AGO_S)])
def test_who_is_told_to_a_stage_after_its_last_sign_of_life_has_not_killed_it(
    controller: Any, expected: tuple[int, ...], stage: str, ago_s: float
) -> None:
    controller.crew.kill(stage, None)
    with ThreadPoolExecutor(1) as pool:
        answer: Future[Answer] = pool.submit(controller.generate, long_request())
        course = course_of(controller)
        for number in (1, 2, 3) if ago_s else (1, 2):
            assert until(lambda number=number: course.told.get(stage, (-1, 0))[0] == number - 1)
            controller.fell(stage, number, ago_s)
            replaced(controller, stage, number, dead=number < 3)
        if ago_s:
            assert answer.result(60).token_ids == expected
        else:  # it was there alone, twice, as far as anybody knows
            assert isinstance(answer.exception(60), Quarantined)


def test_who_waits_for_a_target_is_at_no_other_stage(controller: Any, expected: tuple[int, ...]) -> None:
    looks: list[int] = []

    def counted(incarnation: int) -> None:
        view = controller.crew.handles["encoder"].stage.view
        controller.crew.handles["encoder"].stage.view = lambda *args: looks.append(incarnation) or view(*args)

    counted(0)
    controller.crew.kill("target", None)
    controller.fell("target", 1, 0.0)
    with ThreadPoolExecutor(1) as pool:
        answer: Future[Answer] = pool.submit(controller.generate, long_request())
        course = course_of(controller)
        assert until(lambda: course.prepared)
        for number in (1, 2, 3):
            controller.crew.kill("encoder", None)
            controller.fell("encoder", number, 0.0)
            replaced(controller, "encoder", number)
            counted(number)
        time.sleep(0.5)  # twice as long as between two tries
        replaced(controller, "target", 1)
        assert answer.result(60).token_ids == expected
    assert looks == [0]


def test_nobody_is_told_to_a_stage_that_is_known_to_be_down(controller: Any, expected: tuple[int, ...]) -> None:
    controller.crew.kill("encoder", None)
    controller.fell("encoder", 1, 0.0)
    with ThreadPoolExecutor(1) as pool:
        answer: Future[Answer] = pool.submit(controller.generate, long_request())
        course = course_of(controller)
        for number in (1, 2, 3):  # alone, as far as anybody knows, if it were told
            controller.crew.kill("adapter", None)
            controller.fell("adapter", number, 0.0)
            replaced(controller, "adapter", number)
        time.sleep(0.5)
        assert not course.told
        replaced(controller, "encoder", 1)
        assert answer.result(60).token_ids == expected


def test_without_a_drafter_that_is_given_up_requests_still_pause_between_tries(
    controller: Any, expected: tuple[int, ...]
) -> None:
    controller.give_up("level0", "it fails too often")
    controller.crew.kill("target", None)
    handle, calls = controller.crew.handles["target"], list[str]()
    start = handle.start
    handle.start = lambda method, *args: calls.append(method) or start(method, *args)
    with ThreadPoolExecutor(1) as pool:
        answer: Future[Answer] = pool.submit(controller.generate, long_request())
        assert until(lambda: bool(calls))
        time.sleep(1.0)
        assert len(calls) < 20
        replaced(controller, "target", 1)
        assert answer.result(60).token_ids == expected


def test_a_fall_that_is_told_twice_or_too_late_is_no_news() -> None:
    stages = Incarnations(["encoder", "heavy"])
    assert stages.fell("heavy", 1) and not stages.fell("heavy", 1)
    assert not stages.fell("heavy", 2)  # the first one to replace it was never there
    assert stages.down("encoder", "heavy") and not stages.down("encoder")
    assert stages.renewed("heavy", 2) and not stages.renewed("heavy", 2)
    assert not stages.fell("heavy", 1) and not stages.down("heavy")
    assert stages.renewed("heavy", 4)  # that 2 fell was not heard
    assert not stages.fell("heavy", 4) and not stages.down("heavy")
    assert stages.present == {"encoder": 0, "heavy": 4}
