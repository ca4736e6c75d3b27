"""Sessions: windows of a live source in, answers out; of those that wait the newest stay, whatever carries them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from client.grpc_servers import grpc_server
from client.http_servers import cascade_server
from client.scripted import ANSWER, Scripted
from toy_family import toy_events, toy_recipe, write_toy_family

from cascade_runtime.api import Answer, WindowAnswer
from cascade_runtime.client import CascadeClient
from cascade_runtime.client.session import AsyncSession
from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.errors import CapacityError, InputError, StageError
from cascade_runtime.events import Events
from cascade_runtime.transports import NewestWindows, SessionTerms, answer_windows

SAMPLING = SamplingParams(max_tokens=12, temperature=0.9, seed=3)
EMPTY = Events([], [], [], [], width=4, height=4)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return toy_recipe(write_toy_family(tmp_path_factory.mktemp("toy")), ["noisy"])


@contextmanager
def reached(by: str, recipe: Recipe) -> Iterator[CascadeClient]:
    if by == "in-process":
        with CascadeClient(recipe=recipe) as client:
            yield client
        return
    with cascade_server(recipe) as (address, transport):
        door: Any = grpc_server(recipe, transport) if by == "grpc" else nullcontext()
        with door as served, CascadeClient(f"grpc://{served.address}" if served else address) as client:
            yield client


@pytest.mark.parametrize("by", ["in-process", "http", "grpc"])
def test_every_window_is_answered_as_a_recording_of_its_own(by: str, recipe: Recipe) -> None:
    """One by one, so that none has to wait; one without events is told, and the session goes on."""
    with reached(by, recipe) as client, client.session("What moves?", sampling=SAMPLING) as session:
        for number, events in enumerate((toy_events(0), EMPTY, toy_events(1))):
            assert session.send(events) == number
            reply = next(iter(session))
            assert (reply.number, reply.dropped) == (number, 0)
            if len(events):
                alone = client.generate(events, "What moves?", sampling=SAMPLING)
                assert isinstance(reply.outcome, Answer) and reply.outcome.token_ids == alone.token_ids
            else:
                assert isinstance(reply.outcome, InputError) and "at least one event" in str(reply.outcome)
        session.finish()
        assert list(session) == [] == list(session)


def held(transport: Scripted, windows: int) -> tuple[AsyncSession, Callable[[], Any]]:
    """A session over a transport that answers once `go` is set, and its first answer to wait for."""
    terms = SessionTerms(question="What moves?")
    session = AsyncSession(windows, lambda queue: answer_windows(transport, queue, terms, None))
    return session, lambda: asyncio.create_task(anext(session))  # type: ignore[arg-type]


@pytest.mark.parametrize(("waiting", "numbers", "dropped"), [(1, [0, 5], [4, 4]), (3, [0, 3, 4, 5], [2, 2, 2, 2])])
def test_while_one_is_answered_the_newest_wait(waiting: int, numbers: list[int], dropped: list[int]) -> None:
    async def check() -> list[WindowAnswer]:
        transport = Scripted()
        transport.go.clear()
        session, first = held(transport, waiting)
        session.send(toy_events(0))
        reply = first()
        while not transport.started:
            await asyncio.sleep(0)
        for seed in range(1, 6):
            session.send(toy_events(seed))
        session.finish()
        with pytest.raises(StageError, match="finished"):
            session.send(toy_events())
        transport.go.set()
        replies = [await reply, *[reply async for reply in session]]
        assert [len(one.events) for one in transport.asked] == [3000] * len(replies)
        return replies

    replies = asyncio.run(check())
    assert [reply.number for reply in replies] == numbers and [reply.dropped for reply in replies] == dropped


def test_over_the_wire_too_nothing_is_lost_uncounted_and_the_last_is_answered(recipe: Recipe) -> None:
    transport = Scripted()
    transport.go.clear()
    with (
        grpc_server(recipe, transport) as served,
        CascadeClient(f"grpc://{served.address}") as client,
        client.session("What moves?") as session,
    ):
        session.send(toy_events(0))
        while not transport.started:
            time.sleep(0.002)
        for seed in range(1, 30):
            session.send(toy_events(seed % 3))
        session.finish()
        assert list(session.ready()) == []
        transport.go.set()
        replies = list(session)
        numbers = [reply.number for reply in replies]
        assert numbers[0] == 0 and numbers[-1] == 29 and numbers == sorted(set(numbers))
        assert replies[-1].dropped == 30 - len(replies) and len(replies) < 30  # 30 do not fit into two queues of one
        assert all(isinstance(reply.outcome, Answer) and reply.outcome.text == ANSWER.text for reply in replies)


def test_a_window_that_fails_is_told_and_the_session_goes_on(recipe: Recipe) -> None:
    transport = Scripted(CapacityError("all is full"))
    with (
        grpc_server(recipe, transport) as served,
        CascadeClient(f"grpc://{served.address}") as client,
        client.session("What moves?") as session,
    ):
        session.send(toy_events())
        assert isinstance(next(iter(session)).outcome, CapacityError)
        transport.error = None
        session.send(toy_events())
        reply = next(iter(session))
        assert (reply.number, reply.outcome.text) == (1, ANSWER.text)  # type: ignore[union-attr]


def test_what_is_wrong_with_a_session_is_said_at_once_or_ends_it(recipe: Recipe) -> None:
    with (
        grpc_server(recipe, Scripted(), max_tokens=50, max_body_bytes=20_000) as served,
        CascadeClient(f"grpc://{served.address}") as client,
    ):
        for question, waiting in ((" ", 1), ("x" * 9000, 1), ("What moves?", 0), ("What moves?", 65)):
            with pytest.raises(InputError):
                client.session(question, waiting=waiting)
        with client.session("What?", sampling=SamplingParams(max_tokens=51)) as session:
            with pytest.raises(InputError, match="max_tokens: got 51"):
                next(iter(session))
            with pytest.raises(InputError, match="max_tokens: got 51"):
                session.send(toy_events())
        with pytest.raises(InputError, match="no_such_option"):
            client.session("What?", no_such_option=1)  # type: ignore[call-arg]
        with client.session("What?", max_tokens=5) as session:
            session.send(toy_events(count=9000))
            with pytest.raises(InputError, match="at most 20000 bytes"):
                next(iter(session))


def test_closing_a_session_ends_what_is_being_answered(recipe: Recipe) -> None:
    transport = Scripted()
    transport.go.clear()
    with grpc_server(recipe, transport) as served, CascadeClient(f"grpc://{served.address}") as client:
        with client.session("What moves?") as session:
            session.send(toy_events())
            while not transport.started:
                time.sleep(0.002)
        end = time.monotonic() + 20
        while served.inside or not transport.ended:
            assert time.monotonic() < end
            time.sleep(0.002)
        with pytest.raises(StageError, match="closed"):
            next(iter(session))


def test_of_what_waits_the_newest_stay_and_the_rest_is_counted() -> None:
    windows: NewestWindows[int] = NewestWindows(2)
    for number in range(5):
        windows.put(number)
    windows.close()

    async def rest() -> list[int | None]:
        return [await windows.get() for _ in range(3)]

    assert asyncio.run(rest()) == [3, 4, None] and windows.dropped == 3
