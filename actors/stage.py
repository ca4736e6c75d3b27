"""`LanguageStage`: the loop around `extend` that every language level runs, light, mid or heavy.

           control calls (any thread)                      answers (target only)
                    |  commands                                   ^
                    v                                             |
    upstream  --DraftBlock-->  [ take messages -> batch ready rows -> extend -> settle ]  --DraftBlock-->  downstream
              <--Verdict----               decided by StageScheduler                      <--Verdict----

    consumes    draft blocks from upstream, verdicts from downstream, commands from the controller
    produces    draft blocks downstream, verdicts upstream, and at the target the answer
    waits for   any of them, a closed link, or the next row's deadline: never longer

What to run and what to say is decided by a `StageScheduler`, which has neither clock nor model; this is the shell that
gives it both. One thread owns the decoder, the rows and both links; control calls only leave commands and wait for
their outcome, with a deadline. Nothing in here knows Ray.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from actors.commands import Commands
from actors.host import cores, process, step_back
from actors.neighbour import Heard, Neighbour
from actors.rows import ActiveRow, Admission, News, RowReport
from cascade_runtime.channels import ChannelSpec, Listener, connect, listen, wait_any
from cascade_runtime.channels.local import pair
from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.decoding.choice import NOT_FINITE
from cascade_runtime.emulation.loading import load_level
from cascade_runtime.errors import CapacityError, ChannelClosed, ChannelError, DeadlineExceeded, StageError
from cascade_runtime.messages import DraftBlock, Verdict
from cascade_runtime.metrics import EdgeCounters
from cascade_runtime.scheduling.from_recipe import policy_from_recipe, share_cores, window_of_row
from cascade_runtime.scheduling.policy import Decision
from cascade_runtime.scheduling.stage_scheduler import StageScheduler, Task
from cascade_runtime.scheduling.standing import Settled
from cascade_runtime.tracing import Share, Trace, Tracer
from cascade_runtime.vision.features import VisualFeatures

log = logging.getLogger(__name__)

_REPORTS = 1024  # reports of ended requests that nobody has collected, and handles known to be released
_MESSAGES = 256  # messages taken from one link before the rows get their turn
_IDLE_S = 0.5


class LanguageStage:
    """One language level as a running stage. `index` counts from the lightest; the last one is the target."""

    def __init__(self, recipe: Recipe, index: int) -> None:
        self.config = recipe.stages[index]
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        self.recipe, self.index, self.name = recipe, index, self.config.name
        self.is_target = index == len(recipe.stages) - 1
        self.level = load_level(recipe, index)
        self._on_cpu = str(self.level.model.language.device) == "cpu"
        shared = cores() if self._on_cpu and share_cores(recipe) else 0
        policy = policy_from_recipe(recipe, index, self.level.step_cost(), shared)
        upstream_s, prefill_tokens = recipe.deadlines.upstream_s, recipe.cascade.prefill_tokens
        self.scheduler = StageScheduler(index, len(recipe.stages), policy, upstream_s, prefill_tokens)
        self.level.decoder.tells_confidence = policy.min_confidence > 0
        self.tracer = Tracer(self.name)
        self.totals = EdgeCounters(f"{recipe.stages[index - 1].name}-{self.name}" if index else self.name)
        self.rows: dict[int, ActiveRow] = {}
        self._reports: OrderedDict[int, RowReport] = OrderedDict()
        self._released: OrderedDict[int, None] = OrderedDict()
        self._upstream: Neighbour[DraftBlock] | None = None
        self._downstream: Neighbour[Verdict] | None = None
        self._refused = 0  # by neighbours that are gone
        self._listener: Listener | None = None
        self._commands = Commands(self.name, self._ring)
        self._bell, self._ear = pair(ChannelSpec(backend="local", link="wake", capacity=1))
        self._stopping = threading.Event()
        self._busy_ns = self._awake_ns = 0  # in passes; in turns of the loop, passes included
        self._news = News()
        self._decided: Decision | None = None  # as last noted
        self._slept = False  # the loop slept before this turn: what has come came just now
        self._thread: threading.Thread | None = None

    # -- control plane: called from other threads, idempotent, bounded in time --------------------------------------

    def info(self) -> dict[str, Any]:
        """Facts about the stage that the launcher checks and prints."""
        language = self.level.model.language
        return {
            "name": self.name,
            "tokenizer": self.level.tokenizer_tag(),
            "ends": self.level.ends,
            **process(language.device),
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
            name = self.recipe.stages[self.index - 1].name
            self._upstream = Neighbour(name, connect(upstream, timeout_s), DraftBlock, self.tracer)
        if self._listener is not None:
            name = self.recipe.stages[self.index + 1].name
            self._downstream = Neighbour(name, self._listener.accept(timeout_s), Verdict, self.tracer)
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
        """Take a request in, see `Admission`. A second call with the same handle changes nothing; one after `release`
        is refused. The arguments stand side by side since Ray resolves references (`features`) only at the top level.

        Raises what is wrong with the request (`PromptTooLong`, `FeatureSpaceError`) or `CapacityError`.
        """
        admission = Admission(handle, request_id, question, features, sampling, expect_drafts)
        self._command(lambda: self._admit(admission))

    def revise(self, handle: int, features: VisualFeatures | None) -> None:
        """Other features for a request that is running (None: those it has are right). Its prefix stays."""
        if features is not None:
            self._command(lambda: self._revise(handle, features))

    def release(self, handle: int) -> RowReport | None:
        """Forget a request, finished, running or still to come; its slot is free when this returns."""
        return self._command(lambda: self._release(handle))  # type: ignore[return-value]

    def stats(self) -> dict[str, Any]:
        """Counters since the start; `busy_s` is time in passes, `awake_s` in turns of the loop, passes included."""
        decoder, policy = self.level.decoder, self.scheduler.policy
        return {
            "name": self.name,
            "emulated": self.config.emulated,
            "passes": decoder.passes,
            "tokens_fed": decoder.tokens_fed,
            "busy_s": self._busy_ns / 1e9,
            "awake_s": self._awake_ns / 1e9,
            "active_rows": len(self.rows),
            "free_slots": decoder.free_slots,
            "slots": decoder.cache.slots,
            "early_blocks": len(self.scheduler.early),
            "refused_messages": self._refused + sum(each.refused for each in self._neighbours()),
            "edge": self.totals.to_dict(),
            "decision": policy.decision.to_dict(),
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
        for closable in (self._listener, *(each.channel for each in self._neighbours()), self._bell, self._ear):
            if closable is not None:
                closable.close()

    def _neighbours(self) -> list[Neighbour[Any]]:
        return [each for each in (self._upstream, self._downstream) if each is not None]

    def _command(self, action: Callable[[], object]) -> object:
        if self._thread is None or self._stopping.is_set():
            raise StageError(self.name, "-", "the stage is not running")
        return self._commands.ask(action, self.recipe.deadlines.control_s)

    def _ring(self) -> None:
        with contextlib.suppress(DeadlineExceeded, CapacityError, ChannelError):
            self._bell.send(b"!", 0.0)  # it may be ringing already, or the loop may be gone

    # -- the loop -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            if not self.is_target and self._on_cpu:
                step_back()
            while not self._stopping.is_set():
                self._turn()
        except Exception:
            log.exception("stage %s: the loop ended", self.name)
            for one in list(self.rows.values()):
                self._fail(one, "the stage's loop ended")
            for neighbour in self._neighbours():
                neighbour.channel.close()
        self._stopping.set()
        self._commands.refuse()

    def _turn(self) -> None:
        start = time.monotonic_ns()
        obeyed, heard = self._commands.obey(), set[int]()
        self._take(self._upstream, self._on_drafts, heard)
        self._take(self._downstream, self._on_verdict, heard)
        self._slept = False
        if tasks := self.scheduler.next_batch(time.monotonic()):
            self._pass(tasks)
        for one in self._news.of(self.rows, heard, everything=obeyed or bool(tasks), now_ns=start):
            self._publish(one)
        self._flush()
        self._awake_ns += time.monotonic_ns() - start
        if not tasks:
            self._wait()

    def _wait(self) -> None:
        """Sleep until a message, a command or the earliest deadline."""
        now, links = time.monotonic(), [each.channel for each in self._neighbours()]
        wait_any([self._ear, *links], max(0.0, self.scheduler.wake_at(now, _IDLE_S) - now))
        while self._ear.recv(0.0) is not None:
            pass
        self._slept = True

    def _take(self, neighbour: Neighbour[Heard] | None, on_message: Callable[[Heard], None], heard: set[int]) -> None:
        if neighbour is None:
            return
        newest: dict[int, Heard] = {}
        try:
            for message in neighbour.take(_MESSAGES):
                newest[message.request] = message  # it says all: messages are cumulative, and links keep order
        except ChannelClosed:
            self._lost(neighbour)
            heard.update(self.rows)
        for message in newest.values():
            on_message(message)
        heard.update(newest)

    def _lost(self, neighbour: Neighbour[Any]) -> None:
        """Go on without it."""
        log.warning("stage %s: %s closed its link", self.name, neighbour.name)
        neighbour.channel.close()
        self._refused += neighbour.refused
        if neighbour is self._upstream:
            self._upstream, self.scheduler.upstream = None, False
        else:
            self._downstream, self.scheduler.downstream = None, False

    def _on_drafts(self, message: DraftBlock) -> None:
        if message.request not in self._released:
            self.scheduler.on_drafts(message, time.monotonic(), waited=self._slept)

    def _on_verdict(self, message: Verdict) -> None:
        self.scheduler.on_verdict(message, time.monotonic())
        one = self.rows.get(message.request)
        if one is not None and one.standing.finished:
            self._publish(one)
            self._forget(one.handle)

    def _pass(self, tasks: list[Task]) -> None:
        """One `extend` over the picked rows, then each row's settlement."""
        batch, decoder = [self.rows[task.row.handle] for task in tasks], self.level.decoder
        fed, context = decoder.tokens_fed, sum(one.row.held for one in batch)
        start, worked = time.monotonic_ns(), time.thread_time()
        try:
            choices = decoder.extend([one.extension(task) for one, task in zip(batch, tasks, strict=True)])
        except Exception as error:
            log.exception("stage %s: a pass over %d rows failed", self.name, len(batch))
            for one in batch:
                self._fail(one, f"{type(error).__name__}: {error}")
            return
        end = time.monotonic_ns()
        self._busy_ns += end - start
        work_s = (time.thread_time() - worked) * max(1, self.config.threads)
        self.scheduler.ran(tasks, decoder.tokens_fed - fed, context, (end - start) / 1e9, work_s)
        sound = [(task, chosen) for task, chosen in zip(tasks, choices, strict=True) if self._usable(task, chosen)]
        kept = [task for task, _ in sound]
        settled = self.scheduler.settle(kept, [chosen for _, chosen in sound], time.monotonic())
        outcomes = list(zip(kept, settled, strict=True))
        for one in self.rows.values():  # some may have been given what another fed
            one.scheduled.prompt_left = min(one.scheduled.prompt_left, one.row.prompt_left)
        self._note(tasks, outcomes, start, end, decoder.tokens_fed - fed)
        self._settle(outcomes)

    def _note(self, tasks: list[Task], outcomes: list[tuple[Task, Settled]], start: int, end: int, fed: int) -> None:
        """The pass, and a decision that has changed with it, for the trace."""
        accepted = {task.row.handle: each.accepted for task, each in outcomes}
        step = "verify" if self.index else "draft"
        shares = tuple(
            Share(at, "prefill" if task.prompt else step, len(task.work.drafts), accepted.get(at, 0))
            for at, task in ((task.row.handle, task) for task in tasks)
        )
        self.tracer.record(start, end, shares, fed)
        if self.scheduler.policy.decision is not self._decided:
            self._decided = self.scheduler.policy.decision
            self.tracer.noted("decision", self._decided.to_dict())

    def _usable(self, task: Task, chosen: list[int]) -> bool:
        """Whether the choices are numbers. If not, a draft may have spoilt them, else the request fails."""
        if NOT_FINITE not in chosen:
            return True
        if task.work.drafts:  # look again without any
            task.row.alone = True
            task.row.standing.drop_hints()
        else:
            self._fail(self.rows[task.row.handle], "the model's logits are not finite")
        return False

    def _settle(self, outcomes: list[tuple[Task, Settled]]) -> None:
        for task, each in outcomes:
            one = self.rows[task.row.handle]
            if each.added and self.scheduler.policy.min_confidence:
                self.scheduler.trust(one.scheduled, one.row.confidence)
            if self.index:
                one.observe(task, each, self.totals)
            if each.added:
                self._settled(one, len(task.work.prefix))

    def _settled(self, one: ActiveRow, before: int) -> None:
        """A row has grown beyond its first `before` tokens."""

    def _publish(self, one: ActiveRow) -> None:
        """What is news, downstream and upstream: it leaves at the end of this turn."""
        for message in self.scheduler.outgoing(one.scheduled, time.monotonic()):
            neighbour = self._downstream if isinstance(message, DraftBlock) else self._upstream
            if neighbour is not None:
                neighbour.tell(message)

    def _flush(self) -> None:
        for neighbour in self._neighbours():
            try:
                neighbour.flush()
            except ChannelClosed:
                self._lost(neighbour)

    # -- rows -----------------------------------------------------------------------------------------------------

    def _admit(self, admission: Admission) -> None:
        handle = admission.handle
        if handle in self._released:
            raise StageError(self.name, admission.request_id, "was released before it was admitted")
        if handle in self.rows:
            return
        row = self.level.admit(admission.question, admission.features, admission.sampling)
        window = window_of_row(self.recipe, self.index, admission.features.occupancy)
        standing = admission.standing(self.index, self.level.vocab_size, self.level.ends, window)
        scheduled = self.scheduler.admit(
            standing,
            time.monotonic(),
            expect_drafts=admission.expect_drafts,
            prompt=len(row.prompt),
            left=row.prompt_left,
            prefix=row.prompt.prefix,
        )
        counters = EdgeCounters(self.totals.edge)
        self.rows[handle] = ActiveRow(admission, row, scheduled, counters, time.monotonic_ns())

    def _revise(self, handle: int, features: VisualFeatures) -> None:
        one = self.rows.get(handle)
        if one is not None:
            self.level.decoder.release(one.row)
            one.row = self.level.admit(one.admission.question, features, one.admission.sampling)
            one.scheduled.prompt_left, one.scheduled.prefix = one.row.prompt_left, one.row.prompt.prefix

    def _release(self, handle: int) -> RowReport | None:
        self._take(self._downstream, self._on_verdict, set())  # its last verdict may lie there
        self._forget(handle)
        self._released[handle] = None
        while len(self._released) > _REPORTS:
            self._released.popitem(last=False)
        return self._reports.pop(handle, None)

    def _forget(self, handle: int) -> None:
        self.scheduler.release(handle)
        one = self.rows.pop(handle, None)
        if one is not None:
            self.level.learn(one.row, one.standing.prefix[: one.standing.confirmed])
            self.level.decoder.release(one.row)
            self._reports[handle] = one.report(self.tracer.of(handle, one.since_ns))
            while len(self._reports) > _REPORTS:
                self._reports.popitem(last=False)

    def _fail(self, one: ActiveRow, problem: str) -> None:
        """This stage can do no more for one request; the others can."""
        log.warning("stage %s, request %s: %s", self.name, one.admission.request_id, problem)
        self._forget(one.handle)
