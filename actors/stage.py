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

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from actors.facts import info, stats
from actors.host import cores, step_back
from actors.links import epochs_of
from actors.neighbour import Heard, Neighbour
from actors.passes import Chosen, passes_of, shares
from actors.rows import STRAIGHT, ActiveRow, Admission, News, Route, RowReport
from actors.stage_loop import StageLoop
from cascade_runtime.channels import ChannelSpec, wait_any
from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.decoding.choice import NOT_FINITE
from cascade_runtime.emulation.loading import load_level
from cascade_runtime.errors import ChannelClosed, StageError
from cascade_runtime.messages import DraftBlock, Verdict
from cascade_runtime.metrics import EdgeCounters
from cascade_runtime.scheduling.from_recipe import patience_s, policy_from_recipe, share_cores, window_of_row
from cascade_runtime.scheduling.policy import Decision
from cascade_runtime.scheduling.stage_scheduler import StageScheduler, Task
from cascade_runtime.scheduling.work import Grown, Settled
from cascade_runtime.tracing import Share
from cascade_runtime.vision.features import VisualFeatures

Known = TypeVar("Known")

log = logging.getLogger(__name__)

_REPORTS = 1024  # of ended requests that nobody has collected
_MESSAGES = 256  # messages taken from one link before the rows get their turn
_KEPT = 1024  # requests that are elsewhere, of which is known where to, or that they have left
_IDLE_S = 0.5


