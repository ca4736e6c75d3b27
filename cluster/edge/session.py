"""`Session`: one edge's standing question at the core. It outlives connections.

    link -> offer(batch) -> parts -> windows waiting -> [unpack -> pipeline] x concurrency -> outcomes -> link
            checksum, order          bounded by the ledger: the edge may not send beyond its limit
    link -> drafts -> `session_drafts.py`, where the edge drafts for its windows

Where the edge wants the newest, at most `fresh` windows wait and older ones are settled as dropped. Outcomes leave in
the order of the batches, and are kept until the edge says that it has them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.api.request import MAX_QUESTION_CHARACTERS
from cascade_runtime.config import SamplingParams
from cascade_runtime.edge.cut import MAX_WINDOW_BYTES, VERSION, Seeing
from cascade_runtime.edge.ledger import CoreLedger
from cascade_runtime.edge.packing import checksum
from cascade_runtime.edge.unpacking import Unpacker, read_part
from cascade_runtime.errors import CascadeError, ChannelError, InputError, StageError
from cascade_runtime.proto import edge_pb2
from cascade_runtime.transports import Transport
from cluster.edge.counters import EdgeMetrics
from cluster.edge.exchange import DraftExchange
from cluster.edge.latency import core_ms
from cluster.edge.session_drafts import DraftCounts, SessionDrafts

Kind = edge_pb2.Outcome.Kind


@dataclass(frozen=True, kw_only=True)
class SessionLimits:
    """depth: batches that an edge may be ahead of the outcomes it has taken. concurrency: windows in the pipeline at a
    time. fresh: windows that wait for it where the newest are wanted. answer_s: of one window, None: the recipe's.
    """

    depth: int = 256
    concurrency: int = 2
    fresh: int = 2
    answer_s: float | None = None


@dataclass(eq=False)
class _Waiting:
    """A whole window that waits for the pipeline."""

    seq: int
    parts: list[edge_pb2.WindowPart]
    received_ns: int


@dataclass(eq=False)
class _Tally:
    """Counts of one session."""

    answered: int = 0
    failed: int = 0
    dropped: int = 0
    refused: int = 0
    connections: int = 0
    payload_bytes: int = 0
    ingest: edge_pb2.Ingest = field(default_factory=edge_pb2.Ingest)
    latency_ms: dict[str, float] = field(default_factory=dict)


class Session:
    """Begun by a first hello. Raises `InputError` or `ConfigError` for one that cannot be meant."""

    def __init__(
        self,
        hello: edge_pb2.Hello,
        owner: str,
        seeing: Seeing,
        transport: Transport,
        limits: SessionLimits,
        metrics: EdgeMetrics,
        exchange: DraftExchange | None,
    ) -> None:
        self.hello, self.owner, self.limits = hello, owner, limits
        self.sampling = _sampling(hello)
        self.tally = _Tally()
        self.ledger: CoreLedger[edge_pb2.Outcome] = CoreLedger(hello.first, limits.depth)
        self.listener: Callable[[], None] | None = None  # the connection there is, to be told of news
        self.left_at = time.monotonic()  # when the last one ended
        self._transport, self._metrics = transport, metrics
        self._unpacker = Unpacker(seeing, hello.cut, hello.width, hello.height)
        self.drafts = SessionDrafts(exchange) if exchange is not None and hello.cut == "drafts" else None
        self._parts: list[edge_pb2.WindowPart] = []
        self._partial_bytes = 0
        self._waiting: deque[_Waiting] = deque()
        self._more = asyncio.Event()
        self._unpacking = asyncio.Lock()
        self._workers = [asyncio.create_task(self._work()) for _ in range(limits.concurrency)]

    @property
    def name(self) -> str:
        """For people: not enough to speak for it."""
        return self.hello.session[:8].hex()

    @property
    def finished(self) -> bool:
        """Whether the edge has every outcome there will be."""
        return self.ledger.taken == self.ledger.accepted

    def same(self, hello: edge_pb2.Hello, owner: str) -> bool:
        """Whether a hello goes on with this session, and does not ask something else."""
        mine, theirs = edge_pb2.Hello(), edge_pb2.Hello()
        mine.CopyFrom(self.hello)
        theirs.CopyFrom(hello)
        mine.first = theirs.first = 0
        return owner == self.owner and mine == theirs

    def offer(self, batch: edge_pb2.Batch) -> None:
        """A batch has come. Raises `ChannelError` where the link must begin again, `InputError` where it must not.

        In one piece: a connection that ends meanwhile must not leave a batch accepted and forgotten.
        """
        if batch.crc32 != checksum(batch.seq, batch.body):
            self.refused()
            raise ChannelError(f"batch {batch.seq}: its checksum is not {batch.crc32:#010x}")
        part = read_part(batch.body)
        try:
            if not self.ledger.offer(batch.seq):
                self._metrics.batches.labels("repeated").inc()
                return
        except ChannelError:
            self.refused()
            raise
        self._metrics.batches.labels("new").inc()
        self._metrics.payload_bytes.inc(len(part.payload))
        self.tally.payload_bytes += len(part.payload)
        self._partial_bytes += len(batch.body)
        if self._partial_bytes > MAX_WINDOW_BYTES + (1 << 20):
            raise InputError("window", f"{self._partial_bytes} bytes", f"at most {MAX_WINDOW_BYTES}")
        self._parts.append(part)
        if not part.last:
            self._settle(edge_pb2.Outcome(seq=batch.seq, kind=Kind.PART, number=part.number))
            return
        waiting = _Waiting(batch.seq, self._parts, time.monotonic_ns())
        self._parts, self._partial_bytes = [], 0
        self._metrics.ingested(self.tally.ingest, part.ingest)
        self.tally.ingest.CopyFrom(part.ingest)
        self._waiting.append(waiting)
        if self.drafts is not None and part.drafts:
            self.drafts.expect(part.number)
        while self.hello.newest and len(self._waiting) > self.limits.fresh:
            self._drop(self._waiting.popleft())
        self._more.set()

    def refused(self) -> None:
        """A batch that came to nothing."""
        self.tally.refused += 1
        self._metrics.batches.labels("refused").inc()

    def drafted(self, frame: bytes) -> None:
        """The edge has drafted. Raises `InputError` where it is not to."""
        if self.drafts is None:
            raise InputError("message", "drafts", 'none, unless the cut is "drafts"')
        refused = self.drafts.counts.refused
        self.drafts.hear(frame)
        self._metrics.draft_messages.labels("refused").inc(self.drafts.counts.refused - refused)
        self._metrics.draft_messages.labels("taken").inc(self.drafts.counts.refused == refused)

    async def close(self) -> None:
        """End what still runs; the outcomes are forgotten."""
        for worker in self._workers:
            worker.cancel()
        for worker in self._workers:
            with contextlib.suppress(asyncio.CancelledError):
                await worker
        if self.drafts is not None:
            self.drafts.close()

    def status(self) -> edge_pb2.SessionStatus:
        """What an operator may see."""
        tally, ledger = self.tally, self.ledger
        counts = DraftCounts() if self.drafts is None else self.drafts.counts
        return edge_pb2.SessionStatus(
            session=self.name,
            connected=self.listener is not None,
            cut=self.hello.cut,
            question=self.hello.question,
            accepted=ledger.accepted,
            taken=ledger.taken,
            waiting=len(self._waiting),
            answered=tally.answered,
            failed=tally.failed,
            dropped=tally.dropped,
            repeated_batches=ledger.repeated,
            refused_batches=tally.refused,
            connections=tally.connections,
            payload_bytes=tally.payload_bytes,
            ingest=tally.ingest,
            latency_ms=tally.latency_ms,
            drafted=counts.drafted,
            accepted_drafts=counts.accepted,
            draft_blocks=counts.blocks,
            refused_drafts=counts.refused,
        )

    def _drop(self, old: _Waiting) -> None:
        self.tally.dropped += 1
        outcome = edge_pb2.Outcome(kind=Kind.DROPPED, received_ns=old.received_ns)
        self._finish(old, outcome)

    async def _work(self) -> None:
        while True:
            await self._unpacking.acquire()  # windows are unpacked in their order
            while not self._waiting:
                self._more.clear()
                await self._more.wait()
            waiting = self._waiting.popleft()
            outcome = edge_pb2.Outcome(received_ns=waiting.received_ns)
            try:
                await self._answer(waiting, outcome)
                self.tally.answered += 1
            except CascadeError as error:
                self.tally.failed += 1
                outcome.kind, outcome.error, outcome.problem = Kind.FAILED, type(error).__name__, str(error)[:500]
            except Exception as error:  # noqa: BLE001  it belongs to this window; the next ones are answered
                self.tally.failed += 1
                outcome.kind, outcome.error, outcome.problem = Kind.FAILED, "StageError", type(error).__name__
            self._finish(waiting, outcome)

    async def _answer(self, waiting: _Waiting, outcome: edge_pb2.Outcome) -> None:
        """Fill in the outcome of one window. Called with `_unpacking` held, which it gives back."""
        try:
            recording = await asyncio.to_thread(self._unpacker.window, waiting.parts)
        finally:
            self._unpacking.release()
        outcome.checked_ns = time.monotonic_ns()
        request = GenerateRequest(
            events=recording,
            question=self.hello.question,
            sampling=self.sampling,
            request_id=f"edge-{self.name}-{waiting.seq}",
        )
        outcome.started_ns = time.monotonic_ns()
        if self.drafts is not None:
            self.drafts.begin(waiting.parts[-1].number, request.request_id, self._tell_news)
        running: Any = self._transport.run([request], self.limits.answer_s, False)
        async with contextlib.aclosing(running) as updates:
            async for _, update in updates:
                if isinstance(update, CascadeError):
                    raise update
                if isinstance(update, Answer):
                    outcome.kind = Kind.ANSWERED
                    after_first_ms = update.timings.total_ms - update.timings.ttft_ms
                    outcome.first_ns = time.monotonic_ns() - int(1e6 * max(0.0, after_first_ms))
                    outcome.answer.CopyFrom(_said(update))
                    if self.drafts is not None:
                        self._count_drafts(self.drafts.counts, update, outcome)
        if outcome.kind != Kind.ANSWERED:
            raise StageError("pipeline", request.request_id, "ended without an answer")

    def _count_drafts(self, counts: DraftCounts, answer: Answer, outcome: edge_pb2.Outcome) -> None:
        """What came of the edge's drafts."""
        first = "-".join(answer.levels[:2])
        outcome.drafted = sum(each.num_draft_tokens for each in answer.edges if each.edge == first)
        outcome.accepted = sum(mask & 1 for mask in answer.masks)
        counts.drafted += outcome.drafted
        counts.accepted += outcome.accepted
        self._metrics.draft_tokens.labels("drafted").inc(outcome.drafted)
        self._metrics.draft_tokens.labels("accepted").inc(outcome.accepted)

    def _tell_news(self) -> None:
        if self.listener is not None:
            self.listener()

    def _finish(self, waiting: _Waiting, outcome: edge_pb2.Outcome) -> None:
        last = waiting.parts[-1]
        if self.drafts is not None:
            self.drafts.end(last.number)
        outcome.seq, outcome.number, outcome.done_ns = waiting.seq, last.number, time.monotonic_ns()
        closed_ns = last.closed_ns + last.clock_ns
        told = {"packed": (last.packed_ns - last.closed_ns) / 1e6, **core_ms(outcome, closed_ns)}
        if outcome.kind == Kind.ANSWERED:
            self.tally.latency_ms = told
        self._metrics.settled(outcome, told)
        self._settle(outcome)

    def _settle(self, outcome: edge_pb2.Outcome) -> None:
        self.ledger.settle(outcome.seq, outcome)
        self._tell_news()


def _sampling(hello: edge_pb2.Hello) -> SamplingParams:
    """The hello's, once all of it was looked at."""
    if hello.version != VERSION:
        raise InputError("hello.version", hello.version, str(VERSION))
    if len(hello.session) != 16 or not 1 <= hello.first < 2**62:
        raise InputError("hello", (len(hello.session), hello.first), "a session of 16 bytes, a first number above 0")
    if not hello.question.strip() or len(hello.question) > MAX_QUESTION_CHARACTERS:
        raise InputError("question", f"{len(hello.question)} characters", f"1 to {MAX_QUESTION_CHARACTERS}")
    said = hello.sampling
    return SamplingParams(
        temperature=said.temperature,
        top_k=said.top_k,
        top_p=said.top_p,
        seed=said.seed,
        max_tokens=said.max_tokens,
        stop=tuple(said.stop),
    )


def _said(answer: Answer) -> edge_pb2.Said:
    return edge_pb2.Said(
        text=answer.text,
        token_ids=answer.token_ids,
        masks=bytes(answer.masks),
        levels=answer.levels,
        finish_reason=answer.finish_reason,
        mode=answer.mode,
        target_passes=answer.target_passes,
        notes=answer.notes,
    )
