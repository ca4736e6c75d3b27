"""`EdgeLink`: the edge's side of the stream, made again after every cut.

    hear   outcomes and figures from the core; silence of `SILENCE_S` is a cut
    tell   drafts, batches as far as the limit allows, what was taken, a pulse at least every `PULSE_S`

What goes through it is the ledger's; what it means is the box's.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from cascade_runtime.edge.clock import ClockOffset
from cascade_runtime.edge.ledger import EdgeLedger
from cascade_runtime.edge.packing import checksum
from cascade_runtime.errors import AccessError, ChannelError, DeadlineExceeded, RemoteError
from cascade_runtime.proto import edge_pb2, edge_pb2_grpc
from cluster.edge.doors import END_OF_STREAM, EdgeDoor

PULSE_S = 1.0
SILENCE_S = 5.0
_BACKOFF_S = (0.1, 2.0)
_MAX_USELESS = 20  # links in a row that were welcomed and settled nothing
_FATAL = {
    grpc.StatusCode.UNAUTHENTICATED: AccessError,
    grpc.StatusCode.PERMISSION_DENIED: AccessError,
    grpc.StatusCode.INVALID_ARGUMENT: RemoteError,
    grpc.StatusCode.UNIMPLEMENTED: RemoteError,
}


class Owner(Protocol):
    """Whose link it is."""

    @property
    def finished(self) -> bool:
        """Whether nothing more is to be sent or awaited."""
        ...

    async def welcomed(self, welcome: edge_pb2.Welcome) -> None:
        """The link is there. Raises `CascadeError` for a core that cannot be worked with."""

    def settled(self, outcome: edge_pb2.Outcome) -> None:
        """A batch has its outcome, for the first time."""

    def sent(self, seq: int) -> None:
        """A batch is handed to the link."""

    def drafts(self) -> bytes:
        """What is to be told of drafts now; empty: nothing."""
        ...

    def verdicts(self, frame: bytes) -> None:
        """The core stands by something. Raises `ChannelError` where nobody drafts."""


@dataclass
class LinkCounts:
    """links: that were welcomed. batches: sent, again ones included. repeated: outcomes that had come before."""

    links: int = 0
    batches: int = 0
    repeated: int = 0


class EdgeLink:
    """One session's link, connection after connection."""

    def __init__(self, door: EdgeDoor, hello: edge_pb2.Hello, owner: Owner) -> None:
        self.ledger, self.clock, self.counts = EdgeLedger(), ClockOffset(), LinkCounts()
        self._door, self._said_hello, self._owner = door, hello, owner
        self._news = asyncio.Event()

    def wake(self) -> None:
        """Something may be sent, or all is done."""
        self._news.set()

    async def run(self, give_up_s: float) -> None:
        """Until the owner has finished. Raises `AccessError`, `RemoteError`, what `welcomed` raises, and
        `DeadlineExceeded` after `give_up_s` without a link.
        """
        seen_at, backoff_s, useless = time.monotonic(), _BACKOFF_S[0], 0
        while not self._owner.finished:
            links, taken = self.counts.links, self.ledger.taken
            try:
                await self._connect()
                continue
            except grpc.aio.AioRpcError as error:
                problem = error.details() or error.code().name
                if error.code() in _FATAL:
                    raise _FATAL[error.code()](f"{self._door.server}: {problem}") from None
            except (ChannelError, TimeoutError, asyncio.InvalidStateError) as error:
                problem = str(error) or "the core is silent"
            now = time.monotonic()
            if self.counts.links > links:
                seen_at, backoff_s = now, _BACKOFF_S[0]
                useless = useless + 1 if self.ledger.taken == taken else 0
            if useless > _MAX_USELESS:
                raise RemoteError(f"{self._door.server}: {useless} links in a row brought nothing: {problem}")
            if now - seen_at > give_up_s:
                raise DeadlineExceeded(f"{self._door.server}: no link for {give_up_s:g} s: {problem}")
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _BACKOFF_S[1])

    async def _connect(self) -> None:
        """One connection: returns when all is settled. Raises what broke it."""
        async with self._door.channel() as channel:
            call = edge_pb2_grpc.EdgeLinkStub(channel).Link(metadata=self._door.metadata)
            try:
                self._said_hello.first = self.ledger.first
                hello = edge_pb2.FromEdge(taken=self.ledger.taken, hello=self._said_hello)
                async with asyncio.timeout(SILENCE_S):
                    await call.write(hello)
                first = await self._read(call)
                if first is None or first.WhichOneof("said") != "welcome":
                    raise ChannelError("the core ended the link without a welcome")
                self.ledger.welcomed(first.accepted, first.limit, resumed=first.welcome.resumed)
                await self._owner.welcomed(first.welcome)
                self.counts.links += 1
                loops = [asyncio.create_task(self._hear(call)), asyncio.create_task(self._tell(call))]
                try:
                    done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_EXCEPTION)
                    for loop in done:
                        loop.result()
                finally:
                    for loop in loops:
                        loop.cancel()
                    await asyncio.gather(*loops, return_exceptions=True)
            finally:
                call.cancel()

    async def _tell(self, call: Any) -> None:
        said_at = 0.0
        told = self.ledger.taken
        while not self._owner.finished:
            message = edge_pb2.FromEdge(taken=self.ledger.taken)
            overdue = time.monotonic() - said_at >= PULSE_S
            drafts = b"" if overdue else self._owner.drafts()
            if drafts:
                message.drafts = drafts
            elif (due := self.ledger.due()) is not None:
                seq, body = due
                message.batch.CopyFrom(edge_pb2.Batch(seq=seq, crc32=checksum(seq, body), body=body))
                self._owner.sent(seq)
                self.counts.batches += 1
            elif overdue:
                message.pulse.now_ns, said_at = time.monotonic_ns(), time.monotonic()
            elif told != message.taken:
                message.pulse.now_ns = 0
            else:
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PULSE_S):
                        await self._news.wait()
                continue
            told = message.taken
            async with asyncio.timeout(SILENCE_S):
                await call.write(message)
        last = edge_pb2.FromEdge(taken=self.ledger.taken, pulse=edge_pb2.Pulse())
        async with asyncio.timeout(SILENCE_S):
            await call.write(last)
        await call.done_writing()

    async def _hear(self, call: Any) -> None:
        while True:
            message = await self._read(call)
            if message is None:
                if self._owner.finished:
                    return
                raise ChannelError("the core ended the link")
            self.ledger.heard(message.accepted, message.limit)
            said = message.WhichOneof("said")
            if said == "outcome":
                outcome = message.outcome
                final = outcome.kind != edge_pb2.Outcome.Kind.PART
                if self.ledger.settle(outcome.seq, final=final):
                    self._owner.settled(outcome)
                else:
                    self.counts.repeated += 1
            elif said == "verdicts":
                self._owner.verdicts(message.verdicts)
            elif said == "pulse":
                pulse, now_ns = message.pulse, time.monotonic_ns()
                self.clock.heard(echo_ns=pulse.echo_ns, held_ns=pulse.held_ns, core_ns=pulse.now_ns, now_ns=now_ns)
            self.wake()

    async def _read(self, call: Any) -> edge_pb2.FromCore | None:
        """The next message; None where the core has ended the call in peace."""
        async with asyncio.timeout(SILENCE_S):
            message = await call.read()
        return None if message is END_OF_STREAM else message
