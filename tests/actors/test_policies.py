"""Whatever decides when to draft and when to verify, and however prompts are cut, the tokens are the target's own."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from threaded_pipeline import threaded_pipeline
from toy_family import toy_events, toy_recipe, toy_requests, write_toy_family

from cascade_runtime.api import GenerateRequest
from cascade_runtime.config import SamplingParams
from cascade_runtime.engine import Engine
from cascade_runtime.events.facts import patch_occupancy
from cascade_runtime.messages import Grant
from cascade_runtime.scheduling.from_recipe import window_of_row
from cascade_runtime.scheduling.policy import Policy
from cascade_runtime.scheduling.standing import Standing

REQUESTS = 16


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def reference(family: Path) -> list[tuple[int, ...]]:
    answers = Engine.load(toy_recipe(family, [])).generate(toy_requests(REQUESTS, seed=11))
    return [answer.token_ids for answer in answers]  # type: ignore[union-attr]


def answers_of(controller: object) -> list[tuple[int, ...]]:
    with ThreadPoolExecutor(6) as pool:
        return [a.token_ids for a in pool.map(controller.generate, toy_requests(REQUESTS, seed=11))]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("policy", "prefill_tokens"),
    [
        ({"mode": "fixed"}, 512),
        ({"mode": "free_running"}, 512),
        ({"mode": "pre_verify"}, 512),
        ({"mode": "lock_step"}, 7),
        ({"mode": "adaptive"}, 7),
        ({"mode": "adaptive"}, 512),
        ({"mode": "adaptive", "objective": "latency"}, 512),
    ],
)
def test_the_answer_is_the_targets_own(
    family: Path, reference: list[tuple[int, ...]], policy: dict[str, str], prefill_tokens: int
) -> None:
    tables = {"policy": policy, "cascade": {"prefill_tokens": prefill_tokens}}
    if policy["mode"] == "fixed":  # on a busy machine too, no verifier goes on without drafts
        tables["deadlines"] = {"start_s": 300.0, "upstream_s": 10.0}
    recipe = toy_recipe(family, ["noisy", "identical"], [2, 4], **tables)
    with threaded_pipeline(recipe) as controller:
        assert answers_of(controller) == reference
        assert all(stage.stats()["free_slots"] == 4 for stage in controller.language)
        heavy = controller.language[-1].stats()
        assert heavy["decision"]["reason"]
        if policy["mode"] in ("fixed", "lock_step"):  # others need not draft here: all models are of one size
            assert heavy["edge"]["spec_decode_num_accepted_tokens"] > 0


def test_a_long_prompt_is_fed_in_chunks(family: Path) -> None:
    with threaded_pipeline(toy_recipe(family, [], cascade={"prefill_tokens": 7})) as controller:
        target = controller.language[0]
        controller.generate(toy_requests(1)[0])
        whole = target.stats()["passes"]
    with threaded_pipeline(toy_recipe(family, [])) as controller:
        target = controller.language[0]
        answer = controller.generate(toy_requests(1)[0])
        prompt = target.stats()["tokens_fed"] - (len(answer.token_ids) - 1)
        assert whole - target.stats()["passes"] == -(-prompt // 7) - 1


class Turned(Policy):
    """Alternates between relaying and verifying, and between a window and none, with every pass."""

    turns = 0

    def observe_pass(self, rows: int, tokens: int, context: int, seconds: float, work_s: float = 0.0) -> None:
        self.turns += 1

    def grant(self, row: object) -> Grant:
        return Grant([8, 0, 3][self.turns % 3], 1 + self.turns % 2, relay=self.turns % 4 > 1)

    def limit(self, row: object) -> int:
        return self.turns % 5


def test_grants_that_change_all_the_time_change_no_token(family: Path, reference: list[tuple[int, ...]]) -> None:
    with threaded_pipeline(toy_recipe(family, ["noisy", "identical"], [2, 4])) as controller:
        for stage in controller.language[1:]:
            stage.scheduler.policy = Turned(2, window=12)
        assert answers_of(controller) == reference
        masks = {mask for a in map(controller.generate, toy_requests(8, seed=3)) for mask in a.masks}
        assert 0b101 in masks  # relayed by mid, accepted by the target
        assert controller.language[2].scheduler.policy.turns > 10


def test_a_drafter_that_does_not_trust_itself_waits_for_a_verdict(
    family: Path, reference: list[tuple[int, ...]]
) -> None:
    longest = {}
    for limit in (0.0, 1.0):
        policy = {"mode": "fixed", "draft_length": "confidence", "min_confidence": limit}
        patient = {"start_s": 300.0, "upstream_s": 10.0}  # on a busy machine too, no verifier goes on without drafts
        recipe = toy_recipe(family, ["noisy"], [4], policy=policy, deadlines=patient)
        with threaded_pipeline(recipe) as controller:
            assert answers_of(controller) == reference
            edge = controller.language[1].stats()["edge"]
            longest[limit] = len(edge["spec_decode_num_draft_tokens_per_pos"])
    assert longest == {0.0: 4, 1.0: 1}  # sure of nothing, it drafts one token at a time


def test_a_busy_recording_shortens_the_drafters_window(family: Path) -> None:
    recipe = toy_recipe(family, ["noisy"], [4], policy={"draft_length": "occupancy"})
    window = recipe.cascade.window
    assert [window_of_row(recipe, 0, share) for share in (None, 0.0, 0.5, 1.0)] == [window, window, window // 2, 1]
    assert window_of_row(recipe, 1, 0.5) is None
    assert window_of_row(toy_recipe(family, ["noisy"], [4]), 0, 0.5) == window
    events = toy_events()
    with threaded_pipeline(recipe) as controller:
        seen: list[int | None] = []
        admit = controller.language[0].scheduler.admit

        def spy(standing: Standing, *args: object, **options: object) -> object:
            seen.append(standing.window)
            return admit(standing, *args, **options)

        controller.language[0].scheduler.admit = spy
        controller.generate(toy_requests(1)[0])
        assert seen == [max(1, round(window * (1 - patch_occupancy(events))))] and seen[0] < window


def test_while_the_target_decodes_alone_only_probes_reach_the_drafters(
    family: Path, reference: list[tuple[int, ...]]
) -> None:
    with threaded_pipeline(toy_recipe(family, ["noisy"], [3])) as controller:
        light, target = controller.language
        policy = target.scheduler.policy
        policy.decision = replace(policy.decision, speculate=False)
        passes = [light.stats()["passes"]]
        sampling = SamplingParams(max_tokens=24, ignore_eos=True)
        for number in range(17):
            controller.generate(GenerateRequest(events=toy_events(number), question="What moves?", sampling=sampling))
            passes.append(light.stats()["passes"])
        drafted = [number for number, (a, b) in enumerate(itertools.pairwise(passes), 1) if b > a]
        assert drafted == [1, 8, 16]  # the first, after which the target was heard, and every eighth
        policy.decision = replace(policy.decision, speculate=True)
        assert answers_of(controller) == reference
        assert light.stats()["passes"] > passes[-1]
