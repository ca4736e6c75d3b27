"""Whatever stage dies, wherever in an answer: once it was started anew, the answer is the one it would have been."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from threaded_pipeline import threaded_pipeline
from toy_family import toy_events, toy_recipe, toy_requests, write_toy_family

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.engine import Engine
from cascade_runtime.errors import Quarantined, StageError
from cluster.supervision.supervisor import Supervisor

LEVELS = ("level0", "level1", "target")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


def recipe_of(family: Path, **supervision: Any) -> Recipe:
    quick = {"backoff_s": 0.01, "silent_s": 0.6, "restarts": 1000, **supervision}
    patient = {"start_s": 300.0, "upstream_s": 0.5}
    return toy_recipe(family, ["noisy", "noisy"], [2, 3], supervision=quick, deadlines=patient)


def long_request(temperature: float = 0.8, **changes: Any) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=60, ignore_eos=True, temperature=temperature, seed=5)
    return GenerateRequest(events=toy_events(), question="What moves?", sampling=sampling, **changes)


@pytest.fixture(scope="module")
def expected(family: Path) -> dict[float, tuple[int, ...]]:
    engine = Engine.load(toy_recipe(family, []))
    answers = engine.generate([long_request(0.0), long_request(0.8)])
    return {0.0: answers[0].token_ids, 0.8: answers[1].token_ids}  # type: ignore[union-attr]


@contextmanager
def supervised(recipe: Recipe) -> Iterator[Any]:
    with threaded_pipeline(recipe) as controller:
        handles = controller.crew.handles
        controller.supervisor = Supervisor(recipe, handles, controller.crew)
        try:
            yield controller
        finally:
            controller.supervisor.stop()


def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def kills_at_pass(controller: Any, name: str, number: int) -> threading.Event:
    """The stage's process dies in the middle of its pass of this number, counted from now."""
    handle = controller.crew.handles[name]
    decoder, passes, killed = handle.stage.level.decoder, [0], threading.Event()
    extend = decoder.extend

    def dying(extensions: Any) -> Any:
        passes[0] += 1
        if passes[0] == number:
            handle.kill()
            killed.set()
        return extend(extensions)

    decoder.extend = dying
    return killed


@pytest.mark.parametrize("name", LEVELS)
def test_a_language_stage_may_die_in_any_pass(family: Path, expected: dict[float, tuple[int, ...]], name: str) -> None:
    with supervised(recipe_of(family)) as controller, ThreadPoolExecutor(2) as pool:
        for count, number in enumerate((1, 3, 8), start=1):
            killed = kills_at_pass(controller, name, number)
            both = [pool.submit(controller.generate, long_request(heat)) for heat in expected]
            assert [answer.result(60).token_ids for answer in both] == list(expected.values())
            assert killed.wait(30)
            assert until(lambda count=count: len(controller.supervisor.recoveries) == count)
        restarted = [recovery.stage for recovery in controller.supervisor.recoveries]
        assert restarted == [name] * 3
        answers = [controller.generate(request) for request in toy_requests(4)]
        for one, two in ((0, 1), (1, 2)):  # all links are there, and used
            light, heavy = (controller.crew.handles[LEVELS[k]].stage for k in (one, two))
            assert light.stats()["downstream_alive"] and heavy.stats()["upstream_alive"]
            assert light.pulse().downstream == heavy.pulse().upstream
        assert sum(edge.num_accepted_tokens for answer in answers for edge in answer.edges) > 0
        for level in LEVELS:
            stats = controller.crew.handles[level].stage.stats()
            assert until(lambda level=level: controller.crew.handles[level].stage.stats()["free_slots"] == 4), stats


