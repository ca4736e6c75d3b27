"""The pipeline on real Ray actors: the engine's tokens over mixed requests, and nothing left behind."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulated import emulated_table
from toy_family import toy_events, toy_recipe, toy_requests, write_toy_family

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.client import AsyncCascadeClient, CascadeClient
from cascade_runtime.config import Recipe, SamplingParams, recipe_from_dict
from cascade_runtime.engine import Engine
from cascade_runtime.errors import CascadeError, ConfigError, InputError, PromptTooLong, StageError

pytestmark = pytest.mark.ray
REQUESTS = 200


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


def ray_recipe(family: Path, backend: str = "auto") -> Recipe:
    patient = {"start_s": 300.0, "upstream_s": 10.0}  # on a busy machine too, no verifier goes on without drafts
    return toy_recipe(family, ["random", "noisy"], [2, 4], channels={"backend": backend}, deadlines=patient)


@pytest.fixture(scope="module")
def client(ray_cluster: None, family: Path) -> Iterator[CascadeClient]:
    with CascadeClient("ray", recipe=ray_recipe(family)) as client:
        yield client


def pipeline(client: CascadeClient) -> Any:
    return client._async._transport.pipeline  # type: ignore[attr-defined]


def stored_objects() -> int:
    """Objects in the store of this cluster's nodes."""
    import ray
    from ray._private.internal_api import memory_summary

    summary = memory_summary(address=ray.get_runtime_context().gcs_address, stats_only=True)
    found = re.search(r"(\d+) objects", summary)
    assert found, summary
    return int(found[1])


def settled_objects() -> int:
    """The same once it has not changed for two seconds: references are counted down asynchronously."""
    count, since = stored_objects(), time.monotonic()
    end = since + 20
    while time.monotonic() < min(since + 2, end):
        time.sleep(0.1)
        if (now := stored_objects()) != count:
            count, since = now, time.monotonic()
    return count


def test_200_mixed_requests_get_the_engines_tokens_and_leave_nothing_behind(
    client: CascadeClient, family: Path
) -> None:
    client.generate(toy_events(), "What?")  # whatever is kept for good is there from now on
    before = settled_objects()
    requests = toy_requests(REQUESTS, seed=11, max_tokens=8)
    expected = Engine.load(toy_recipe(family, [])).generate(requests)

    async def ask() -> list[Answer | CascadeError]:
        answers: dict[int, Answer | CascadeError] = {}
        async for index, update in client._async._transport.run(requests, 120.0, False):
            if not isinstance(update, str):
                answers[index] = update
            if len(answers) == REQUESTS // 2:
                halfway.append(stored_objects())
        return [answers[index] for index in range(REQUESTS)]

    halfway: list[int] = []

    answers = client._wait(ask())
    assert [getattr(a, "token_ids", a) for a in answers] == [e.token_ids for e in expected]  # type: ignore[union-attr]
    edges = [edge for answer in answers for edge in answer.edges]  # type: ignore[union-attr]
    assert {edge.edge for edge in edges} == {"level0-level1", "level1-target"}
    assert sum(e.num_draft_tokens for e in edges) > sum(e.num_accepted_tokens for e in edges) > 0
    stats = pipeline(client).stats()
    assert stats["controller"] == {"running": 0, "waiting": 0, "cancelled": 0, "draining": False}
    for name in ("level0", "level1", "target"):
        assert (stats[name]["free_slots"], stats[name]["active_rows"]) == (4, 0)
        assert stats[name]["passes"] > 0 and stats[name]["refused_messages"] == 0
    assert halfway[0] >= before + 50  # recordings and features of those inside do lie in the store
    assert settled_objects() <= before


def test_streams_in_rounds_and_answers_as_the_target_alone(client: CascadeClient) -> None:
    sampling = SamplingParams(max_tokens=60, ignore_eos=True)
    *pieces, answer = client.stream(toy_events(), "What moves?", sampling=sampling)
    assert isinstance(answer, Answer) and len(pieces) > 2 and "".join(pieces) == answer.text
    alone = client.generate(toy_events(), "What moves?", sampling=sampling, speculate=False)
    assert alone.token_ids == answer.token_ids and set(alone.produced_by) == {"target"}
    assert 0 < answer.timings.ttft_ms <= answer.timings.total_ms


def test_a_session_answers_window_after_window(client: CascadeClient) -> None:
    with client.session("What moves?", sampling=SamplingParams(max_tokens=8)) as session:
        for number in range(2):
            assert session.send(toy_events(number)) == number
            reply = next(iter(session))
            alone = client.generate(toy_events(number), "What moves?", sampling=SamplingParams(max_tokens=8))
            assert isinstance(reply.outcome, Answer) and reply.outcome.token_ids == alone.token_ids


def test_lists_keep_their_order_and_carry_their_errors(client: CascadeClient) -> None:
    answers = client.generate([toy_events(1), toy_events(2)], ["What?", "where " * 400], progress=False)
    assert isinstance(answers[0], Answer) and isinstance(answers[1], PromptTooLong)


