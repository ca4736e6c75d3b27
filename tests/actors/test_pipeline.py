"""Pipeline == engine, token for token, with everything overlapping and whatever happens to the drafters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from threaded_pipeline import threaded_pipeline
from toy_family import toy_events, toy_recipe, toy_requests, write_toy_family

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import SamplingParams
from cascade_runtime.engine import Engine
from cascade_runtime.errors import CapacityError, DeadlineExceeded, InputError, PromptTooLong, StageError

REQUESTS = 20


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def reference(family: Path) -> list[tuple[int, ...]]:
    """The target alone, by the engine."""
    answers = Engine.load(toy_recipe(family, [])).generate(toy_requests(REQUESTS, seed=3))
    return [answer.token_ids for answer in answers]  # type: ignore[union-attr]


def ask_all(controller: object, requests: list[GenerateRequest], threads: int = 6) -> list[Answer]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(controller.generate, requests))  # type: ignore[attr-defined]


def slots_are_back(controller: object, timeout_s: float = 5.0) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if all(stage.stats()["free_slots"] == 4 and not stage.rows for stage in controller.language):  # type: ignore[attr-defined]
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("drafters", [[], ["noisy"], ["random", "noisy"], ["noisy", "inverted", "identical"]])
def test_the_pipeline_says_what_the_engine_says(
    family: Path, reference: list[tuple[int, ...]], drafters: list[str]
) -> None:
    patient = {"start_s": 300.0, "upstream_s": 10.0}  # on a busy machine too, no verifier goes on without drafts
    recipe = toy_recipe(family, drafters, [2, 4, 3][: len(drafters)], deadlines=patient)
    with threaded_pipeline(recipe) as controller:
        answers = ask_all(controller, toy_requests(REQUESTS, seed=3))
        assert [answer.token_ids for answer in answers] == reference
        assert slots_are_back(controller)
        edges = [edge for answer in answers for edge in answer.edges]
        accepted, drafted = sum(e.num_accepted_tokens for e in edges), sum(e.num_draft_tokens for e in edges)
        assert not drafters or drafted > accepted > 0
        assert not any(stage.stats()["silences"] for stage in controller.language)  # all that was said has arrived
        assert controller.drain(5.0)
        with pytest.raises(CapacityError, match="draining"):
            controller.generate(toy_requests(1)[0])


def test_the_target_alone_says_the_same_and_asks_no_drafter(family: Path, reference: list[tuple[int, ...]]) -> None:
    from dataclasses import replace

    with threaded_pipeline(toy_recipe(family, ["noisy"])) as controller:
        alone = [replace(request, speculate=False) for request in toy_requests(6, seed=3)]
        answers = ask_all(controller, alone)
        assert [answer.token_ids for answer in answers] == reference[:6]
        assert all(set(answer.produced_by) == {"target"} for answer in answers)
        assert controller.language[0].stats()["passes"] == 0


def test_answers_survive_a_dead_drafter(family: Path, reference: list[tuple[int, ...]]) -> None:
    with threaded_pipeline(toy_recipe(family, ["noisy", "noisy"])) as controller:
        before = ask_all(controller, toy_requests(8, seed=3))
        controller.language[1].stop()  # mid is gone, in the middle of the chain
        after = ask_all(controller, toy_requests(REQUESTS, seed=3)[8:16])
        assert [answer.token_ids for answer in (*before, *after)] == reference[:16]
        assert any("level1" in note for answer in after for note in answer.notes)


def test_answers_survive_a_drafter_whose_numbers_break(family: Path, reference: list[tuple[int, ...]]) -> None:
    with threaded_pipeline(toy_recipe(family, ["noisy", "noisy"])) as controller:
        with torch.no_grad():
            controller.language[0].level.model.language.norm._weight.fill_(float("nan"))
        answers = ask_all(controller, toy_requests(8, seed=3))
        assert [answer.token_ids for answer in answers] == reference[:8]
        assert slots_are_back(controller)


def test_a_stuck_drafter_holds_nothing_back(family: Path, reference: list[tuple[int, ...]]) -> None:
    with threaded_pipeline(toy_recipe(family, ["noisy", "noisy"])) as controller:
        stuck = threading.Event()
        mid = controller.language[1]
        extend = mid.level.decoder.extend
        mid.level.decoder.extend = lambda extensions: stuck.wait(60) and extend(extensions)
        start = time.monotonic()
        answers = ask_all(controller, toy_requests(4, seed=3))
        assert time.monotonic() - start < 30  # it would be a minute at least
        stuck.set()
        assert [answer.token_ids for answer in answers] == reference[:4]
        assert slots_are_back(controller)


def test_drafting_starts_while_the_target_still_waits_for_its_features(family: Path) -> None:
    with threaded_pipeline(toy_recipe(family, ["noisy", "noisy"])) as controller:
        adapter = controller.stages["adapter"].stage
        held, dense = threading.Event(), adapter.dense
        adapter.dense = lambda *args: held.wait(30) and dense(*args)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(controller.generate, long_request())
            end = time.monotonic() + 20
            while controller.language[1].stats()["passes"] < 2 and time.monotonic() < end:
                time.sleep(0.005)
            assert controller.language[1].stats()["passes"] >= 2  # light and mid ran
            assert controller.language[2].stats()["passes"] == 0  # the target could not
            held.set()
            first = next(span for span in answer.result(30).timings.spans if span[0] == "target")
            assert first[1] == "prefill" and answer.result().masks[0] & 0b011  # it began with what waited


def test_a_release_that_overtakes_its_admission_leaves_nothing_behind(family: Path) -> None:
    with threaded_pipeline(toy_recipe(family, ["noisy"])) as controller:
        encoder = controller.stages["encoder"].stage
        view = encoder.view
        encoder.view = lambda *args: time.sleep(0.4) or view(*args)
        for _ in range(6):
            with pytest.raises(DeadlineExceeded):
                controller.generate(long_request(), timeout_s=0.05)
        time.sleep(1.0)  # the late admissions arrive
        assert slots_are_back(controller) and not controller.language[-1]._outboxes
        assert controller.language[-1].stats()["passes"] == 0


def test_a_stage_without_a_downstream_sleeps(family: Path) -> None:
    with threaded_pipeline(toy_recipe(family, ["noisy", "noisy"])) as controller:
        light = controller.language[0]
        controller.language[1].stop()
        turns, turn = [0], light._turn

        def counted() -> None:
            turns[0] += 1
            turn()

        light._turn = counted
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(controller.generate, long_request())
            while not answer.done():
                time.sleep(0.01)
        light.admit(999, "left", "What?", features_of(controller), SamplingParams())
        time.sleep(0.3)
        before = turns[0]
        time.sleep(1.0)
        assert turns[0] - before < 50
        light.release(999)


def features_of(controller: object) -> object:
    adapter, encoder = controller.stages["adapter"].stage, controller.stages["encoder"].stage  # type: ignore[attr-defined]
    return adapter.dense(0, encoder.view(0, toy_events()))


def test_a_broken_target_is_an_error_and_no_hang(family: Path) -> None:
    with threaded_pipeline(toy_recipe(family, ["noisy"])) as controller:
        with torch.no_grad():
            controller.language[1].level.model.language.norm._weight.fill_(float("nan"))
        with pytest.raises(StageError, match="not finite"):
            controller.generate(toy_requests(1)[0])
        assert slots_are_back(controller)


def test_bad_requests_fail_alone_and_leave_nothing_behind(family: Path, reference: list[tuple[int, ...]]) -> None:
    with threaded_pipeline(toy_recipe(family, ["noisy"])) as controller:
        with pytest.raises(PromptTooLong):
            controller.generate(GenerateRequest(events=toy_events(), question="where " * 400))
        assert slots_are_back(controller)
        assert controller.stats() == {"running": 0, "waiting": 0, "cancelled": 0, "draining": False}
        assert controller.generate(toy_requests(1, seed=3)[0]).token_ids == reference[0]


def long_request(**changes: object) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=150, ignore_eos=True)
    return GenerateRequest(**{"events": toy_events(), "question": "What moves?", "sampling": sampling, **changes})


def short_request(**changes: object) -> GenerateRequest:
    return long_request(sampling=SamplingParams(max_tokens=3), **changes)


def test_a_deadline_ends_the_wait_and_frees_the_slot(family: Path) -> None:
    with threaded_pipeline(toy_recipe(family, ["noisy"])) as controller:
        with pytest.raises(DeadlineExceeded):
            controller.generate(long_request(), timeout_s=0.05)
        assert slots_are_back(controller)


def test_cancel_ends_a_running_request_and_a_double_is_refused(family: Path) -> None:
    with threaded_pipeline(toy_recipe(family, ["noisy"])) as controller:
        outcome: list[BaseException | Answer] = []

        def ask() -> None:
            try:
                outcome.append(controller.generate(long_request(request_id="one")))
            except StageError as error:
                outcome.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        while not controller.language[1].rows:
            time.sleep(0.002)
        with pytest.raises(InputError, match="request_id"):
            controller.generate(long_request(request_id="one"))
        assert controller.cancel("one") and not controller.cancel("two")
        assert controller.stats()["running"] == 0  # by then
        assert all(stage.stats()["free_slots"] == 4 for stage in controller.language)
        thread.join(5.0)
        assert isinstance(outcome[0], StageError) and "cancelled" in str(outcome[0])
        assert controller.stats()["cancelled"] == 1
        with pytest.raises(StageError, match="cancelled"):  # its cancellation came first
            controller.generate(long_request(request_id="two"))
        assert controller.stats() == {"running": 0, "waiting": 0, "cancelled": 2, "draining": False}
        assert slots_are_back(controller)


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()


def test_who_is_cancelled_while_waiting_leaves_at_once_and_nothing_was_started_for_it(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.controller.MAX_WAITING", 2)
    with threaded_pipeline(toy_recipe(family, ["noisy"])) as controller, ThreadPoolExecutor(8) as pool:
        encoder, adapter = controller.stages["encoder"].stage, controller.stages["adapter"].stage
        held, dense, view, viewed = threading.Event(), adapter.dense, encoder.view, []
        adapter.dense = lambda *args: held.wait(30) and dense(*args)
        encoder.view = lambda handle, *args: viewed.append(handle) or view(handle, *args)
        running = [pool.submit(controller.generate, short_request()) for _ in range(4)]
        assert until(lambda: controller.stats()["running"] == 4)
        waiting = [pool.submit(controller.generate, short_request(request_id=f"waits{k}")) for k in range(2)]
        assert until(lambda: controller.stats()["waiting"] == 2)
        with pytest.raises(CapacityError, match="2 requests are waiting"):
            controller.generate(short_request())
        with controller._changed:  # whoever waits has no chance to wake yet, and counts no more
            assert controller.cancel("waits0") and controller.cancel("waits0")
            assert controller.stats() == {"running": 4, "waiting": 1, "cancelled": 1, "draining": False}
        assert isinstance(waiting[0].exception(20), StageError)  # the slots are still taken
        assert controller.stats()["running"] == 4
        held.set()
        assert all(isinstance(future.result(30), Answer) for future in (*running, waiting[1]))
        assert len(viewed) == 5
        assert slots_are_back(controller)


def test_streaming_shows_every_round_and_ends_in_the_answer(family: Path) -> None:
    with threaded_pipeline(toy_recipe(family, ["noisy"])) as controller:
        *pieces, answer = controller.stream(long_request())
        assert isinstance(answer, Answer) and len(pieces) > 5
        assert "".join(pieces) == "".join(answer.pieces) == answer.text


@pytest.mark.parametrize("mode", ["strict", "aligned"])
@pytest.mark.parametrize("policy", ["full", "spot", "predicted"])
@pytest.mark.parametrize("accept", [-1.0, 1.0])
def test_the_gate_is_obeyed_the_same_way_as_by_the_engine(family: Path, mode: str, policy: str, accept: float) -> None:
    gate = {"policy": policy, "accept": accept, "reject": -1.0, "spot_fraction": 0.5}
    recipe = toy_recipe(family, ["noisy"], gate=gate, cascade={"mode": mode})
    requests = toy_requests(4, seed=5)
    expected = Engine.load(recipe).generate(requests)
    with threaded_pipeline(recipe) as controller:
        answers = ask_all(controller, requests)
        assert [a.token_ids for a in answers] == [e.token_ids for e in expected]  # type: ignore[union-attr]
        assert [a.gate for a in answers] == [e.gate for e in expected]  # type: ignore[union-attr]
        assert slots_are_back(controller)