def test_a_target_goes_on_from_what_it_had_confirmed(family: Path, expected: dict[float, tuple[int, ...]]) -> None:
    with supervised(recipe_of(family)) as controller:
        stream = controller.stream(long_request())
        pieces = [next(stream)]
        while sum(len(piece.tokens) for piece in pieces) < 20:
            pieces.append(next(stream))
        told = tuple(token for piece in pieces for token in piece.tokens)
        controller.crew.handles["target"].kill()
        fed: list[int] = []
        start = controller.crew.start

        def start_watched(name: str) -> float:
            begun_at = start(name)
            level = controller.crew.handles[name].stage.level
            admit = level.admit
            level.admit = lambda *args: fed.append(len(controller._inside)) or admit(*args)
            return begun_at

        controller.crew.start = start_watched
        *rest, answer = stream
        pieces += rest
        assert answer.token_ids == expected[0.8]
        assert tuple(token for piece in pieces for token in piece.tokens) == answer.token_ids
        assert answer.token_ids[: len(told)] == told and "".join(pieces) == answer.text
        assert fed == [1]
        assert answer.target_passes <= len(answer.token_ids) - len(told)  # it did not decide the first ones again


@pytest.mark.parametrize(
    ("name", "method"), [("encoder", "view"), ("adapter", "align"), ("adapter", "dense"), ("adapter", "decide")]
)
def test_encoder_and_adapter_may_die_in_any_call(
    family: Path, expected: dict[float, tuple[int, ...]], name: str, method: str
) -> None:
    with supervised(recipe_of(family)) as controller:
        handle = controller.crew.handles[name]
        real, killed = getattr(handle.stage, method), []

        def dying(*args: Any) -> Any:
            if not killed:
                killed.append(method)
                handle.kill()
            return real(*args)

        setattr(handle.stage, method, dying)
        assert controller.generate(long_request()).token_ids == expected[0.8]
        assert killed == [method]
        assert until(lambda: [each.stage for each in controller.supervisor.recoveries] == [name])
        assert controller.generate(long_request()).token_ids == expected[0.8]


def test_all_stages_may_die_at_once_under_load(family: Path) -> None:
    requests = toy_requests(24, seed=3)
    reference = Engine.load(toy_recipe(family, [])).generate(requests)
    with supervised(recipe_of(family)) as controller, ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(controller.generate, request) for request in requests]
        assert until(lambda: sum(answer.done() for answer in answers) >= 4)
        for handle in list(controller.crew.handles.values()):
            handle.kill()
        assert [a.result(60).token_ids for a in answers] == [r.token_ids for r in reference]  # type: ignore[union-attr]
        assert until(lambda: len(controller.supervisor.recoveries) == 5)


def hang(controller: Any, name: str) -> threading.Event:
    """The stage's process is stopped: it answers nothing, and its loop stands still. The event lets it go on."""
    handle, on = controller.crew.handles[name], threading.Event()
    if name in LEVELS:
        turn = handle.stage._turn
        handle.stage._turn = lambda: on.wait(30) and turn()
    pulse = handle.stage.pulse
    handle.stage.pulse = lambda: on.wait(30) and pulse()
    return on


def test_what_hangs_is_replaced_and_when_it_wakes_nobody_listens(
    family: Path, expected: dict[float, tuple[int, ...]]
) -> None:
    with supervised(recipe_of(family)) as controller, ThreadPoolExecutor(1) as pool:
        for name in LEVELS:
            answer: Future[Answer] = pool.submit(controller.generate, long_request())
            zombie, on = controller.crew.handles[name].stage, hang(controller, name)
            assert until(lambda name=name: name in [each.stage for each in controller.supervisor.recoveries])
            on.set()  # what it has still to say goes into links that are closed
            assert answer.result(60).token_ids == expected[0.8]
            assert controller.crew.handles[name].stage is not zombie
        reasons = [each.reason for each in controller.supervisor.recoveries]
        assert len(reasons) == 3 and all("silent" in reason for reason in reasons)


def test_a_loop_that_stands_still_is_found_though_its_process_answers(family: Path) -> None:
    with supervised(recipe_of(family, stuck_s=1.0)) as controller:
        stage, on = controller.crew.handles["level1"].stage, threading.Event()
        extend = stage.level.decoder.extend
        stage.level.decoder.extend = lambda extensions: on.wait(30) and extend(extensions)
        controller.generate(long_request())
        reasons = dict[str, str]()

        def found() -> bool:  # on a machine that is busy elsewhere, others may stand still for so long
            reasons.update({each.stage: each.reason for each in controller.supervisor.recoveries})
            return "level1" in reasons

        assert until(found) and "at one thing" in reasons["level1"]
        on.set()


