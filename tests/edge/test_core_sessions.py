"""How many sessions a core remembers, of all edges and of one."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest
from edge.edge_ends import core, hello

from cascade_runtime.proto import edge_pb2_grpc
from cluster.serving.api_keys import digest

TOKEN = "a-token-of-more-than-16"


def test_one_token_cannot_take_all_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.edge.core.MAX_OF_TOKEN", 2)
    monkeypatch.setattr("cluster.edge.core.MAX_SESSIONS", 3)
    other = "another-token-of-more-than-16"

    async def begin(port: int, number: int, token: str) -> tuple[str, str]:
        """What the core says first. The link stays open: one that ends with nothing owed is forgotten."""
        channel = await links.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        asking = (("authorization", f"Bearer {token}"),) if token else ()
        call = edge_pb2_grpc.EdgeLinkStub(channel).Link(timeout=20, metadata=asking)
        links.callback(call.cancel)  # and holds it: a call that nobody holds is cancelled
        await call.write(hello(session=b"%016d" % number))
        try:
            return (await call.read()).WhichOneof("said"), ""
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""

    links = contextlib.AsyncExitStack()

    async def test() -> None:
        async with core(key_digests=(digest(TOKEN), digest(other))) as (_, port), links:
            assert [(await begin(port, k, TOKEN))[0] for k in (1, 2)] == ["welcome"] * 2
            assert await begin(port, 3, TOKEN) == ("RESOURCE_EXHAUSTED", "2 sessions of this token are remembered")
            assert (await begin(port, 1, TOKEN))[0] == "welcome"  # its own goes on
            assert (await begin(port, 4, other))[0] == "welcome"
            assert await begin(port, 5, other) == ("RESOURCE_EXHAUSTED", "3 sessions are remembered")
        async with core() as (_, port), links:  # without tokens nobody can be told apart
            assert [(await begin(port, k, ""))[0] for k in (1, 2, 3)] == ["welcome"] * 3

    asyncio.run(test())