class LanguageStage(StageLoop[ActiveRow]):
    """One language level as a running stage, or one replica of it. `index` counts from the lightest; the last one is
    the target.
    """

    def __init__(self, recipe: Recipe, index: int, replica: int = 0) -> None:
        super().__init__(recipe, index, replica)
        recipe = self.recipe
        self.config = recipe.stages[index]
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        self.is_target = index == len(recipe.stages) - 1
        self.level = load_level(recipe, index)
        self._on_cpu = str(self.level.model.language.device) == "cpu"
        shared = cores() if self._on_cpu and share_cores(recipe) else 0
        policy = policy_from_recipe(recipe, index, self.level.step_cost(), shared)
        upstream_s, prefill_tokens = patience_s(recipe, index), recipe.cascade.prefill_tokens
        self.scheduler = StageScheduler(index, len(recipe.stages), policy, upstream_s, prefill_tokens)
        self.level.decoder.tells_confidence = policy.min_confidence > 0
        self.passes = passes_of(recipe, index, self.level)
        upstream = recipe.stages[index - 1].name if index else self.passes.upstream
        self.totals = EdgeCounters(f"{upstream}-{self.config.name}" if upstream else self.config.name)
        self._reports: OrderedDict[int, RowReport] = OrderedDict()
        self._routes: OrderedDict[int, Route] = OrderedDict()  # of requests that are not here yet
        self._vacated: OrderedDict[int, int] = OrderedDict()  # of requests that have left: the turn that is over
        self._news = News()
        self._decided: Decision | None = None  # as last noted
        self._slept = False  # the loop slept before this turn: what has come came just now

    # -- control plane: called from other threads, idempotent, bounded in time --------------------------------------

    def info(self) -> dict[str, Any]:
        """Facts about the stage that the launcher checks and prints."""
        return info(self.name, self.level)

    def link(self, upstream: Sequence[ChannelSpec], timeout_s: float) -> None:
        """Connect to the replicas of the previous stage, in their order; accept those of the next; start the loop. One
        that replaces another starts without either. Raises `ChannelError` or `DeadlineExceeded`.
        """
        if self._thread is not None:
            return
        for replica, spec in enumerate(upstream):
            self.links.upstream[replica] = self.links.connect(spec, timeout_s, replica)
        for replica in self.links.awaited:
            self.links.downstream[replica] = self.links.accept(timeout_s, replica)
        self.links.told(self.scheduler)
        self._start()

    def join_upstream(self, spec: ChannelSpec, timeout_s: float, replica: int = 0) -> None:
        """Link to a replica of the previous stage anew, in place of what link there is. A second call changes nothing.

        Raises `ChannelError`, `DeadlineExceeded`.
        """
        if epochs_of(self.links.upstream).get(replica) != spec.epoch:
            link = self.links.connect(spec, timeout_s, replica)
            self._command(lambda: self.links.renew(self.scheduler, link, replica, upstream=True))

    def join_downstream(self, timeout_s: float, replica: int = 0) -> None:
        """Link to a replica of the next stage anew, which comes to the address that `listen` gave. Raises as
        `Links.accept`.
        """
        link = self.links.accept(timeout_s, replica)
        self._command(lambda: self.links.renew(self.scheduler, link, replica, upstream=False))

    def admit(
        self,
        handle: int,
        request_id: str,
        question: str,
        features: VisualFeatures,
        sampling: SamplingParams,
        expect_drafts: bool = True,
        tokens: tuple[int, ...] = (),
        masks: tuple[int, ...] = (),
        route: Route = STRAIGHT,
    ) -> None:
        """Take a request in, see `Admission`. A second call with the same handle changes nothing; one after `release`
        is refused. The arguments stand side by side since Ray resolves references (`features`) only at the top level.

        Raises what is wrong with the request (`PromptTooLong`, `FeatureSpaceError`) or `CapacityError`.
        """
        admission = Admission(handle, request_id, question, features, sampling, expect_drafts, tokens, masks, route)
        self._command(lambda: self._admit(admission))

    def revise(self, handle: int, features: VisualFeatures | None) -> None:
        """Other features for a request that is running (None: those it has are right). Its prefix stays."""
        if features is not None:
            self._command(lambda: self._revise(handle, features))

    def stats(self) -> dict[str, Any]:
        """Counters since the start, see `actors.facts`."""
        return stats(self)

    # -- the loop -------------------------------------------------------------------------------------------------

    def _begun(self) -> None:
        if not self.is_target and self._on_cpu:
            step_back()

    def _turn(self) -> None:
        start = self.clock.turn()
        obeyed, heard = self._commands.obey(), set[int]()
        for upstream in list(self.links.upstream.values()):
            self._take(upstream, self._on_drafts, heard)
        for downstream in list(self.links.downstream.values()):
            self._take(downstream, self._on_verdict, heard)
        self._slept = False
        if tasks := self.scheduler.next_batch(time.monotonic()):
            self._pass(tasks)
        for one in self._news.of(self.rows, heard, everything=obeyed or bool(tasks), now_ns=start):
            self._publish(one)
        self._flush()
        idle = not tasks and not self._foresee()
        self.clock.rest()
        if idle:
            self._wait()

    def _foresee(self) -> bool:
        """Use the time of a turn without a pass for what may be asked next; whether there was anything."""
        fed, start = self.level.decoder.tokens_fed, time.monotonic_ns()
        try:
            handles = self.passes.foresee()
        except Exception:
            log.exception("stage %s: drafting ahead failed", self.name)
            for one in self.rows.values():
                self.passes.forget(one)
            return False
        if handles:
            end = time.monotonic_ns()
            self.clock.busy_ns += end - start
            shares = tuple(Share(handle, "draft", 0, 0) for handle in handles)
            self.tracer.record(start, end, shares, self.level.decoder.tokens_fed - fed)
        return bool(handles)

    def _wait(self) -> None:
        """Sleep until a message, a command or the earliest deadline."""
        now, links = time.monotonic(), [each.channel for each in self.links]
        wait_any([self._bell.ear, *links], max(0.0, self.scheduler.wake_at(now, _IDLE_S) - now))
        self._bell.hush()
        self._slept = True

    def _take(self, neighbour: Neighbour[Heard], on_message: Callable[[Heard], None], heard: set[int]) -> None:
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
        self.links.drop(neighbour)
        self.links.told(self.scheduler)

    def _on_drafts(self, message: DraftBlock) -> None:
        if not self._is_past(message.request):
            self.scheduler.on_drafts(message, time.monotonic(), waited=self._slept)

    def _on_verdict(self, message: Verdict) -> None:
        if not self._is_past(message.request):
            self.scheduler.on_verdict(message, time.monotonic())
        one = self.rows.get(message.request)
        if one is not None and one.standing.finished:
            self._publish(one)
            self._end(one.handle)

    def _pass(self, tasks: list[Task]) -> None:
        """One `extend` over the picked rows, then each row's settlement."""
        batch, decoder = [self.rows[task.row.handle] for task in tasks], self.level.decoder
        fed, context, captured = decoder.tokens_fed, sum(one.row.held for one in batch), decoder.captured
        start, worked = time.monotonic_ns(), time.thread_time()
        try:
            tasks, choices = self.passes.run(batch, tasks)
        except Exception as error:
            log.exception("stage %s: a pass over %d rows failed", self.name, len(batch))
            if len(tasks) == 1:
                self._fail(batch[0], f"{type(error).__name__}: {error}")
            for task in tasks if len(tasks) > 1 else ():  # whoever spoilt it fails alone
                self._pass([task])
            return
        end = time.monotonic_ns()
        self.clock.busy_ns += end - start
        work_s = (time.thread_time() - worked) * max(1, self.config.threads)
        first = decoder.captured > captured
        self.scheduler.ran(tasks, decoder.tokens_fed - fed, context, (end - start) / 1e9, work_s, first=first)
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
        step = "verify" if self.index else "draft"
        self.tracer.record(start, end, shares(tasks, outcomes, step), fed)
        if self.scheduler.policy.decision is not self._decided:
            self._decided = self.scheduler.policy.decision
            self.tracer.noted("decision", self._decided.to_dict())

    def _usable(self, task: Task, chosen: Chosen) -> bool:
        """Whether the choices are numbers. If not, a draft may have spoilt them, else the request fails."""
        if isinstance(chosen, Grown) or NOT_FINITE not in chosen:
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
            if self.index or self.passes.upstream:
                one.observe(task, each, self.totals)
            self.passes.settled(one)
            if each.added:
                self._settled(one, len(task.work.prefix))

    def _settled(self, one: ActiveRow, before: int) -> None:
        """A row has grown beyond its first `before` tokens."""

    def _publish(self, one: ActiveRow) -> None:
        """What is news, downstream and upstream: it leaves at the end of this turn."""
        for message in self.scheduler.outgoing(one.scheduled, time.monotonic()):
            drafts, row, links = isinstance(message, DraftBlock), one.scheduled, self.links
            neighbour = links.downstream.get(row.downstream) if drafts else links.upstream.get(row.upstream)
            if neighbour is not None:
                neighbour.tell(message)

    def _flush(self) -> None:
        for neighbour in self.links.flush():
            self._lost(neighbour)

    # -- rows -----------------------------------------------------------------------------------------------------

    def _admit(self, admission: Admission) -> None:
        handle = admission.handle
        self._expect(handle, admission.request_id)
        if admission.route.turn <= self._vacated.get(handle, -1):
            raise StageError(self.name, admission.request_id, "had left before it was admitted")
        if handle in self.rows:
            self._reroute(handle, admission.route)
            return
        row = self.level.admit(admission.question, admission.features, admission.sampling)
        window = window_of_row(self.recipe, self.index, admission.features.occupancy)
        room = self.level.decoder.room(row, 0)
        standing = admission.standing(self.index, self.level.vocab_size, self.level.ends, window, room)
        route = admission.route.later(self._routes.pop(handle, admission.route))
        upstream_epoch, downstream_epoch = self.links.epochs(route.upstream, route.downstream)
        standing.renew_upstream(upstream_epoch)
        standing.renew_downstream(downstream_epoch)
        scheduled = self.scheduler.admit(
            standing,
            time.monotonic(),
            expect_drafts=admission.expect_drafts,
            prompt=len(row.prompt),
            left=row.prompt_left,
            prefix=row.prompt.prefix,
            route=(route.upstream, route.downstream),
        )
        counters = EdgeCounters(self.totals.edge)
        self.rows[handle] = ActiveRow(admission, row, scheduled, counters, time.monotonic_ns(), route)

    def _revise(self, handle: int, features: VisualFeatures) -> None:
        one = self.rows.get(handle)
        if one is not None:
            self.level.decoder.release(one.row)
            self.passes.forget(one)
            one.row = self.level.admit(one.admission.question, features, one.admission.sampling)
            one.scheduled.prompt_left, one.scheduled.prefix = one.row.prompt_left, one.row.prompt.prefix

    def _reroute(self, handle: int, route: Route) -> None:
        one, now = self.rows.get(handle), time.monotonic()
        if one is None:  # its admission may still be under way
            _keep(self._routes, handle, self._routes.get(handle, route).later(route))
            return
        known, one.route = one.route, one.route.later(route)
        upstream_epoch, downstream_epoch = self.links.epochs(one.route.upstream, one.route.downstream)
        if one.route.upstream_turn != known.upstream_turn:  # the same replica may have it anew
            self.scheduler.turn_upstream(one.scheduled, one.route.upstream, upstream_epoch, now)
        if one.route.downstream_turn != known.downstream_turn:
            self.scheduler.turn_downstream(one.scheduled, one.route.downstream, downstream_epoch, now)

    def _release(self, handle: int) -> RowReport | None:
        for downstream in list(self.links.downstream.values()):
            self._take(downstream, self._on_verdict, set())  # its last verdict may lie there
        self._routes.pop(handle, None)
        self._vacated.pop(handle, None)
        return super()._release(handle)

    def _vacate(self, handle: int, turn: int) -> None:
        _keep(self._vacated, handle, max(turn, self._vacated.get(handle, turn)))
        one = self.rows.get(handle)
        if one is None or one.route.turn <= turn:  # else it has come back meanwhile
            self._end(handle)

    def _forget(self, handle: int) -> RowReport | None:
        self._end(handle)
        return self._reports.pop(handle, None)

    def _end(self, handle: int) -> None:
        """Its slot is free; what is to be said of it is kept for whoever releases it."""
        self.scheduler.release(handle)
        one = self.rows.pop(handle, None)
        if one is not None:
            self.level.learn(one.row, one.standing.prefix[: one.standing.confirmed])
            self.level.decoder.release(one.row)
            self.passes.forget(one)
            self._reports[handle] = one.report(self.tracer.of(handle, one.since_ns))
            while len(self._reports) > _REPORTS:
                self._reports.popitem(last=False)

    def _fail(self, one: ActiveRow, problem: str) -> None:
        """This stage can do no more for one request; the others can."""
        log.warning("stage %s, request %s: %s", self.name, one.admission.request_id, problem)
        self._end(one.handle)


def _keep(those: OrderedDict[int, Known], handle: int, known: Known) -> None:
    """The oldest requests are forgotten."""
    those[handle] = known
    while len(those) > _KEPT:
        those.popitem(last=False)
