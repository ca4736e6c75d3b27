"""`EdgeBox`: the edge's end. A camera's windows, or a recording's as a camera would give them; each ends in a `Reply`.

    listen  -> Ingest          a window has closed, whether or not there is a link
    replay  -> Ingest          the same of a recording, when the window's time has come
    pack    Ingest -> ledger   the next window, when it could be sent at once: what is never sent is never packed
    link    ledger <-> core    see `link.py`
    draft   packed windows     with the cut "drafts", see `drafter.py`

A cut loses nothing as long as what comes meanwhile fits `waiting` windows; beyond that `keep` says what is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.config.checks import integer, number
from cascade_runtime.edge.cut import CHUNK_BYTES, CUTS, MAX_WINDOW_EVENTS, VERSION, Seeing
from cascade_runtime.edge.ingest import MAX_JOINED_US, Ingest, Window, windows_of
from cascade_runtime.edge.packing import FramePacker, Packer, RawPacker, bodies_of
from cascade_runtime.errors import ChannelError, ConfigError
from cascade_runtime.events import Events
from cascade_runtime.proto import edge_pb2
from cluster.edge.doors import EdgeDoor
from cluster.edge.latency import core_ms
from cluster.edge.link import EdgeLink
from cluster.edge.sensor import Sensor

if TYPE_CHECKING:
    from cluster.edge.drafter import EdgeDrafter

Kind = edge_pb2.Outcome.Kind


@dataclass(frozen=True, kw_only=True)
class EdgeSettings:
    """What an edge asks and how. Raises `ConfigError`.

    cut: see `edge/cut.py`; "features" and "drafts" need the recipe here too. window_us: of the sensor's time. speed: of
    the replay, 1 is as it was recorded, inf as quickly as windows are taken. keep, waiting, max_events: see `Ingest`.
    ahead: windows that may be without an outcome. give_up_s: without any link. chunk_bytes: of a payload in one
    message.
    """

    question: str
    cut: str = "raw"
    sampling: SamplingParams = field(default_factory=SamplingParams)
    window_us: int = 50_000
    speed: float = 1.0
    keep: str = "newest"
    waiting: int = 64
    max_events: int = MAX_WINDOW_EVENTS
    ahead: int = 16
    give_up_s: float = 60.0
    chunk_bytes: int = CHUNK_BYTES
    recipe: Recipe | None = None

    def __post_init__(self) -> None:
        if self.cut not in CUTS:
            raise ConfigError("cut", self.cut, ", ".join(CUTS))
        if self.cut in ("features", "drafts") and self.recipe is None:
            raise ConfigError("cut", self.cut, "with the recipe whose encoder and adapter run here")
        if self.cut == "drafts" and self.recipe is not None and self.recipe.stages[0].drafter != "edge":
            allowed = f'with a recipe whose lightest level has drafter = "edge"; {self.recipe.name} is none'
            raise ConfigError("cut", self.cut, allowed)
        integer(ConfigError, "window_us", self.window_us, 1, MAX_JOINED_US)
        integer(ConfigError, "max_events", self.max_events, 1, MAX_WINDOW_EVENTS)
        integer(ConfigError, "ahead", self.ahead, 1, 1024)
        integer(ConfigError, "chunk_bytes", self.chunk_bytes, 1024, CHUNK_BYTES)
        number(ConfigError, "give_up_s", self.give_up_s, 0.0, 86_400.0)
        if not self.speed > 0:
            raise ConfigError("speed", self.speed, "above 0; inf: as quickly as windows are taken")

    def check_sensor(self) -> None:
        """Raise `ConfigError` where a source would have to wait."""
        if self.keep == "all" or self.speed != 1.0:
            raise ConfigError("keep, speed", (self.keep, self.speed), "newest or join, 1: a sensor cannot wait")


@dataclass(frozen=True)
class Reply:
    """What became of one window: `outcome`, and per stage when it was done, in ms since the sensor closed the window
    (see `latency.py`). payload_bytes: that crossed for it.
    """

    begin_us: int
    end_us: int
    outcome: edge_pb2.Outcome
    latency_ms: dict[str, float]
    payload_bytes: int


@dataclass(eq=False)
class _Sent:
    """A window that has no outcome yet."""

    window: Window
    packed_ns: int
    payload_bytes: int
    sent_ns: int = 0


class EdgeBox:
    """One source, one question, one session. A recording can wait, where `keep` is "all", and for the first link; a
    sensor can not.
    """

    def __init__(self, settings: EdgeSettings, door: EdgeDoor, source: Events | Sensor) -> None:
        if isinstance(source, Sensor):
            settings.check_sensor()
        self.settings, self.source = settings, source
        self.ingest = Ingest(settings.keep, settings.waiting, settings.max_events)
        self.link = EdgeLink(door, self._hello(), self)
        self.drafter: EdgeDrafter | None = None
        self._models: Any = None
        self._packer: Packer | None = None
        self._sent: dict[int, _Sent] = {}  # by the number of the window's last batch
        self._welcomed, self._news = asyncio.Event(), asyncio.Event()
        self._replayed = self._packing = False
        self._over = threading.Event()
        self._report: Callable[[Reply], None] = lambda reply: None

    async def run(self, report: Callable[[Reply], None]) -> None:
        """Until every window that was kept has its outcome. Raises what `EdgeLink.run` raises, and `ConfigError` or
        `FeatureSpaceError` for a cut that the core does not take.
        """
        self._report = report
        source = self.source
        sensing = self._listen(source) if isinstance(source, Sensor) else self._replay(source)
        work = [asyncio.create_task(each) for each in (sensing, self._pack())]
        try:
            self._models = await asyncio.to_thread(self._load_models)
            linked = asyncio.create_task(self.link.run(self.settings.give_up_s))
            work.append(linked)
            waiting = set(work)
            while not linked.done():
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            self._over.set()
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            if self.drafter is not None:
                await asyncio.to_thread(self.drafter.close)

    # -- what the link asks ------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether every window that was kept has its outcome."""
        return self._replayed and not self._packing and not len(self.ingest) and not self.link.ledger.unsettled

    async def welcomed(self, welcome: edge_pb2.Welcome) -> None:
        """Learn from the first welcome how windows are packed."""
        if self._packer is None:
            seeing = Seeing.of(welcome)
            seeing.check_cut(self.settings.cut)
            self._packer = self._make_packer(seeing)
        if self.drafter is not None:
            self.drafter.blocks.again()
        self._welcomed.set()
        self._news.set()

    def sent(self, seq: int) -> None:
        """Note when a window's last batch first left."""
        sent = self._sent.get(seq)
        if sent is not None and not sent.sent_ns:
            sent.sent_ns = time.monotonic_ns()
        self._news.set()

    def drafts(self) -> bytes:
        """What was drafted and not told."""
        return b"" if self.drafter is None else self.drafter.due(self.link.ledger.sent)

    def verdicts(self, frame: bytes) -> None:
        """For the drafter. Raises `ChannelError` where there is none."""
        if self.drafter is None:
            raise ChannelError(f"the core says verdicts on drafts to an edge of cut {self.settings.cut}")
        self.drafter.hear(frame)

    def settled(self, outcome: edge_pb2.Outcome) -> None:
        """Report a window's outcome; that a part has come is no news to anybody."""
        self._news.set()
        if outcome.kind == Kind.PART:
            return
        sent = self._sent.pop(outcome.seq)
        closed_ns = sent.window.closed_ns
        stamps = {"packed": sent.packed_ns, "sent": sent.sent_ns}
        latency_ms = {stage: (stamp - closed_ns) / 1e6 for stage, stamp in stamps.items()}
        latency_ms |= core_ms(outcome, closed_ns + self.link.clock.offset_ns)
        latency_ms["arrived"] = (time.monotonic_ns() - closed_ns) / 1e6
        window = sent.window
        if self.drafter is not None:
            self.drafter.release(window.number)
        self._report(Reply(window.begin_us, window.end_us, outcome, latency_ms, sent.payload_bytes))

    # -- the sensor --------------------------------------------------------------------------------------------------

    async def _listen(self, sensor: Sensor) -> None:
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()
        dropped = 0

        async def offer(window: Window) -> None:
            nonlocal dropped
            self.ingest.offer(window)
            self.ingest.counts.events_dropped += sensor.events_dropped - dropped
            dropped = sensor.events_dropped
            self._news.set()

        def take() -> None:
            error: Exception | None = None
            try:
                for window in sensor.windows:
                    if self._over.is_set():
                        return
                    asyncio.run_coroutine_threadsafe(offer(window), loop).result()
            except Exception as failed:  # noqa: BLE001  whoever waits is told
                error = failed
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(_end, over, error)

        threading.Thread(target=take, name="sensor", daemon=True).start()  # may be blocked in a pipe for ever
        await over
        self._replayed = True
        self.link.wake()

    async def _replay(self, events: Events) -> None:
        await self._welcomed.wait()  # a recording can wait for the first link; a sensor could not
        start_ns, paced = time.monotonic_ns(), math.isfinite(self.settings.speed)
        begin_us: int | None = None
        for window in windows_of(events, self.settings.window_us):
            begin_us = window.begin_us if begin_us is None else begin_us
            closed_ns = time.monotonic_ns()
            if paced:
                closed_ns = start_ns + int(1000 * (window.end_us - begin_us) / self.settings.speed)
                await asyncio.sleep(max(0.0, (closed_ns - time.monotonic_ns()) / 1e9))
            closed = replace(window, closed_ns=closed_ns)
            while not self.ingest.offer(closed):
                await self._hear_news()
                closed = closed if paced else replace(window, closed_ns=time.monotonic_ns())
            self._news.set()
        self._replayed = True
        self.link.wake()

    async def _pack(self) -> None:
        await self._welcomed.wait()
        assert self._packer is not None
        ledger = self.link.ledger
        while True:
            ready = ledger.wants_more and ledger.unsettled < self.settings.ahead
            window = self.ingest.next() if ready else None
            if window is None:
                await self._hear_news()
                continue
            self._packing = True
            self._news.set()
            whole = await asyncio.to_thread(self._packer.pack, window)
            whole.clock_ns = self.link.clock.offset_ns
            whole.ingest.CopyFrom(self.ingest.counts)
            sent = _Sent(replace(window, events=window.events.slice(0, 0)), whole.packed_ns, len(whole.payload))
            last = ledger.add(bodies_of(whole, self.settings.chunk_bytes))
            self._sent[last] = sent
            if self.drafter is not None:
                self.drafter.numbered(window.number, last)
            self._packing = False
            self.link.wake()

    async def _hear_news(self) -> None:
        self._news.clear()
        await self._news.wait()

    # -- what the core is told ---------------------------------------------------------------------------------------

    def _hello(self) -> edge_pb2.Hello:
        sampling, settings = self.settings.sampling, self.settings
        return edge_pb2.Hello(
            version=VERSION,
            session=secrets.token_bytes(16),
            cut=settings.cut,
            question=settings.question,
            newest=settings.keep == "newest",
            width=self.source.width,
            height=self.source.height,
            sampling=edge_pb2.Sampling(
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                seed=sampling.seed,
                max_tokens=sampling.max_tokens,
                stop=sampling.stop,
            ),
        )

    def _load_models(self) -> Any:
        """What the cut needs, before the link is there: a peer that loads for seconds is taken for dead."""
        recipe = self.settings.recipe
        if self.settings.cut not in ("features", "drafts"):
            return None
        from cascade_runtime.edge.feature_packing import FeatureModels

        assert recipe is not None
        models = FeatureModels.load(recipe)
        if self.settings.cut == "drafts":
            from cluster.edge.drafter import EdgeDrafter

            self.drafter = EdgeDrafter(recipe)
        return models

    def _make_packer(self, seeing: Seeing) -> Packer:
        if self.settings.cut == "raw":
            return RawPacker()
        if self.settings.cut == "frames":
            return FramePacker(seeing)
        from cascade_runtime.edge.feature_packing import FeaturePacker

        packer, drafter = FeaturePacker(self._models, seeing), self.drafter
        if drafter is None:
            return packer
        from cluster.edge.drafter import DraftingPacker

        drafter.facts.check(seeing.drafter)
        loop = asyncio.get_running_loop()
        drafter.wake = lambda: _wake(loop, self.link)
        return DraftingPacker(packer, drafter, self.settings.question, self.settings.sampling)


def _end(over: asyncio.Future[None], error: Exception | None) -> None:
    if not over.done():
        over.set_result(None) if error is None else over.set_exception(error)


def _wake(loop: asyncio.AbstractEventLoop, link: EdgeLink) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
        loop.call_soon_threadsafe(link.wake)
