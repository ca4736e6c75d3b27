"""Sessions seen from the wire: the newest windows, bad ones, and how many sessions there may be."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import grpc
from client.grpc_servers import Served, grpc_server
from client.scripted import Scripted
from grpc_calls import EVENTS, calls, refused

from cascade_runtime.config import Recipe
from cascade_runtime.proto import cascade_pb2 as wire
from cluster.serving.gateway import Gateway
from cluster.serving.rpc.session import answered_windows
from cluster.serving.settings import ServerSettings

TERMS = wire.SessionRequest(terms=wire.SessionTerms(question="What moves?"))


def window(number: int) -> wire.SessionRequest:
    recording = wire.Recording(data=EVENTS.to_ipc_bytes())
    return wire.SessionRequest(window=wire.Window(number=number, recording=recording))


def test_while_a_window_is_answered_the_newest_wait_and_the_others_are_counted(recipe: Recipe) -> None:
    async def check() -> list[tuple[int, int, str | None]]:
        transport = Scripted()
        transport.go.clear()

        async def requests() -> AsyncIterator[wire.SessionRequest]:
            yield TERMS
            yield window(10)
            while not transport.started:
                await asyncio.sleep(0.001)
            for number in range(11, 15):
                yield window(number)
            transport.go.set()

        gateway = Gateway(ServerSettings(), recipe, transport)
        opened, *replies = [one async for one in answered_windows(gateway, "-", requests())]
        assert list(opened.opened.levels) == ["light", "heavy"]
        return [(one.window.number, one.window.dropped, one.window.WhichOneof("outcome")) for one in replies]

    (first, _, kind), last = asyncio.run(check())
    assert (first, kind, last) == (10, "answer", (14, 3, "answer"))


def test_a_session_that_is_none_ends_and_a_bad_window_does_not_end_one(server: Served) -> None:
    with calls(server) as stub:
        wrong = wire.SessionRequest(terms=wire.SessionTerms(question=" "))
        for requests, field in (
            ([window(0)], "terms"),
            ([wire.SessionRequest()], "terms"),
            ([], "terms"),
            ([wrong], "question"),
            ([TERMS, TERMS], "window"),
            ([wire.SessionRequest(terms=wire.SessionTerms(question="?", waiting=65))], "waiting"),
        ):
            status, told, _ = refused(lambda requests=requests: list(stub.Session(iter(requests))))
            assert (status, told["field"]) == ("INVALID_ARGUMENT", field)
        bad = wire.SessionRequest(window=wire.Window(number=4, recording=wire.Recording(data=b"nonsense")))
        going = threading.Event()

        def steps() -> Iterator[wire.SessionRequest]:
            yield TERMS
            yield bad
            going.wait(20)
            yield window(5)

        replies = stub.Session(steps())
        assert next(replies).WhichOneof("reply") == "opened"
        failure = next(replies).window.failure
        assert failure.status == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert (failure.code, failure.field) == ("media_rejected", "recording")
        going.set()
        assert next(replies).window.answer.text == "ab" and list(replies) == []


def test_there_are_only_so_many_sessions(recipe: Recipe) -> None:
    with grpc_server(recipe, Scripted(), max_queue=0) as served, calls(served) as stub:
        end = threading.Event()

        def open_ended() -> Iterator[wire.SessionRequest]:
            yield TERMS
            end.wait(20)

        running = [stub.Session(open_ended()) for _ in range(2)]
        assert [next(one).WhichOneof("reply") for one in running] == ["opened", "opened"]
        status, told, _ = refused(lambda: list(stub.Session(iter([TERMS]))))
        assert (status, told["retry-after"]) == ("RESOURCE_EXHAUSTED", "1")
        end.set()
        assert [list(one) for one in running] == [[], []]
        assert len(list(stub.Session(iter([TERMS])))) == 1
