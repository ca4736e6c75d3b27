"""Several replicas of a stage share its requests; whatever becomes of one of them, the answers are what they were."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from replicated_toys import all_free, expected, recipe_of, requests, slowed, supervised, until, whole
from threaded_pipeline import threaded_pipeline
from toy_family import toy_recipe, write_toy_family

from cascade_runtime.api import Answer
from cascade_runtime.config import links_between
from cascade_runtime.errors import ConfigError, Quarantined


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


def counted(controller: Any) -> Counter[str]:
    """How often each stage, or replica, is told of a request from now on."""
    told: Counter[str] = Counter()
    for name, handle in controller.crew.handles.items():
        method = {"encoder": "view", "adapter": "dense"}.get(name.partition(".")[0], "admit")
        call = getattr(handle.stage, method)

        def counting(*args: Any, name: str = name, call: Any = call) -> Any:
            told[name] += 1
            return call(*args)

        setattr(handle.stage, method, counting)
    return told


@pytest.mark.parametrize(
    "counts", [(1, 1, 2, 1, 2), (2, 2, 1, 2, 1), (1, 1, 3, 2, 2), (1, 1, 1, 3), (1, 1, 2, 1), (2, 1, 2)]
)
def test_replicas_share_the_requests_and_answer_as_one(family: Path, counts: tuple[int, ...]) -> None:
    recipe, asked = recipe_of(family, counts), requests(10)
    with threaded_pipeline(recipe) as controller, ThreadPoolExecutor(10) as pool:
        told = counted(controller)
        for name in recipe.target.members:
            slowed(controller.crew.handles[name].stage, 0.005)  # so that they are inside at the same time
        answers = list(pool.map(controller.generate, asked))
        assert [answer.token_ids for answer in answers] == expected(family, asked)
        assert set(told) == {member for members in recipe.members.values() for member in members}
        for members in recipe.members.values():
            assert sum(told[name] for name in members) >= len(asked)  # some may have moved
            assert len(members) == 1 or max(told[name] for name in members) <= 8
        if len(counts) > 3:
            assert sum(edge.num_accepted_tokens for answer in answers for edge in answer.edges) > 50
        assert {edge.edge for answer in answers for edge in answer.edges} == {
            f"{light}-{heavy}" for light, heavy in zip(recipe.cascade.levels, recipe.cascade.levels[1:], strict=False)
        }
        assert until(lambda: all_free(controller))
        slots = [controller.crew.handles[name].stage.stats()["slots"] for name in recipe.target.members]
        assert slots == [-(-4 // counts[-1])] * counts[-1]


def test_requests_of_a_target_that_dies_go_on_at_another_without_waiting_for_it(family: Path) -> None:
    recipe, (asked,) = recipe_of(family, (1, 1, 1, 2)), requests(1, 60)
    with threaded_pipeline(recipe) as controller, ThreadPoolExecutor(1) as pool:
        told = counted(controller)
        for name in recipe.target.members:
            slowed(controller.crew.handles[name].stage, 0.02)
        answer: Future[Answer] = pool.submit(controller.generate, asked)
        first = controller.crew.handles["target"]
        assert until(lambda: first.stage.rows and len(next(iter(first.stage.rows.values())).standing.prefix) > 10)
        controller.crew.kill("target", None)
        controller.fell("target", 1, 0.0)  # and nobody starts it anew
        assert answer.result(30).token_ids == expected(family, [asked])[0]
        assert (told["target"], told["target.2"]) == (1, 1)
        second = controller.crew.handles["target.2"].stage
        assert second.totals.num_accepted_tokens > 10  # its drafter has followed it there


@pytest.mark.parametrize("counts", [(1, 1, 2, 1), (1, 1, 2, 1, 1), (1, 1, 1, 2, 1), (1, 1, 2, 2, 2)])
def test_requests_of_a_drafter_that_dies_are_drafted_for_by_another(family: Path, counts: tuple[int, ...]) -> None:
    recipe, (asked,) = recipe_of(family, counts), requests(1, 60)
    doubled = next(stage for stage in recipe.stages if stage.replicas > 1)
    with threaded_pipeline(recipe) as controller, ThreadPoolExecutor(1) as pool:
        target = controller.crew.handles["target"].stage
        slowed(target, 0.02)
        answer: Future[Answer] = pool.submit(controller.generate, asked)
        assert until(lambda: target.rows and len(next(iter(target.rows.values())).standing.prefix) > 8)
        controller.crew.kill(doubled.members[0], None)
        controller.fell(doubled.members[0], 1, 0.0)
        accepted = target.totals.num_accepted_tokens
        assert answer.result(30).token_ids == expected(family, [asked])[0]
        assert controller.crew.handles[doubled.members[1]].stage.level.decoder.passes > 3
        assert target.totals.num_accepted_tokens > accepted + 10


def test_a_replica_that_is_there_again_is_given_its_part_of_those_who_run(family: Path) -> None:
    recipe, asked = recipe_of(family, (1, 1, 2, 2), cascade={"slots": 8}), requests(4, 100)
    with threaded_pipeline(recipe) as controller, ThreadPoolExecutor(4) as pool:
        told = counted(controller)
        for name in ("level0.2", "target.2"):
            controller.crew.kill(name, None)
            controller.fell(name, 1, 0.0)
        slowed(controller.crew.handles["target"].stage, 0.03)
        answers = [pool.submit(controller.generate, each) for each in asked]
        first = controller.crew.handles["target"].stage
        assert until(lambda: len(first.rows) == 4)
        assert told["target"] == told["level0"] == 4
        for name in ("level0.2", "target.2"):
            controller.crew.start(name)
        for epoch, (light, heavy) in enumerate(links_between(*(stage.members for stage in recipe.stages)), start=4):
            if {light, heavy} & {"level0.2", "target.2"}:
                controller.crew.wire(light, heavy, epoch)
        told |= counted(controller)
        for name in ("level0.2", "target.2"):
            slowed(controller.crew.handles[name].stage, 0.03)
            controller.crew.resume(name, 1)
        second = controller.crew.handles["target.2"].stage
        assert until(lambda: len(second.rows) == 2 and len(first.rows) == 2)
        assert len(controller.crew.handles["level0.2"].stage.rows) == 2
        assert [answer.result(60).token_ids for answer in answers] == expected(family, asked)
        assert second.totals.num_accepted_tokens > 0
        assert until(lambda: all_free(controller))


def test_a_replica_is_started_anew_on_purpose_while_its_requests_go_on_at_another(family: Path) -> None:
    recipe, (asked,) = recipe_of(family, (1, 1, 2, 2)), requests(1, 60)
    with supervised(recipe) as controller, ThreadPoolExecutor(2) as pool:
        for name in recipe.target.members:
            slowed(controller.crew.handles[name].stage, 0.02)
        first, start, over = controller.crew.handles["target"].stage, controller.crew.start, threading.Event()
        controller.crew.start = lambda stage: over.wait(30) and start(stage)  # it loads for long
        answer: Future[Answer] = pool.submit(controller.generate, asked)
        assert until(lambda: first.rows and len(next(iter(first.rows.values())).standing.prefix) > 10)
        restarted = pool.submit(controller.supervisor.restart, "target", 60.0)
        try:
            assert answer.result(30).token_ids == expected(family, [asked])[0]
            assert not restarted.done()
        finally:
            over.set()
        assert restarted.result(30).planned
        assert not controller._admissions.quarantine.guilty("target", asked.request_id)


@pytest.mark.parametrize("counts", [(2, 2, 2, 2, 2), (1, 1, 2, 3)])
def test_answers_stay_while_any_replica_dies_at_any_time(family: Path, counts: tuple[int, ...]) -> None:
    recipe, asked = recipe_of(family, counts), requests(12, 60)
    reference = expected(family, asked)
    over, killed = threading.Event(), Counter[str]()
    with supervised(recipe) as controller, ThreadPoolExecutor(8) as pool:
        names = [name for name in controller.crew.handles if "." in name or counts[0] > 1]
        names.sort(key=lambda name: name.partition(".")[2])  # who is alone in two of a stage in a row would be suspect
        for name in recipe.target.members:
            slowed(controller.crew.handles[name].stage, 0.03)

        def grown(since: dict[str, int]) -> bool:
            """Whether all inside have been told more since then: who has not could be what kills."""
            return all(len(c.progress.tokens) > since.get(i, -1) for i, c in dict(controller._inside).items())

        def kill() -> None:
            reached: dict[str, int] = {}
            for name in itertools.cycle(names):
                if not until(lambda: over.is_set() or (whole(controller) and grown(reached))) or over.wait(0.05):
                    return
                reached.clear()
                reached.update({i: len(each.progress.tokens) for i, each in dict(controller._inside).items()})
                controller.crew.handles[name].kill()
                killed[name] += 1

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            for _ in range(6):
                answers = [updates[-1] for updates in pool.map(lambda each: list(controller.stream(each)), asked)]
                assert [answer.token_ids for answer in answers] == reference
                if sum(killed.values()) > 5:
                    break
        finally:
            over.set()
            killer.join()
        assert sum(killed.values()) > 2
        assert until(lambda: whole(controller))
        assert until(lambda: all_free(controller))
        after = controller.generate(requests(1)[0])
        assert sum(edge.num_accepted_tokens for edge in after.edges) > 0  # every link is there again


def test_who_kills_one_replica_after_the_other_is_refused_at_all_of_them(family: Path) -> None:
    recipe, (poison,) = recipe_of(family, (1, 1, 1, 2)), requests(1)
    with supervised(recipe) as controller:
        for name in recipe.target.members:
            controller.crew.handles[name].stage.admit = lambda *args, name=name: controller.crew.handles[name].kill()
        with pytest.raises(Quarantined):
            controller.generate(poison)
        (other,) = expected(family, [replace(poison, request_id="another")])
        assert until(lambda: all(controller.supervisor._watch.whole(name) for name in recipe.target.members))
        assert controller.generate(replace(poison, request_id="another")).token_ids == other


def test_no_two_links_between_the_same_stages_are_of_one_epoch() -> None:
    links = links_between(("light", "light.2"), ("heavy", "heavy.2", "heavy.3"))
    assert list(links) == [
        (light, heavy) for light in ("light", "light.2") for heavy in ("heavy", "heavy.2", "heavy.3")
    ]
    later = [epoch + times * len(links) for epoch in links.values() for times in range(5)]
    assert len(set(later)) == len(later)


@pytest.mark.parametrize(
    ("changes", "field", "allowed"),
    [
        ({"replicas": 0}, "stages.level0.replicas", "from 1 to 16"),
        ({"replicas": 17}, "stages.level0.replicas", "from 1 to 16"),
        ({"replicas": True}, "stages.level0.replicas", "from 1 to 16"),
        ({"replicas": 2, "beside": "target"}, "stages.level0.replicas", "at most 1, the replicas of target"),
        ({"replicas": 2, "drafter": "edge"}, "stages.level0.replicas", "1, where edge boxes draft"),
    ],
)
def test_replicas_that_cannot_be_are_refused(family: Path, changes: dict[str, Any], field: str, allowed: str) -> None:
    plain = toy_recipe(family, ["noisy"])
    with pytest.raises(ConfigError, match=allowed) as raised:
        replace(plain, stages=(replace(plain.stages[0], **changes), plain.target))
    assert raised.value.field == field
