"""The door for other deployments: the answers of HTTP without HTTP, typed errors, and no place that stays taken."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
from chat_bodies import chat_body
from client.scripted import Scripted
from toy_family import toy_recipe, write_toy_family

from cascade_runtime.config import load_recipe
from cascade_runtime.errors import CapacityError, DeadlineExceeded, InputError
from cascade_runtime.in_process import InProcess
from cluster.serving.gateway import Gateway
from cluster.serving.handle import HandleDoor
from cluster.serving.settings import ServerSettings


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> InProcess:
    return InProcess(toy_recipe(write_toy_family(tmp_path_factory.mktemp("toy")), ["noisy"]))


def with_door(
    transport: Any, use: Callable[[HandleDoor, Gateway], Awaitable[Any]], recipe: Any = None, **settings: Any
) -> Any:
    """What `use` gives, on the loop that the gateway belongs to."""

    async def run() -> Any:
        gateway = Gateway(ServerSettings(**settings), recipe or load_recipe("light_heavy"), transport)
        return await use(HandleDoor(gateway), gateway)

    return asyncio.run(run())


def test_whole_and_in_chunks_it_is_the_same_answer(engine: InProcess) -> None:
    body = chat_body(max_tokens=30, temperature=0.8, seed=3)

    async def both(door: HandleDoor, gateway: Gateway) -> tuple[Any, list[Any]]:
        whole = await door.chat(body)
        return whole, [chunk async for chunk in door.chat_stream(body | {"stream_options": {"include_usage": True}})]

    whole, (opening, *rounds, closing, last) = with_door(engine, both, engine.engine.recipe)
    told = whole["cascade"]
    assert whole["object"] == "chat.completion" and len(told["token_ids"]) > 1 and told["target_passes"]
    assert opening["choices"][0]["delta"]["role"] == "assistant" and len(rounds) > 1
    assert [token for chunk in rounds for token in chunk["cascade"]["token_ids"]] == told["token_ids"]
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in rounds)
    assert text == whole["choices"][0]["message"]["content"]
    assert closing["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert last["usage"] == whole["usage"] and last["cascade"]["spans"] == told["spans"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ("text", "body"),
        ({}, "messages"),
        (chat_body(temperature=-1), "temperature"),
        (chat_body(model="gpt"), "model"),
        (chat_body("http://127.0.0.1:9/x"), "messages[0].content[0].events_url.url"),
    ],
)
def test_what_http_refuses_is_an_error_that_travels(body: Any, field: str) -> None:
    async def refused(door: HandleDoor, gateway: Gateway) -> list[BaseException]:
        errors = []
        with pytest.raises(InputError) as caught:
            await door.chat(body)
        errors.append(caught.value)
        with pytest.raises(InputError) as caught:
            await anext(door.chat_stream(body))
        assert gateway._admission.inside == 0
        return [*errors, caught.value]

    for error in with_door(Scripted(), refused):
        again = copy.copy(error)  # made anew of what `pickle` would carry to another process
        assert (again.field, str(again)) == (field, str(error))


def test_the_pipeline_s_error_is_raised_and_a_full_server_says_so() -> None:
    async def fails(door: HandleDoor, gateway: Gateway) -> None:
        with pytest.raises(DeadlineExceeded, match="late"):
            await door.chat(chat_body())
        places = [gateway.enter("-") for _ in range(2)]
        with pytest.raises(CapacityError):
            await door.chat(chat_body())
        for place in places:
            place.leave()
        assert gateway._admission.inside == 0

    recipe = load_recipe("light_heavy", ["cascade.slots=2"])
    with_door(Scripted(DeadlineExceeded("late")), fails, recipe, max_queue=0)


def test_who_stops_reading_ends_the_run() -> None:
    transport = Scripted()
    transport.go.clear()

    async def leaves(door: HandleDoor, gateway: Gateway) -> None:
        async with aclosing(door.chat_stream(chat_body())) as chunks:  # type: ignore[type-var]
            assert "levels" in (await anext(chunks))["cascade"]
            assert (await anext(chunks))["cascade"]["token_ids"] == [1]
            assert gateway._admission.inside == 1
        asked = asyncio.create_task(door.chat(chat_body()))
        while transport.started < 2:
            await asyncio.sleep(0.002)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        while transport.ended < 2 or gateway._admission.inside:
            await asyncio.sleep(0.002)

    with_door(transport, leaves)