def test_errors_arrive_typed_and_whole(client: CascadeClient) -> None:
    with pytest.raises(PromptTooLong, match="KV slot"):
        client.generate(toy_events(), "where " * 400)
    with pytest.raises(InputError, match="question"):
        client.generate(toy_events(), "")


def test_leaving_a_stream_cancels_the_request(client: CascadeClient) -> None:
    before = pipeline(client).stats()["controller"]
    stream = client.stream(toy_events(), "What moves?", sampling=SamplingParams(max_tokens=200, ignore_eos=True))
    next(stream)
    assert pipeline(client).stats()["controller"] == {**before, "running": 1}
    stream.close()  # type: ignore[attr-defined]
    end = time.monotonic() + 10
    while pipeline(client).stats()["controller"]["running"] and time.monotonic() < end:
        time.sleep(0.05)
    stats = pipeline(client).stats()
    assert stats["controller"] == {**before, "cancelled": before["cancelled"] + 1}
    assert [stats[name]["free_slots"] for name in ("level0", "level1", "target")] == [4, 4, 4]


def test_a_list_that_is_left_makes_room_for_the_next(client: CascadeClient) -> None:
    def listed(max_tokens: int) -> list[GenerateRequest]:
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        events = toy_events()
        return [GenerateRequest(events=events, question="What?", sampling=sampling) for _ in range(80)]

    async def ask() -> list[Answer | CascadeError | str]:
        left = client._async._transport.run(listed(200), 120.0, False)
        await anext(left)
        await left.aclose()  # type: ignore[attr-defined]
        return [update async for _, update in client._async._transport.run(listed(2), 120.0, False)]

    before = pipeline(client).stats()["controller"]["cancelled"]
    updates = client._wait(ask())
    assert [len(update.token_ids) for update in updates] == [2] * 80  # type: ignore[union-attr]
    assert pipeline(client).stats()["controller"]["cancelled"] > before


def test_unsupervised_a_killed_drafter_costs_no_token_and_closing_leaves_nothing(ray_cluster: None) -> None:
    import ray
    from ray.util import list_named_actors, placement_group_table

    table = emulated_table(["level0", "level1"], {"agreement": [0.7, 0.8]}, slots=4)
    rest = {"supervision": {"restarts": 0}, "channels": {"backend": "object_store"}, "deadlines": {"start_s": 300.0}}
    client = CascadeClient("ray", recipe=recipe_from_dict({**table, **rest}))
    assert pipeline(client).backends == ("object_store", "object_store")
    actors = [stage.actor for stage in (*pipeline(client).stages.values(), pipeline(client).controller)]
    group = pipeline(client).group.id.hex()
    request = {"sampling": SamplingParams(max_tokens=40, temperature=0.7, seed=4)}
    before = client.generate(toy_events(), "What moves?", **request)
    ray.kill(pipeline(client).stages["level1"].actor)
    after = client.generate(toy_events(), "What moves?", **request)
    assert after.token_ids == before.token_ids
    assert any("level1" in note for note in after.notes)
    stats = pipeline(client).stats()
    assert "died" in stats["level1"]["problem"] and "problem" not in stats["target"]
    ray.kill(pipeline(client).stages["target"].actor)
    with pytest.raises(StageError, match="died"):
        client.generate(toy_events(), "What moves?", **request)
    client.close()
    client.close()
    for actor in actors:
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(actor.stats.remote() if hasattr(actor, "stats") else actor.info.remote(), timeout=10)
    assert placement_group_table()[group]["state"] == "REMOVED"
    assert list_named_actors() == []


@pytest.mark.parametrize("ask", [{"num_gpus": 2.0}, {"labels": {"tier": "edge"}}])
def test_what_the_cluster_cannot_hold_is_refused_by_name(
    ray_cluster: None, family: Path, ask: dict[str, object]
) -> None:
    recipe = recipe_from_dict(
        {
            "cascade": {"name": "big", "levels": ["target"], "num_draft_tokens": []},
            "stages": {"target": {"checkpoint": str(family / "target"), **ask}},
            "deadlines": {"start_s": 3.0},
        }
    )
    with pytest.raises(ConfigError, match="cluster has free"):
        CascadeClient("ray", recipe=recipe)


def test_the_async_client_answers_side_by_side(client: CascadeClient, family: Path) -> None:
    async def ask() -> list[Answer]:
        asked: AsyncCascadeClient = client._async
        return await asyncio.gather(*(asked.generate(toy_events(k), "What moves?") for k in range(4)))

    answers = asyncio.run_coroutine_threadsafe(ask(), client._loop).result(120)
    expected = Engine.load(toy_recipe(family, [])).generate(
        [GenerateRequest(events=toy_events(k), question="What moves?") for k in range(4)]
    )
    assert [a.token_ids for a in answers] == [e.token_ids for e in expected]  # type: ignore[union-attr]
