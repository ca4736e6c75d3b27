"""What else may go wrong in a pipeline: slow stages, foreign tokens, requests that kill, a clock that jumps."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_restarts import LEVELS, kills_at_pass, long_request, recipe_of, supervised, until
from threaded_pipeline import threaded_pipeline
from toy_family import toy_events, toy_recipe, toy_requests, write_toy_family

from cascade_runtime.engine import Engine
from cascade_runtime.errors import ConfigError, Quarantined
from cascade_runtime.models.family import build_model, build_tokenizer, save_model

POISON = 777  # events in a recording that kills


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def reference(family: Path) -> list[tuple[int, ...]]:
    answers = Engine.load(toy_recipe(family, [])).generate(toy_requests(12, seed=3))
    return [answer.token_ids for answer in answers]  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def expected(family: Path) -> tuple[int, ...]:
    (answer,) = Engine.load(toy_recipe(family, [])).generate([long_request()])
    return answer.token_ids  # type: ignore[union-attr]


def test_who_is_slow_is_not_dead(family: Path, expected: tuple[int, ...]) -> None:
    """Longer at one thing than a process may be silent: the encoder, a drafter and the target."""
    with supervised(recipe_of(family, silent_s=0.8)) as controller:
        slept = []

        def slowly(place: Any, method: str) -> None:
            real, first = getattr(place, method), threading.Lock()

            def slow(*args: Any) -> Any:
                if first.acquire(blocking=False):
                    time.sleep(1.6)
                    slept.append(method)
                return real(*args)

            setattr(place, method, slow)

        slowly(controller.crew.handles["encoder"].stage, "view")
        for name in ("level1", "target"):
            slowly(controller.crew.handles[name].stage.level.decoder, "extend")
        assert controller.generate(long_request()).token_ids == expected
        assert sorted(slept) == ["extend", "extend", "view"]
        assert not controller.supervisor.recoveries and not controller.supervisor.down


def test_a_drafter_that_speaks_another_vocabulary_changes_no_answer(
    family: Path, reference: list[tuple[int, ...]]
) -> None:
    with threaded_pipeline(toy_recipe(family, ["noisy", "noisy"])) as controller:
        light = controller.language[0].level
        extend, foreign = light.decoder.extend, [0]

        def babble(extensions: Any) -> Any:
            chosen = extend(extensions)
            foreign[0] += sum(map(len, chosen))
            return [[light.vocab_size + token for token in row] for row in chosen]

        light.decoder.extend = babble
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(controller.generate, toy_requests(12, seed=3)))
        assert [answer.token_ids for answer in answers] == reference and foreign[0]
        for stage in controller.language:
            assert until(lambda stage=stage: stage.stats()["free_slots"] == 4)


def test_a_drafter_with_another_tokenizer_is_refused_when_it_is_loaded(family: Path, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(("Entirely other words, and none of them about squares or scenes at all.",) * 8, 280)
    save_model(build_model("light", tokenizer), tokenizer, tmp_path / "stranger")
    recipe = toy_recipe(family, ["noisy"])
    stages = (replace(recipe.stages[0], checkpoint=str(tmp_path / "stranger")), recipe.stages[1])
    with pytest.raises(ConfigError, match="one and the same tokenizer"):
        Engine.load(replace(recipe, stages=stages))


def poison(controller: Any, name: str) -> list[str]:
    """Every incarnation of the stage dies of a recording of `POISON` events; the starts so far."""
    start, starts = controller.crew.start, list[str]()

    def arm() -> None:
        handle = controller.crew.handles[name]
        place, method = (handle.stage, "view") if name == "encoder" else (handle.stage, "admit")
        real = getattr(place, method)

        def dying(*args: Any) -> Any:
            if any(getattr(arg, "request_id", arg) == "poison" or _events(arg) == POISON for arg in args):
                handle.kill()
            return real(*args)

        setattr(place, method, dying)

    def started(stage: str) -> float:
        begun_at = start(stage)
        if stage == name:
            starts.append(stage)
            arm()
        return begun_at

    controller.crew.start = started
    arm()
    return starts


def _events(arg: Any) -> int:
    return len(arg) if hasattr(arg, "duration_us") else -1


@pytest.mark.parametrize("name", ["encoder", "level0"])
def test_a_request_that_kills_a_stage_harms_no_other(family: Path, reference: list[tuple[int, ...]], name: str) -> None:
    """It fails where an answer needs the stage; without a drafter it is answered, and says so."""
    deadly = replace(long_request(request_id="poison"), events=toy_events(count=POISON))
    with supervised(recipe_of(family)) as controller, ThreadPoolExecutor(8) as pool:
        starts = poison(controller, name)
        bad = pool.submit(controller.generate, deadly)
        answers = [pool.submit(controller.generate, request) for request in toy_requests(12, seed=3)]
        assert [answer.result(60).token_ids for answer in answers] == reference
        if name == "encoder":
            assert isinstance(bad.exception(60), Quarantined)
        else:
            (alone,) = Engine.load(toy_recipe(family, [])).generate([deadly])
            assert bad.result(60).token_ids == alone.token_ids  # type: ignore[union-attr]
        assert until(lambda: bool(starts) and not controller.supervisor.down)
        crashes = len(starts)
        if name == "encoder":
            assert 2 <= crashes <= 3
            with pytest.raises(Quarantined):
                controller.generate(deadly)
            assert len(starts) == crashes
        assert not controller.supervisor.given_up
        for level in LEVELS:
            stage = controller.crew.handles[level].stage
            assert until(lambda stage=stage: stage.stats()["free_slots"] == 4)


@pytest.fixture
def jumping_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The wall clock steps by hours, to and fro, with every look at it; the looks so far."""
    real, steps, looks = time.time, itertools.cycle([5.0, -7.0, 0.0, 900.0, -3.0]), list[float]()

    def jump() -> float:
        looks.append(real() + 3600 * next(steps))
        return looks[-1]

    monkeypatch.setattr(time, "time", jump)
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * jump()))
    return looks


def test_a_wall_clock_that_jumps_by_hours_steers_nothing(
    family: Path, expected: tuple[int, ...], jumping_clock: list[float]
) -> None:
    with supervised(recipe_of(family)) as controller:
        assert abs(time.time() - time.time()) > 3600 and len(jumping_clock) >= 2
        killed = kills_at_pass(controller, "target", 4)
        answer = controller.generate(long_request(), timeout_s=60.0)
        assert answer.token_ids == expected and killed.wait(30)
        assert until(lambda: len(controller.supervisor.recoveries) == 1)
        assert 0 <= answer.timings.ttft_ms <= answer.timings.total_ms < 60_000
        time.sleep(0.5)
        assert [each.stage for each in controller.supervisor.recoveries] == ["target"]  # and nobody else was blamed
        assert controller.drain(5.0)
