"""`EdgeCore`: the gRPC server that edges speak to.

    call -> token? -> hello -> a session, new or gone on with -> two loops until the link breaks:
        hear   batches into the session; silence of `SILENCE_S` ends the call
        tell   outcomes in order, figures with each; a pulse at least every `PULSE_S`
    drafts and verdicts, where the edge drafts: `exchange.py`

A refused batch ends the call with DATA_LOSS, and the edge goes on from what was accepted; what can never be meant ends
it with INVALID_ARGUMENT. A session without a connection is forgotten after `grace_s`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any, NoReturn

import grpc

from actors.handles import StageHandle
from cascade_runtime.edge.cut import Seeing
from cascade_runtime.errors import CapacityError, CascadeError, ChannelError, InputError
from cascade_runtime.proto import edge_pb2, edge_pb2_grpc
from cascade_runtime.transports import Transport
from cluster.edge.counters import EdgeMetrics
from cluster.edge.doors import END_OF_STREAM, OPTIONS, CoreDoor
from cluster.edge.exchange import DraftExchange
from cluster.edge.session import Session, SessionLimits
from cluster.serving.api_keys import ANYBODY

PULSE_S = 1.0
SILENCE_S = 5.0
MAX_SESSIONS, MAX_OF_TOKEN = 64, 16
_STOP_S = 2.0


class EdgeCore(edge_pb2_grpc.EdgeLinkServicer):
    """Sessions of one pipeline. Used within one event loop. relay: its `EdgeRelay`, where edges may draft."""

    def __init__(
        self,
        seeing: Seeing,
        transport: Transport,
        door: CoreDoor,
        limits: SessionLimits,
        *,
        grace_s: float = 120.0,
        relay: StageHandle | None = None,
    ) -> None:
        assert relay is not None or "drafts" not in seeing.cuts
        self._exchange = None if relay is None else DraftExchange(relay)
        self.metrics = EdgeMetrics()
        self._seeing, self._transport, self._door, self._limits = seeing, transport, door, limits
        self._grace_s = grace_s
        self._sessions: dict[bytes, Session] = {}

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncGenerator[int]:
        """Serve inside; gives the port."""
        server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=2 * MAX_SESSIONS)
        edge_pb2_grpc.add_EdgeLinkServicer_to_server(self, server)
        port = self._door.open(server)
        await server.start()
        sweeper = asyncio.create_task(self._sweep())
        try:
            async with contextlib.nullcontext() if self._exchange is None else self._exchange.running():
                yield port
        finally:
            sweeper.cancel()
            await server.stop(_STOP_S)
            for session in self._sessions.values():
                await session.close()
            self._sessions.clear()

    async def Link(self, request_iterator: Any, context: Any) -> None:
        """One connection of an edge."""
        owner = await self._let_in(context)
        try:
            session, resumed = await self._greet(context, owner)
        except CapacityError as error:
            await _end(context, grpc.StatusCode.RESOURCE_EXHAUSTED, error)
        except CascadeError as error:
            await _end(context, grpc.StatusCode.INVALID_ARGUMENT, error)
        except (TimeoutError, EOFError):
            await _end(context, grpc.StatusCode.DEADLINE_EXCEEDED, "no hello")
        link = _Connection(session, context)
        session.listener = link.news.set  # a connection that still has it loses it: its link was cut
        session.tally.connections += 1
        self.metrics.connections.inc()
        welcome = self._seeing.welcome(resumed=resumed)
        try:
            await link.run(welcome)
        except ChannelError as error:
            await _end(context, grpc.StatusCode.DATA_LOSS, error)
        except InputError as error:
            await _end(context, grpc.StatusCode.INVALID_ARGUMENT, error)
        except TimeoutError:
            await _end(context, grpc.StatusCode.DEADLINE_EXCEEDED, f"nothing was heard for {SILENCE_S} s")
        finally:
            if session.listener == link.news.set:
                session.listener, session.left_at = None, time.monotonic()
        if link.said_all and session.finished:
            await self._forget(session)

    async def Status(self, request: edge_pb2.StatusRequest, context: Any) -> edge_pb2.StatusReply:
        """Every session of whoever asks."""
        owner = await self._let_in(context)
        mine = [session.status() for session in self._sessions.values() if session.owner == owner]
        return edge_pb2.StatusReply(sessions=mine)

    async def _let_in(self, context: Any) -> str:
        owner = self._door.caller(context.invocation_metadata())
        if owner is None:
            await _end(context, grpc.StatusCode.UNAUTHENTICATED, "a token is needed, and this is none")
        return owner

    async def _greet(self, context: Any, owner: str) -> tuple[Session, bool]:
        """The session of a hello, and whether it goes on."""
        async with asyncio.timeout(SILENCE_S):
            first = await context.read()
        if first is END_OF_STREAM:
            raise EOFError
        if first.WhichOneof("said") != "hello":
            raise InputError("first message", first.WhichOneof("said"), "a hello")
        hello = first.hello
        session = self._sessions.get(hello.session)
        if session is not None:
            if not session.same(hello, owner):
                raise InputError("hello", "another question or owner", "what the session began with")
            return session, True
        if len(self._sessions) >= MAX_SESSIONS:
            raise CapacityError(f"{MAX_SESSIONS} sessions are remembered")
        if owner != ANYBODY and sum(each.owner == owner for each in self._sessions.values()) >= MAX_OF_TOKEN:
            raise CapacityError(f"{MAX_OF_TOKEN} sessions of this token are remembered")
        session = Session(hello, owner, self._seeing, self._transport, self._limits, self.metrics, self._exchange)
        self._sessions[hello.session] = session
        self.metrics.sessions.set(len(self._sessions))
        return session, False

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._grace_s))
            now = time.monotonic()
            for session in list(self._sessions.values()):
                if session.listener is None and now - session.left_at > self._grace_s:
                    await self._forget(session)

    async def _forget(self, session: Session) -> None:
        if self._sessions.pop(session.hello.session, None) is not None:
            self.metrics.sessions.set(len(self._sessions))
            await session.close()


class _Connection:
    """One link of a session, until it breaks or another one takes its place."""

    def __init__(self, session: Session, context: Any) -> None:
        self.session, self.context = session, context
        self.news = asyncio.Event()
        self.said_all = False  # the edge has ended its side
        self._echo_ns = self._heard_ns = 0  # its last pulse, and when it came

    async def run(self, welcome: edge_pb2.Welcome) -> None:
        """Raises what ends the call, or returns when it has ended in peace."""
        await self._say(edge_pb2.FromCore(welcome=welcome))
        if self.session.drafts is not None:
            self.session.drafts.verdicts.again()
        loops = [asyncio.create_task(self._hear()), asyncio.create_task(self._tell())]
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            for loop in done:
                loop.result()
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    @property
    def _mine(self) -> bool:
        return self.session.listener == self.news.set

    async def _hear(self) -> None:
        while True:
            async with asyncio.timeout(SILENCE_S):
                message = await self.context.read()
            if message is END_OF_STREAM:
                self.said_all = True
                return
            if not self._mine:
                raise ChannelError("the session goes on over another connection")
            ledger = self.session.ledger
            if ledger.acknowledge(message.taken):
                self.news.set()
            said = message.WhichOneof("said")
            if said == "batch":
                self.session.offer(message.batch)
                self.news.set()
            elif said == "pulse":
                self._echo_ns, self._heard_ns = message.pulse.now_ns, time.monotonic_ns()
                self.news.set()
            elif said == "drafts":
                self.session.drafted(message.drafts)
            else:
                raise InputError("message", said, "a batch, drafts or a pulse after the hello")

    async def _tell(self) -> None:
        ledger, told = self.session.ledger, self.session.ledger.taken
        said = (ledger.accepted, ledger.limit)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PULSE_S):
                    await self.news.wait()
            pulse_due = not self.news.is_set() or self._echo_ns != 0
            self.news.clear()
            if not self._mine:
                raise ChannelError("the session goes on over another connection")
            if self.session.drafts is not None:
                while frame := self.session.drafts.verdicts.due():
                    await self._say(edge_pb2.FromCore(verdicts=frame))
            told = max(told, ledger.taken)  # what came over an earlier connection
            while (outcome := ledger.due(told)) is not None:
                await self._say(edge_pb2.FromCore(outcome=outcome))
                told, said = outcome.seq, (ledger.accepted, ledger.limit)
            if pulse_due or said != (ledger.accepted, ledger.limit):
                said = (ledger.accepted, ledger.limit)
                await self._say(edge_pb2.FromCore(pulse=self._pulse()))

    def _pulse(self) -> edge_pb2.Pulse:
        now_ns = time.monotonic_ns()
        echo_ns, self._echo_ns = self._echo_ns, 0
        return edge_pb2.Pulse(now_ns=now_ns, echo_ns=echo_ns, held_ns=now_ns - self._heard_ns if echo_ns else 0)

    async def _say(self, message: edge_pb2.FromCore) -> None:
        message.accepted, message.limit = self.session.ledger.accepted, self.session.ledger.limit
        async with asyncio.timeout(SILENCE_S):
            await self.context.write(message)


async def _end(context: Any, code: grpc.StatusCode, why: object) -> NoReturn:
    await context.abort(code, str(why)[:500])
    raise AssertionError("abort raises")
