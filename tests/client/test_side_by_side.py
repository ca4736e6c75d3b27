"""The loop behind every `run`: what `ask` tells, in order; an end for every request; and nothing told twice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from toy_family import toy_requests

from cascade_runtime.api import Answer, GenerateRequest, Piece
from cascade_runtime.errors import CapacityError, RemoteError, StageError
from cascade_runtime.transports import Tell, Told, side_by_side


def test_a_stream_that_begins_anew_says_nothing_twice() -> None:
    said: list[Piece] = []

    async def hear(piece: Piece) -> None:
        said.append(piece)

    async def speak() -> None:
        told = Told()
        tell = told.filtered(hear)
        await tell(Piece("ab", (1, 2), (1, 1), ("a", "b")))
        await tell(Piece("c", (3,), (1,), ("c",)))
        tell = told.filtered(hear)
        await tell(Piece("a", (1,), (1,), ("a",)))
        await tell(Piece("bcd", (2, 3, 4), (1, 1, 1), ("b", "c", "d")))
        await tell(Piece("", (5,), (1,), ("",)))

    asyncio.run(speak())
    assert [(str(piece), piece.tokens, piece.words) for piece in said] == [
        ("ab", (1, 2), ("a", "b")),
        ("c", (3,), ("c",)),
        ("d", (4,), ("d",)),
        ("", (5,), ("",)),
    ]


def test_another_answer_is_refused_as_soon_as_it_is_one() -> None:
    async def hear(piece: Piece) -> None:
        pass

    async def speak(*pieces: Piece) -> None:
        told = Told()
        tell = told.filtered(hear)
        await tell(Piece("ab", (1, 2), (1, 1), ("a", "b")))
        tell = told.filtered(hear)
        for piece in pieces:
            await tell(piece)

    asyncio.run(speak(Piece("a", (1,)), Piece("bc", (2, 3))))
    for wrong in (
        [Piece("a", (1,)), Piece("x", (9,))],
        [Piece("a", (1,)), Piece("b", (9,))],
        [Piece("ax", (1, 2))],
        [Piece("abc", (2, 1, 3))],
    ):
        with pytest.raises(RemoteError, match="another one"):
            asyncio.run(speak(*wrong))


def test_an_answer_that_ends_before_what_was_told_is_another() -> None:
    async def hear(piece: Piece) -> None:
        pass

    told, answer = Told(), object.__new__(Answer)
    asyncio.run(told.filtered(hear)(Piece("a car", (1, 2))))
    for text, same in (("a car", True), ("a car moves", True), ("a", False), ("the car", False)):
        object.__setattr__(answer, "text", text)
        if same:
            assert told.checked(answer) is answer
            continue
        with pytest.raises(RemoteError, match="another one"):
            told.checked(answer)


def test_whatever_goes_wrong_with_one_request_ends_that_one_and_carries_its_id() -> None:
    async def ask(request: GenerateRequest, tell: Tell) -> Answer:
        await tell(Piece("x", (1,), (1,), ("x",)))
        raise CapacityError("full") if request is requests[0] else ValueError("unforeseen")

    async def check() -> list[tuple[int, Any]]:
        return [update async for update in side_by_side(requests, 1, ask)]

    requests = toy_requests(2)
    (_, piece), (first, full), _, (second, failed) = asyncio.run(check())
    assert (piece, first, second) == ("x", 0, 1)
    assert isinstance(full, CapacityError) and full.request_id == requests[0].request_id
    assert isinstance(failed, StageError) and failed.request_id == requests[1].request_id
    assert "ValueError: unforeseen" in str(failed)


def test_only_so_many_updates_wait_for_who_reads() -> None:
    """Without a bound all are told before anybody has read."""

    async def told_meanwhile(waiting: int | None) -> int:
        told = 0

        async def ask(request: GenerateRequest, tell: Tell) -> Answer:
            nonlocal told
            for number in range(9):
                await tell(Piece("x", (number,), (1,), ("x",)))
                told += 1
            raise CapacityError("the end")

        updates: Any = side_by_side(toy_requests(1), 1, ask, waiting=waiting)
        await anext(updates)
        for _ in range(50):
            await asyncio.sleep(0)
        await updates.aclose()
        return told

    assert asyncio.run(told_meanwhile(3)) == 4  # one was read
    assert asyncio.run(told_meanwhile(None)) == 9
