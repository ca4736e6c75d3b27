"""Both ends of an edge link on loopback: a pipeline that answers with a window's hash, and a wire that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cascade_runtime.api import Answer, GenerateRequest, Timings
from cascade_runtime.edge.cut import Seeing
from cascade_runtime.errors import StageError
from cascade_runtime.events import Events
from cascade_runtime.proto import edge_pb2
from cluster.edge.box import EdgeBox, EdgeSettings, Reply
from cluster.edge.core import EdgeCore
from cluster.edge.doors import CoreDoor, EdgeDoor
from cluster.edge.session import SessionLimits

SEEING = Seeing(recipe="hash", cuts=("raw", "frames"), rule="activity", options={"frames": 2, "size": 8})
QUESTION = "What moves?"


def recording(windows: int = 12, per_window: int = 40, *, seed: int = 3) -> Events:
    """So many windows of 50 ms, each with as many events; the sensor's clock does not begin at 0."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, 50_000, (windows, per_window)) + 50_000 * np.arange(windows)[:, None], axis=1)
    t[0, 0] = 0
    count = windows * per_window
    x, y, p = rng.integers(0, 32, count), rng.integers(0, 24, count), rng.integers(0, 2, count)
    return Events(t.reshape(-1), x, y, p, width=32, height=24, t_offset_us=7_000_000)


def hash_of(events: Events) -> str:
    """What `HashTransport` says of a window of events."""
    digest = hashlib.sha256()
    for column in (events.t + events.t_offset_us, events.x, events.y, events.p):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


class HashTransport:
    """Answers every window with its hash, as long as `open` is set; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[GenerateRequest] = []
        self.open = asyncio.Event()
        self.open.set()
        self.poison: set[str] = set()  # hashes at which it fails

    async def run(
        self, requests: Sequence[GenerateRequest], timeout_s: float | None, stream: bool, concurrency: int = 1
    ) -> AsyncIterator[tuple[int, Any]]:
        (request,) = requests
        self.asked.append(request)
        await self.open.wait()
        said = hash_of(request.events) if isinstance(request.events, Events) else request.events.view.source
        if said in self.poison:
            yield 0, StageError("heavy", request.request_id, "poisoned")
            return
        yield (
            0,
            Answer(request.request_id, said, (1, 2), ("a", "b"), "stop", ("light", "heavy"), (3, 2), Timings(1.0, 2.0)),
        )


class Wire:
    """A TCP forwarder between edge and core that can be cut."""

    def __init__(self, port: int) -> None:
        self._core_port, self._writers = port, set[asyncio.StreamWriter]()
        self.port = self.connections = self.bytes_up = 0
        self.cut_after: int | None = None  # bytes of the edge, once

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Every connection breaks now."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        core_reader, core_writer = await asyncio.open_connection("127.0.0.1", self._core_port)
        self._writers |= {writer, core_writer}
        await asyncio.gather(self._pump(reader, core_writer, up=True), self._pump(core_reader, writer, up=False))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 14):
                writer.write(data)
                await writer.drain()
                self.bytes_up += len(data) if up else 0
                if self.cut_after is not None and self.bytes_up >= self.cut_after:
                    self.cut_after = None
                    self.cut()
        writer.close()


@contextlib.asynccontextmanager
async def core(
    transport: Any = None, seeing: Seeing = SEEING, limits: SessionLimits | None = None, relay: Any = None, **door: Any
) -> AsyncIterator[tuple[EdgeCore, int]]:
    """A core on a free port of loopback."""
    given = CoreDoor(host="127.0.0.1", port=0, **door)
    made = EdgeCore(seeing, transport or HashTransport(), given, limits or SessionLimits(), grace_s=30.0, relay=relay)
    async with made.serving() as port:
        yield made, port


def settings(**changes: Any) -> EdgeSettings:
    """Everything is answered, as quickly as it goes."""
    return EdgeSettings(**{"question": QUESTION, "keep": "all", "speed": math.inf, "give_up_s": 20.0, **changes})


async def ask(box: EdgeBox) -> list[Reply]:
    """Run a box; its replies in the order in which they came."""
    replies: list[Reply] = []
    async with asyncio.timeout(30):
        await box.run(replies.append)
    return replies


def box(port: int, events: Events, *, token: str = "", authority: Path | None = None, **changes: Any) -> EdgeBox:
    """An edge of that core."""
    host = "localhost" if authority else "127.0.0.1"
    return EdgeBox(settings(**changes), EdgeDoor(server=f"{host}:{port}", token=token, authority=authority), events)


def said(replies: list[Reply]) -> list[tuple[int, str]]:
    """Number of each window and what was said of it."""
    return [(reply.outcome.number, reply.outcome.answer.text) for reply in replies]


def expected(events: Events, window_us: int = 50_000) -> list[tuple[int, str]]:
    """What a pipeline in this process would say of each window."""
    return [(number, hash_of(window)) for number, window in enumerate(events.windows_by_time(window_us))]


def hello(**changes: Any) -> edge_pb2.FromEdge:
    """The first message of a hand-made edge."""
    sampling = edge_pb2.Sampling(top_p=1.0, max_tokens=8)
    fields = {"version": 1, "session": b"0123456789abcdef", "first": 1, "cut": "raw", "question": QUESTION}
    return edge_pb2.FromEdge(
        hello=edge_pb2.Hello(**{**fields, "sampling": sampling, "width": 32, "height": 24, **changes})
    )
