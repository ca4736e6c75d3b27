"""Requests that move between replicas: whatever comes late, twice, in another order or not at all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from replicated_toys import all_free, expected, recipe_of, requests, slowed, supervised, until
from threaded_pipeline import ThreadStage, threaded_pipeline
from toy_family import write_toy_family

from actors.controller import Controller
from cascade_runtime.api import Answer
from cascade_runtime.errors import CallLost, StageDied
from cluster.supervision.supervisor import Supervisor


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


def stage(controller: Any, name: str) -> Any:
    return controller.crew.handles[name].stage


def held(owner: Any, method: str, until_set: threading.Event, reached: threading.Event | None = None) -> None:
    """The first call of this method begins once that is set."""
    call, first = getattr(owner, method), threading.Lock()

    def waiting(*args: Any) -> Any:
        if first.acquire(blocking=False):
            if reached is not None:
                reached.set()
            assert until_set.wait(30)
        return call(*args)

    setattr(owner, method, waiting)


def back(controller: Any, name: str, incarnation: int = 1) -> None:
    """It is there again, as it was."""
    controller.renew(name, controller.crew.handles[name], incarnation)


def grown(target: Any, tokens: int) -> Callable[[], bool]:
    return lambda: bool(target.rows) and all(len(one.standing.prefix) >= tokens for one in target.rows.values())


def drafts_help(target: Any) -> Callable[[], bool]:
    before = target.totals.num_accepted_tokens
    return lambda: target.totals.num_accepted_tokens > before + 8


def test_an_admission_that_arrives_after_its_request_has_moved_on_takes_no_slot(family: Path) -> None:
    recipe, asked = recipe_of(family, (1, 1, 2, 1), cascade={"slots": 8}), requests(2, 60)
    features = threading.Event()
    with threaded_pipeline(recipe) as controller, ThreadPoolExecutor(2) as pool:
        controller.fell("level0.2", 1, 0.0)
        adapter, target = stage(controller, "adapter"), stage(controller, "target")
        align = adapter.align
        adapter.align = lambda *args: features.wait(30) and align(*args)
        slowed(target, 0.03)
        answers = [pool.submit(controller.generate, each) for each in asked]
        assert until(lambda: len(target.rows) == 2)
        back(controller, "level0.2")
        features.set()
        assert until(lambda: len(stage(controller, "level0.2").rows) == 1)
        assert until(drafts_help(target))
        assert len(stage(controller, "level0").rows) == 1
        assert [answer.result(60).token_ids for answer in answers] == expected(family, asked)
        assert all_free(controller)


def test_a_stage_that_hears_of_two_moves_in_the_other_order_speaks_with_who_has_the_request(family: Path) -> None:
    recipe, (asked,) = recipe_of(family, (1, 1, 2, 1)), requests(1, 80)
    late, reached = threading.Event(), threading.Event()
    with threaded_pipeline(recipe) as controller, ThreadPoolExecutor(1) as pool:
        target = stage(controller, "target")
        slowed(target, 0.03)
        held(target, "reroute", late, reached)
        answer: Future[Answer] = pool.submit(controller.generate, asked)
        assert until(grown(target, 8))
        controller.fell("level0", 1, 0.0)
        assert reached.wait(10)
        back(controller, "level0")
        controller.fell("level0.2", 1, 0.0)
        time.sleep(0.1)
        late.set()
        time.sleep(0.3)
        (row,) = target.rows.values()
        assert row.scheduled.upstream == 0
        assert until(drafts_help(target), 10)
        assert answer.result(60).token_ids == expected(family, [asked])[0]


def test_a_request_that_returns_while_it_is_still_moving_away_is_drafted_for(family: Path) -> None:
    recipe, asked = recipe_of(family, (1, 1, 2, 1), cascade={"slots": 8}), requests(2, 100)
    late, reached = threading.Event(), threading.Event()
    with threaded_pipeline(recipe) as controller, ThreadPoolExecutor(3) as pool:
        controller.fell("level0.2", 1, 0.0)
        target = stage(controller, "target")
        slowed(target, 0.03)
        answers = [pool.submit(controller.generate, each) for each in asked]
        assert until(lambda: len(target.rows) == 2 and grown(target, 40)())
        handle = controller.crew.handles["level0"]
        start = handle.start

        def delayed(method: str, *args: Any) -> Any:
            if method == "vacate":
                reached.set()
                assert late.wait(30)
            return start(method, *args)

        handle.start = delayed
        moving = pool.submit(back, controller, "level0.2")
        assert reached.wait(10)
        controller.fell("level0.2", 2, 0.0)
        time.sleep(0.2)
        late.set()
        moving.result(10)
        rows = [one.edge for one in target.rows.values()]
        before = [edge.num_accepted_tokens for edge in rows]
        assert until(
            lambda: all(edge.num_accepted_tokens > had + 4 for edge, had in zip(rows, before, strict=True)), 10
        )
        assert [answer.result(60).token_ids for answer in answers] == expected(family, asked)
        assert all_free(controller)


def test_a_request_whose_admission_at_another_target_is_lost_is_told_there_once_more(family: Path) -> None:
    recipe, (asked,) = recipe_of(family, (1, 1, 1, 2)), requests(1, 60)
    with threaded_pipeline(recipe) as controller, ThreadPoolExecutor(1) as pool:
        slowed(stage(controller, "target"), 0.03)
        answer: Future[Answer] = pool.submit(controller.generate, asked)
        assert until(grown(stage(controller, "target"), 8))
        second, lost = controller.crew.handles["target.2"], Future[Any]()
        lost.set_exception(CallLost("a call was lost on its way"))
        start, losses = second.start, [lost]
        second.start = lambda method, *args: losses.pop() if method == "admit" and losses else start(method, *args)
        controller.crew.kill("target", None)
        controller.fell("target", 1, 0.0)
        assert answer.result(30).token_ids == expected(family, [asked])[0]


@pytest.mark.parametrize("name", ["target", "level0"])
def test_requests_of_a_replica_that_is_restarted_on_purpose_go_on_at_another(family: Path, name: str) -> None:
    recipe, (asked,) = recipe_of(family, (1, 1, 2, 2)), requests(1, 80)
    loaded = threading.Event()
    with supervised(recipe) as controller, ThreadPoolExecutor(2) as pool:
        for each in recipe.target.members:
            slowed(stage(controller, each), 0.02)
        answer: Future[Answer] = pool.submit(controller.generate, asked)
        assert until(grown(stage(controller, "target"), 8))
        held(controller.crew, "start", loaded)
        restarted = pool.submit(controller.supervisor.restart, name, 60.0)
        try:
            assert answer.result(10).token_ids == expected(family, [asked])[0]
            assert until(lambda: stage(controller, f"{name}.2").level.decoder.passes > 3, 5)
        finally:
            loaded.set()
        assert restarted.result(60).planned
        assert not controller._admissions.quarantine._crashes


@pytest.mark.parametrize("name", ["target", "level0"])
def test_who_has_moved_away_is_not_blamed_for_what_becomes_of_the_replica_it_left(family: Path, name: str) -> None:
    recipe, asked = recipe_of(family, (1, 1, 2, 2), cascade={"slots": 8}), requests(2, 100)
    with threaded_pipeline(recipe) as controller, ThreadPoolExecutor(2) as pool:
        controller.fell(f"{name}.2", 1, 0.0)
        for each in recipe.target.members:
            slowed(stage(controller, each), 0.15)
        answers = [pool.submit(controller.generate, each) for each in asked]
        assert until(lambda: len(stage(controller, name).rows) == 2)
        time.sleep(0.2)
        back(controller, f"{name}.2")
        assert until(lambda: len(stage(controller, f"{name}.2").rows) == len(stage(controller, name).rows) == 1)
        time.sleep(0.1)
        controller.fell(name, 1, 0.0)
        crashes = controller._admissions.quarantine._crashes
        assert sum(crashes.values()) == 1
        back(controller, name)
        assert [answer.result(60).token_ids for answer in answers] == expected(family, asked)


def test_who_waits_for_room_gets_what_a_move_leaves_behind(family: Path) -> None:
    recipe, asked = recipe_of(family, (1, 1, 3), cascade={"slots": 6}), requests(8, 100)
    with threaded_pipeline(recipe) as controller, ThreadPoolExecutor(8) as pool:
        for each in recipe.target.members:
            slowed(stage(controller, each), 0.1)
        answers = [pool.submit(controller.generate, each) for each in asked[:6]]
        assert until(lambda: all(len(stage(controller, each).rows) == 2 for each in recipe.target.members))
        at = {name: course.at["target"] for name, course in controller._inside.items()}

        def falls(name: str) -> None:
            controller.crew.kill(name, None)
            controller.fell(name, 1, 0.0)
            for request in [request for request, seat in at.items() if seat == name]:
                controller.cancel(request)

        falls("target.3")
        answers += [pool.submit(controller.generate, each) for each in asked[6:]]
        inside = controller._inside
        assert until(lambda: [course.at.get("target") for course in inside.values()][4:] == ["target.3"] * 2)
        time.sleep(0.3)
        falls("target.2")
        controller.crew.start("target.2")
        slowed(stage(controller, "target.2"), 0.1)
        with controller._changed:  # nobody who waits comes first
            controller.crew.resume("target.2", 1)
        there = ("target", "target.2")
        assert until(lambda: sum(len(stage(controller, each).rows) for each in there) == 4, 5)
        for each in asked:
            controller.cancel(each.request_id)
        for answer in answers:
            assert answer.exception(30) is not None


def test_a_request_without_a_drafter_gets_the_first_place_that_is_free(family: Path) -> None:
    recipe, asked = recipe_of(family, (1, 1, 2, 1), cascade={"slots": 4}), requests(4, 150)
    with threaded_pipeline(recipe) as controller, ThreadPoolExecutor(4) as pool:
        target = stage(controller, "target")
        slowed(target, 0.05)
        answers = [pool.submit(controller.generate, each) for each in asked]
        assert until(lambda: len(target.rows) == 4 and grown(target, 4)())
        seats = {name: course.at["level0"] for name, course in controller._inside.items()}
        controller.crew.kill("level0.2", None)
        controller.fell("level0.2", 1, 0.0)
        controller.give_up("level0.2", "test")
        ended = [name for name, seat in seats.items() if seat == "level0"]
        for name in ended:
            controller.cancel(name)
        assert until(lambda: len(stage(controller, "level0").rows) == 2, 5)
        assert until(drafts_help(target), 5)
        left = [(answer, each) for answer, each in zip(answers, asked, strict=True) if each.request_id not in ended]
        assert [answer.result(60).token_ids for answer, _ in left] == expected(family, [each for _, each in left])


def test_nothing_is_asked_of_a_stage_while_the_controller_is_locked(family: Path) -> None:
    recipe, asked = recipe_of(family, (1, 1, 2, 1), cascade={"slots": 4}), requests(3, 100)
    with threaded_pipeline(recipe) as controller, ThreadPoolExecutor(3) as pool:
        controller.fell("level0.2", 1, 0.0)
        slowed(stage(controller, "target"), 0.03)
        locked: list[str] = []
        for name, handle in controller.crew.handles.items():

            def start(method: str, *args: Any, call: Any = handle.start, name: str = name) -> Any:
                if controller._changed._is_owned():
                    locked.append(f"{name}.{method}")
                return call(method, *args)

            handle.start = start
        answers = [pool.submit(controller.generate, each) for each in asked[:2]]
        assert until(lambda: len(stage(controller, "level0").rows) == 2)
        with controller._changed:
            controller._free = 0
        waiting = pool.submit(controller.generate, asked[2], 1.0)
        with controller._changed:
            controller._admissions.incarnations.renewed("level0.2", 1)  # as `renew` does before it spreads
        assert waiting.exception(10) is not None
        assert not locked
        for each in asked:
            controller.cancel(each.request_id)
        for answer in answers:
            answer.exception(10)


def test_a_controller_that_is_started_anew_sends_nobody_to_a_replica_that_is_given_up(family: Path) -> None:
    recipe = recipe_of(family, (1, 2, 1, 2))
    recipe, asked = replace(recipe, supervision=replace(recipe.supervision, restarts=1)), requests(4, 20)
    with threaded_pipeline(recipe) as controller, ThreadPoolExecutor(4) as pool:
        crew, gone = controller.crew, ("target", "adapter")
        crew.handles["controller"] = ThreadStage(controller, "controller")
        start, resume = crew.start, crew.resume

        def started(name: str) -> float:
            if name in gone:
                raise StageDied(name, "-", "its machine is gone")
            if name != "controller":
                return start(name)
            stages = {each: handle for each, handle in crew.handles.items() if each != name}
            crew.controller = Controller(recipe, stages, 1 << 32)
            crew.handles[name] = ThreadStage(crew.controller, name)
            return time.monotonic()

        crew.start, crew.resume = started, lambda name, number: None if name == "controller" else resume(name, number)
        fell = crew.fell
        crew.fell = lambda name, *args: None if name == "controller" else fell(name, *args)
        supervisor = Supervisor(recipe, crew.handles, crew)
        try:
            for name in gone:
                crew.handles[name].kill()
            assert until(lambda: set(supervisor.given_up) == set(gone))
            crew.handles["controller"].kill()
            assert until(lambda: crew.controller is not controller and supervisor._watch.whole("controller"), 10)
            answers = list(pool.map(lambda request: crew.controller.generate(request, 10.0), asked))
            assert [answer.token_ids for answer in answers] == expected(family, asked)
        finally:
            supervisor.stop()


def test_an_answer_does_not_wait_for_a_target_that_never_had_its_request(family: Path) -> None:
    recipe, (asked,) = recipe_of(family, (1, 1, 1, 2)), requests(1, 16)
    answered = threading.Event()
    with threaded_pipeline(recipe) as controller, ThreadPoolExecutor(1) as pool:
        first = stage(controller, "target")
        slowed(first, 0.02)
        held(stage(controller, "target.2"), "release", answered)
        answer: Future[Answer] = pool.submit(controller.generate, asked)
        assert until(lambda: any(outbox.wanted for outbox in list(first._outboxes.values())))
        with controller._changed:  # it is to move when it next looks, and ends before
            (course,) = controller._inside.values()
            course.sit("target", "target.2")
        try:
            assert answer.result(10).token_ids == expected(family, [asked])[0]
        finally:
            answered.set()
        assert until(lambda: all_free(controller))
