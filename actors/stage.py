"""`LanguageStage`: the loop around `extend` that every language level runs, light, mid or heavy.

           control calls (any thread)                      answers (target only)
                    |  commands                                   ^
                    v                                             |
    upstream  --DraftBlock-->  [ take messages -> batch ready rows -> extend -> settle ]  --DraftBlock-->  downstream
              <--Verdict----                                                              <--Verdict----

    consumes    draft blocks from upstream, verdicts from downstream, commands from the controller
    produces    draft blocks downstream, verdicts upstream, and at the target the answer
    waits for   any of them, or the next row's deadline: never longer
    unblocked by a message, a command, a closed link, the deadline

One thread owns the decoder, the rows and both links; control calls only leave commands and wait for their outcome,
with a deadline. Nothing in here knows Ray.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import torch

from actors.host import host
from actors.rows import ActiveRow
from cascade_runtime.channels import Channel, ChannelSpec, Listener, connect, listen, wait_any
from cascade_runtime.channels.local import pair
from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.decoding.choice import NOT_FINITE
from cascade_runtime.decoding.decoder import Extension
from cascade_runtime.decoding.level import Level
from cascade_runtime.errors import (
    CapacityError,
    ChannelClosed,
    ChannelError,
    DeadlineExceeded,
    StageError,
)
from cascade_runtime.messages import DraftBlock, Verdict, decode, encode
from cascade_runtime.metrics import EdgeCounters
from cascade_runtime.scheduling.standing import Standing, Work
from cascade_runtime.tracing import Trace, Tracer
from cascade_runtime.vision.features import VisualFeatures

log = logging.getLogger(__name__)

_COMMANDS = 256  # control calls waiting at once
_EARLY = 64  # draft blocks kept for requests that are not admitted yet
_REPORTS = 1024  # edge reports of ended requests that nobody has collected
_MESSAGES = 256  # messages taken from one link before the rows get their turn
_REPEAT_S = 0.25  # a stage that can do nothing says again what it stands by, in case it was lost
_IDLE_S = 0.5


class LanguageStage:
    """One language level as a running stage. `index` counts from the lightest; the last one is the target."""

    def __init__(self, recipe: Recipe, index: int) -> None:
        self.config = recipe.stages[index]
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        self.recipe, self.index = recipe, index
        self.name = self.config.name
        self.is_target = index == len(recipe.stages) - 1
        self.level = Level.load(self.config, recipe.cascade)
        gammas = recipe.cascade.num_draft_tokens
        self.need = gammas[index - 1] if index else 0  # drafts a row waits for before a pass
        self.block = 1 if self.is_target else gammas[index]  # tokens sent downstream at once
        self.tracer = Tracer(self.name)
        self.totals = EdgeCounters(f"{recipe.stages[index - 1].name}-{self.name}" if index else self.name)
        self.rows: dict[int, ActiveRow] = {}
        self.refused = 0
        self._early: OrderedDict[int, DraftBlock] = OrderedDict()
        self._reports: OrderedDict[int, EdgeCounters] = OrderedDict()
        self._upstream: Channel | None = None
        self._downstream: Channel | None = None
        self._listener: Listener | None = None
        self._commands: queue.Queue[tuple[Callable[[], object], Future[object]]] = queue.Queue(_COMMANDS)
        self._bell, self._ear = pair(ChannelSpec(backend="local", link="wake", capacity=1))
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # -- control plane: called from other threads, idempotent, bounded in time --------------------------------------

    def info(self) -> dict[str, Any]:
        """Facts about the stage that the launcher checks and prints."""
        language = self.level.model.language
        return {
            "name": self.name,
            "tokenizer": self.level.tokenizer_tag(),
            "ends": self.level.ends,
            "host": host(),
            "weight_bytes": language.weight_bytes,
            "kv_bytes": self.level.decoder.cache.nbytes,
            "device": str(language.device),
            "threads": torch.get_num_threads(),
        }

    def listen(self, spec: ChannelSpec) -> ChannelSpec:
        """Open the link to the next stage and return where it can be reached."""
        self._listener = listen(spec)
        return self._listener.spec

    def link(self, upstream: ChannelSpec | None, timeout_s: float) -> None:
        """Connect to the previous stage, accept the next one, start the loop. Raises `ChannelError` or
        `DeadlineExceeded`.
        """
        if self._thread is not None:
            return
        if upstream is not None:
            self._upstream = connect(upstream, timeout_s)
        if self._listener is not None:
            self._downstream = self._listener.accept(timeout_s)
        self._thread = threading.Thread(target=self._run, name=f"stage-{self.name}", daemon=True)
        self._thread.start()

    def admit(
        self,
        handle: int,
        request_id: str,
        question: str,
        features: VisualFeatures,
        sampling: SamplingParams,
        expect_drafts: bool = True,
    ) -> None:
        """Take a request in. A second call with the same handle replaces the features it was given.

        Without `expect_drafts` the row decodes alone and waits for nobody.
        Raises what is wrong with the request (`PromptTooLong`, `FeatureSpaceError`) or `CapacityError`.
        """
        self._command(lambda: self._admit(handle, request_id, question, features, sampling, expect_drafts))

    def release(self, handle: int) -> EdgeCounters | None:
        """Forget a request, finished or not; its slot is free when this returns. Says what its edge did for it."""
        self._command(lambda: self._forget(handle))
        return self._reports.pop(handle, None)

    def stats(self) -> dict[str, Any]:
        """Counters since the start, as plain data."""
        decoder = self.level.decoder
        return {
            "name": self.name,
            "passes": decoder.passes,
            "tokens_fed": decoder.tokens_fed,
            "active_rows": len(self.rows),
            "free_slots": decoder.free_slots,
            "slots": decoder.cache.slots,
            "early_blocks": len(self._early),
            "refused_messages": self.refused,
            "edge": self.totals.to_dict(),
            "upstream_alive": self._upstream is not None,
            "downstream_alive": self._downstream is not None,
        }

    def trace(self) -> Trace:
        """The recorded spans."""
        return self.tracer.snapshot()

    def stop(self) -> None:
        """End the loop and close both links. Requests still inside fail at whoever waits for them."""
        self._stopping.set()
        self._ring()
        if self._thread is not None:
            self._thread.join(self.recipe.deadlines.control_s)
        for closable in (self._listener, self._upstream, self._downstream, self._bell, self._ear):
            if closable is not None:
                closable.close()

    def _command(self, action: Callable[[], object]) -> object:
        outcome: Future[object] = Future()
        if self._thread is None or self._stopping.is_set():
            raise StageError(self.name, "-", "the stage is not running")
        try:
            self._commands.put_nowait((action, outcome))
        except queue.Full:
            raise CapacityError(f"stage {self.name}: {_COMMANDS} control calls are waiting") from None
        self._ring()
        try:
            return outcome.result(self.recipe.deadlines.control_s)
        except FutureTimeout:
            outcome.cancel()
            raise DeadlineExceeded(f"stage {self.name}: no answer in {self.recipe.deadlines.control_s} s") from None

    def _ring(self) -> None:
        with contextlib.suppress(DeadlineExceeded, CapacityError, ChannelError):
            self._bell.send(b"!", 0.0)  # it may be ringing already, or the loop may be gone

    # -- the loop -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._obey()
            self._take(self._upstream, self._on_drafts)
            self._take(self._downstream, self._on_verdict)
            now = time.monotonic()
            batch = [one for one in self.rows.values() if self._ready(one, now)]
            if batch:
                self._pass(batch)
            for one in list(self.rows.values()):
                self._publish(one)
            if not batch:
                self._wait()
        self._fail_commands()

    def _ready(self, one: ActiveRow, now: float) -> bool:
        return one.ready(self.need, self.recipe.deadlines.upstream_s, self._upstream is not None, now)

    def _wait(self) -> None:
        """Sleep until a message, a command or the earliest deadline."""
        now, wake = time.monotonic(), time.monotonic() + _IDLE_S
        for one in self.rows.values():
            if one.standing.blocked:
                wake = min(wake, one.heard + _REPEAT_S)
            else:
                wake = min(wake, one.due(self.recipe.deadlines.upstream_s))
        links = [link for link in (self._ear, self._upstream, self._downstream) if link is not None]
        wait_any(links, max(0.0, wake - now))
        self._drain_bell()

    def _drain_bell(self) -> None:
        while self._ear.recv(0.0) is not None:
            pass

    def _obey(self) -> None:
        while True:
            try:
                action, outcome = self._commands.get_nowait()
            except queue.Empty:
                return
            if not outcome.set_running_or_notify_cancel():
                continue
            try:
                outcome.set_result(action())
            except Exception as error:  # noqa: BLE001  it belongs to the caller
                outcome.set_exception(error)

    def _fail_commands(self) -> None:
        while not self._commands.empty():
            _, outcome = self._commands.get_nowait()
            outcome.set_exception(StageError(self.name, "-", "the stage was stopped"))

    def _take(self, link: Channel | None, on_message: Callable[[Any], None]) -> None:
        if link is None:
            return
        try:
            for _ in range(_MESSAGES):
                frame = link.recv(0.0)
                if frame is None:
                    return
                try:
                    on_message(decode(frame))
                except ChannelError:
                    self.refused += 1
        except ChannelClosed:
            self._lost(link)

    def _lost(self, link: Channel) -> None:
        """A neighbour is gone: go on without it."""
        log.warning("stage %s: a neighbour closed its link", self.name)
        link.close()
        if link is self._upstream:
            self._upstream = None
        else:
            self._downstream = None

    def _on_drafts(self, message: DraftBlock | Verdict) -> None:
        if not isinstance(message, DraftBlock):
            self.refused += 1
            return
        one = self.rows.get(message.request)
        if one is None:
            self._early[message.request] = message
            while len(self._early) > _EARLY:
                self._early.popitem(last=False)
        elif one.standing.on_drafts(message):
            one.since, one.missed = time.monotonic(), 0

    def _on_verdict(self, message: DraftBlock | Verdict) -> None:
        if not isinstance(message, Verdict):
            self.refused += 1
            return
        one = self.rows.get(message.request)
        if one is None:
            return
        one.standing.on_verdict(message)
        one.heard = time.monotonic()
        if one.standing.finished:
            self._publish(one)
            self._forget(one.handle)

    def _pass(self, batch: list[ActiveRow]) -> None:
        """One `extend` over all ready rows, then each row's settlement."""
        works = [one.standing.work(self.need) for one in batch]
        start = time.monotonic_ns()
        try:
            extensions = [Extension(one.row, work.prefix, work.drafts) for one, work in zip(batch, works, strict=True)]
            choices = self.level.decoder.extend(extensions)
        except Exception as error:
            log.exception("stage %s: a pass over %d rows failed", self.name, len(batch))
            for one in batch:
                self._fail(one, f"{type(error).__name__}: {error}")
            return
        end = time.monotonic_ns()
        what = "draft" if not self.index else "verify"
        for one, work, chosen in zip(batch, works, choices, strict=True):
            name = what if one.passes else "prefill"
            self.tracer.record(name, start, end, one.handle, drafts=len(work.drafts), rows=len(batch))
            if NOT_FINITE in chosen:
                self._fail(one, "the model's logits are not finite")
            else:
                self._settle(one, work, chosen)

    def _settle(self, one: ActiveRow, work: Work, chosen: list[int]) -> None:
        settled = one.standing.settle(work, chosen)
        assert settled is not None  # messages are taken between passes only
        for counters in (one.edge, self.totals) if self.index else ():
            counters.observe(settled.drafted, settled.accepted, len(settled.added) - settled.accepted)
        one.ran(settled.drafted, self.need, time.monotonic())

    def _publish(self, one: ActiveRow) -> None:
        """Say downstream and upstream what is news, and again what was said if nobody has reacted for a while."""
        standing, now = one.standing, time.monotonic()
        if self._downstream is not None and not standing.finished:
            block = standing.drafts(self.block)
            if block is None and standing.blocked and now - one.heard > _REPEAT_S:
                block, one.heard = standing.repeat_drafts(), now
            if block is not None:
                self._send(self._downstream, block)
        if self._upstream is not None:
            verdict = standing.verdict()
            if verdict is not None:
                self._send(self._upstream, verdict)

    def _send(self, link: Channel, message: DraftBlock | Verdict) -> None:
        try:
            link.send(encode(message), 0.0)
        except (DeadlineExceeded, CapacityError):
            self.refused += 1  # the next message says it again: blocks and verdicts are cumulative
        except ChannelClosed:
            self._lost(link)

    # -- rows -----------------------------------------------------------------------------------------------------

    def _admit(
        self,
        handle: int,
        request_id: str,
        question: str,
        features: VisualFeatures,
        sampling: SamplingParams,
        expect_drafts: bool,
    ) -> None:
        known = self.rows.get(handle)
        if known is not None:  # other features for a request that is running: the prefix stays, its KV is made anew
            self.level.decoder.release(known.row)
            known.row = self.level.admit(question, features, sampling)
            return
        row = self.level.admit(question, features, sampling)
        standing = Standing(
            request=handle,
            epoch=0,
            stage=self.index,
            limit=sampling.max_tokens,
            vocab_size=self.level.vocab_size,
            ends=frozenset() if sampling.ignore_eos else frozenset(self.level.ends),
            window=None if self.is_target else self.recipe.cascade.window,
        )
        one = ActiveRow(handle, request_id, row, standing, EdgeCounters(self.totals.edge), expect_drafts)
        self.rows[handle] = one
        early = self._early.pop(handle, None)
        if early is not None:
            standing.on_drafts(early)

    def _forget(self, handle: int) -> None:
        self._early.pop(handle, None)
        one = self.rows.pop(handle, None)
        if one is not None:
            self.level.decoder.release(one.row)
            if self.index:
                self._reports[handle] = one.edge
                while len(self._reports) > _REPORTS:
                    self._reports.popitem(last=False)

    def _fail(self, one: ActiveRow, problem: str) -> None:
        """This stage can do no more for one request; the others can."""
        log.warning("stage %s, request %s: %s", self.name, one.request_id, problem)
        self._forget(one.handle)