def test_a_request_that_kills_the_target_fails_alone(family: Path) -> None:
    requests = toy_requests(12, seed=3)
    reference = Engine.load(toy_recipe(family, [])).generate(requests)
    with supervised(recipe_of(family)) as controller, ThreadPoolExecutor(8) as pool:
        arm = controller.crew.start

        def poisoned(name: str) -> None:
            if name == "target":
                handle = controller.crew.handles[name]
                admit = handle.stage.level.admit

                def dying(question: str, *args: Any) -> Any:
                    if "poison" in question:
                        handle.kill()
                    return admit(question, *args)

                handle.stage.level.admit = dying

        starts: list[str] = []  # a target that dies again before it is linked is one recovery, but two starts
        controller.crew.start = lambda name: (starts.append(name), arm(name), poisoned(name))[1]
        poisoned("target")
        poison = GenerateRequest(events=toy_events(), question="poison", request_id="poison")
        bad = pool.submit(controller.generate, poison)
        answers = [pool.submit(controller.generate, request) for request in requests]
        assert isinstance(bad.exception(60), Quarantined)
        assert [a.result(60).token_ids for a in answers] == [r.token_ids for r in reference]  # type: ignore[union-attr]
        assert until(lambda: not controller.supervisor._under_way and len(controller.supervisor.recoveries) >= 1)
        crashes = len(starts)
        assert set(starts) == {"target"} and 2 <= crashes <= 3
        with pytest.raises(Quarantined):  # nor is it tried again
            controller.generate(poison)
        assert len(starts) == crashes


def test_a_stage_that_fails_too_often_is_given_up_and_says_so(family: Path) -> None:
    with supervised(recipe_of(family, restarts=2, window_s=60.0)) as controller:
        start = controller.crew.start

        def stillborn(name: str) -> None:
            start(name)
            raise StageError(name, "-", "out of memory")

        controller.crew.start = stillborn
        controller.crew.handles["target"].kill()
        with pytest.raises(StageError, match=r"given up: .*out of memory.* after 2 restarts"):
            controller.generate(long_request())
        assert list(controller.supervisor.given_up) == ["target"]


def test_a_recovery_begins_when_its_stage_is_found_out_and_not_after_the_pause(family: Path) -> None:
    with supervised(recipe_of(family, backoff_s=1.0)) as controller:
        for number in (1, 2):
            killed_at = time.monotonic()
            controller.crew.handles["level0"].kill()
            assert until(lambda number=number: len(controller.supervisor.recoveries) == number)
        _, second = controller.supervisor.recoveries  # it had not been up for ten seconds
        assert killed_at <= second.noticed_at <= second.begun_at - 0.5
        assert second.begun_at <= second.loaded_at <= second.up_at


def test_a_rolling_restart_fails_no_request(family: Path) -> None:
    requests = toy_requests(24, seed=3)
    reference = Engine.load(toy_recipe(family, [])).generate(requests)
    with supervised(recipe_of(family, restarts=1)) as controller, ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(controller.generate, request) for request in requests]
        for name in ("encoder", "adapter", *LEVELS, *LEVELS):
            recovery = controller.supervisor.restart(name, 30.0)
            assert (recovery.stage, recovery.planned) == (name, True)
        assert [a.result(60).token_ids for a in answers] == [r.token_ids for r in reference]  # type: ignore[union-attr]
        assert not controller.supervisor.given_up


def test_a_stage_that_is_renewed_while_a_request_is_released_is_not_told_of_it(family: Path) -> None:
    with threaded_pipeline(recipe_of(family)) as controller:
        handle = controller.crew.handles["level0"]
        on, release, asked = threading.Event(), handle.stage.release, threading.Event()
        handle.stage.release = lambda number: asked.set() or (on.wait(30) and release(number))
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(controller.generate, long_request())
            assert asked.wait(30)  # the old one is told, and never obeys
            controller.crew.kill("level0", None)
            controller.crew.start("level0")
            controller.crew.resume("level0", 1)
            assert len(answer.result(30).token_ids) == 60
            on.set()
        time.sleep(0.2)  # whatever was told by mistake has arrived
        assert controller.crew.handles["level0"].stage.stats()["free_slots"] == 4
