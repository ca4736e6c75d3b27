"""`StageScheduler`: everything one language stage decides, without clock, model, channel or thread.

    shell (an actor's loop, the simulator)              StageScheduler
      messages came in          --on_drafts, on_verdict-->   rows: what is stood by, what is proposed
      what shall I run?         <------- next_batch(now)     the policy picks rows, and drafts per row
      the model has chosen      ------- settle(...) ------>   accepted runs, corrections, what was learnt
      what shall I send?        <------- outgoing(now)       draft blocks downstream, verdicts with grants upstream
      until when may I sleep?   <------- wake_at(now)

Times are seconds of any monotonic clock; they are only compared. The same object runs in the actors, in the simulator
and under the property tests, so what is validated is what runs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from cascade_runtime.messages import DraftBlock, Grant, Verdict
from cascade_runtime.scheduling.policy import Policy
from cascade_runtime.scheduling.scheduled_row import ScheduledRow
from cascade_runtime.scheduling.standing import Standing
from cascade_runtime.scheduling.work import Grown, Settled, Work

Message = TypeVar("Message", DraftBlock, Verdict)

EARLY_BLOCKS = 64  # draft blocks kept for requests that are not admitted yet, and as many verdicts
_REPEAT_S = 0.25  # a stage that can do nothing says again what it stands by, in case it was lost
_PATIENCE = 2  # deadlines an upstream may miss in a row before its row no longer waits for it


@dataclass(frozen=True)
class Task:
    """One row's share of a pass. prompt: positions of its prompt to feed first, at most; `unfinished`, and nothing
    can be chosen yet.
    """

    row: ScheduledRow
    work: Work
    prompt: int | None = None
    unfinished: bool = False


@dataclass(eq=False)
class StageScheduler:
    """Stage `stage` of `levels`. `upstream`, `downstream`: those replicas of the stages next door that are linked.

    upstream_s: how long a row waits for a silent upstream. prefill_tokens: positions of prompts in one pass, at most: a
    long prompt is fed in chunks, and no row waits for all of another's.
    """

    stage: int
    levels: int
    policy: Policy
    upstream_s: float
    prefill_tokens: int = 512
    upstream: set[int] = field(init=False)
    downstream: set[int] = field(init=False)
    rows: dict[int, ScheduledRow] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.upstream = {0} if self.stage > 0 else set()
        self.downstream = {0} if self.stage < self.levels - 1 else set()
        self.early: OrderedDict[int, DraftBlock] = OrderedDict()
        self.overtook: OrderedDict[int, Verdict] = OrderedDict()
        self.silences = 0  # passes that were run because a row had waited for drafts until its deadline
        self._held_back: set[int] = set()
        self._work_s = 0.0  # of the pass that is to be settled
        self._odd_s = 0.0  # in passes that are no steps: with prompts, or captured
        self._odd = False  # so is the pass that is to be settled

    # -- requests ----------------------------------------------------------------------------------------------------

    def admit(
        self,
        standing: Standing,
        now: float,
        *,
        expect_drafts: bool = True,
        prompt: int = 0,
        left: int | None = None,
        prefix: str = "",
        route: tuple[int, int] = (0, 0),
    ) -> ScheduledRow:
        """A request begins, with a prompt of so many positions of which `left` are still to be fed (default: all).
        What came before it, drafts and a verdict, is taken in. Of rows with the same prefix that hold nothing yet, one
        goes first. route: the replicas upstream and downstream that have it.
        """
        standing.grant = self.policy.first_grant()
        left = prompt if left is None else left
        row = ScheduledRow(
            standing, expect_drafts, since=now, heard=now, context=prompt, prompt_left=left, prefix=prefix
        )
        row.upstream, row.downstream = route
        self.rows[row.handle] = row
        block, verdict = self.early.pop(row.handle, None), self.overtook.pop(row.handle, None)
        if block is not None:
            self.on_drafts(block, now)
        if verdict is not None:
            self.on_verdict(verdict, now)
        return row

    def release(self, handle: int) -> ScheduledRow | None:
        """A request ends, here or everywhere."""
        self.early.pop(handle, None)
        self.overtook.pop(handle, None)
        return self.rows.pop(handle, None)

    # -- links -------------------------------------------------------------------------------------------------------

    def renew_upstream(self, epoch: int, now: float, replica: int = 0) -> None:
        """A link to an upstream that knows nothing of what was said before."""
        self.upstream.add(replica)
        self.early.clear()
        for row in self.rows.values():
            if row.upstream == replica:
                self.turn_upstream(row, replica, epoch, now)

    def renew_downstream(self, epoch: int, now: float, replica: int = 0) -> None:
        """A link to a downstream that has said nothing yet."""
        self.downstream.add(replica)
        self.overtook.clear()
        for row in self.rows.values():
            if row.downstream == replica:
                self.turn_downstream(row, replica, epoch, now)

    def turn_upstream(self, row: ScheduledRow, replica: int, epoch: int, now: float) -> None:
        """A row is with this replica upstream from now on, over a link of this epoch."""
        row.upstream = replica
        row.standing.renew_upstream(epoch)
        row.since, row.missed, row.restarted = now, 0, None

    def turn_downstream(self, row: ScheduledRow, replica: int, epoch: int, now: float) -> None:
        """The same downstream."""
        row.downstream = replica
        row.standing.renew_downstream(epoch)
        row.standing.grant = self.policy.first_grant()
        row.heard, row.path, row.produced = now, 1.0, None

    def _drafted_for(self, row: ScheduledRow) -> bool:
        return row.upstream in self.upstream

    def _verified(self, row: ScheduledRow) -> bool:
        return row.downstream in self.downstream

    # -- messages ----------------------------------------------------------------------------------------------------

    def on_drafts(self, block: DraftBlock, now: float, *, waited: bool = False) -> bool:
        """Upstream proposes; returns whether it was of use. `waited`: the stage slept, so the block came just `now`."""
        row = self.rows.get(block.request)
        if row is None:
            _keep(self.early, block)
            return False
        if not row.standing.on_drafts(block):
            return False
        if row.standing.hints:
            relayed = not row.standing.hint_stages[0] >> (self.stage - 1) & 1
            self.policy.observe_hints(block.pace_us, block.work_us, relayed=relayed)
        if row.restarted is not None and row.standing.hints:
            if waited:
                self.policy.observe_restart(now - row.restarted, len(row.standing.hints), block.pace_us)
            row.restarted = None
        row.since, row.missed = now, 0
        if row.standing.grant.relay:
            row.standing.relay()
        return True

    def on_verdict(self, verdict: Verdict, now: float) -> ScheduledRow | None:
        """Downstream decides. Returns the row, or None for a request that is not here, or not yet."""
        row = self.rows.get(verdict.request)
        if row is None:
            _keep(self.overtook, verdict)
            return None
        was_blocked = row.standing.blocked
        row.standing.on_verdict(verdict)
        self.policy.observe_grant(row.standing.grant)
        row.heard, row.path = now, 1.0
        if was_blocked:
            row.since, row.produced = now, None
        if row.standing.grant.relay:
            row.standing.relay()
        return row

    # -- passes ------------------------------------------------------------------------------------------------------

    def next_batch(self, now: float) -> list[Task]:
        """The rows to extend now and how; empty: wait until `wake_at`, a message or a command."""
        ready, others = [], []
        for row in self.rows.values():
            if not self._can_run(row):
                continue
            (ready if self._ready(row, now) else others).append(row)
        self._held_back.clear()
        if not ready:
            return []
        tasks, budget = [], self.prefill_tokens
        begun = {row.prefix for row in (*ready, *others) if row.prefix and 0 < row.prompt_left < row.context}
        for row, most in self.policy.pick(ready, others):
            if not row.prompt_left:
                tasks.append(Task(row, row.standing.work(most)))
            elif budget and not (row.untouched and row.prefix in begun):  # else it will be given what another feeds now
                begun |= {row.prefix} - {""}
                fed = min(row.prompt_left, budget)
                budget -= fed
                unfinished = fed < row.prompt_left
                tasks.append(Task(row, Work((), ()) if unfinished else row.standing.work(most), fed, unfinished))
        if not tasks:  # the policy rather waits for the others: being due does not wake the stage again
            self._held_back.update(row.handle for row in ready)
        return tasks

    def ran(
        self,
        tasks: Sequence[Task],
        fed: int,
        context: int,
        seconds: float,
        work_s: float = 0.0,
        *,
        first: bool = False,
    ) -> None:
        """The model has run: it fed so many tokens to rows that held `context` positions in all, and took `work_s`
        of the cores that neighbours use as well. first: it also compiled or captured what later passes will repeat.
        Before `settle`.
        """
        self._odd = first or any(task.prompt for task in tasks)
        if self._odd:  # a prefill says nothing of a step
            self._odd_s += seconds
        else:
            self._work_s = work_s
            self.policy.observe_pass(len(tasks), fed, context, seconds, work_s)
        self.policy.passed()

    def trust(self, row: ScheduledRow, confidence: float) -> None:
        """How sure the model was of what it has just drafted; below the policy's limit the row waits for a verdict."""
        row.path *= confidence
        if self._verified(row) and row.path < self.policy.min_confidence:
            row.standing.hesitates = True

    def settle(self, tasks: Sequence[Task], choices: Sequence[Sequence[int] | Grown], now: float) -> Iterator[Settled]:
        """The pass is over: take each row's choices, or the tree it has drafted. Yields what each brought, in order."""
        looked = grown = 0
        odd, self._odd = self._odd or any(task.prompt for task in tasks), False  # left out, and so is what it brought
        for task, chosen in zip(tasks, choices, strict=True):
            row = task.row
            row.prompt_left -= task.prompt or 0
            if task.unfinished:
                row.since = now
                yield Settled(0, 0, ())
                continue
            if isinstance(chosen, Grown):
                row.standing.plant(chosen)
                row.passes += 1
                yield Settled(0, 0, ())
                continue
            settled = row.standing.settle(task.work, chosen)
            assert settled is not None  # messages are taken between passes only
            if settled.drafted:
                own = task.work.masks[0] >> (self.stage - 1) & 1 if self.stage else 1
                self.policy.observe_settled(settled.drafted, settled.accepted, relayed=not own)
            if self.stage and settled.accepted < settled.drafted:
                row.restarted = now
            if row.produced is not None and not odd:
                self.policy.observe_pace(now - self._odd_s - row.produced, len(settled.added))
            row.produced = None if row.standing.blocked else now - self._odd_s
            row.missed = row.missed + 1 if row.late else 0
            if row.late:
                self.silences += row.missed <= _PATIENCE
                self.policy.observe_silence(self.upstream_s)
            row.passes += 1
            row.since, row.alone = now, False
            looked, grown = looked + settled.drafted, grown + len(settled.added)
            yield settled
        if self._work_s:
            self.policy.observe_work(self._work_s, looked, grown)
            self._work_s = 0.0

    def _can_run(self, row: ScheduledRow) -> bool:
        return not row.standing.blocked and not (
            row.standing.grant.relay and self._drafted_for(row) and self._verified(row) and row.expect_drafts
        )

    def _ready(self, row: ScheduledRow, now: float) -> bool:
        """Whether to spend a pass on this row now: enough drafts, nothing to wait for, or waited long enough."""
        standing, row.late = row.standing, False
        if (
            not self._drafted_for(row)
            or not row.expect_drafts
            or row.alone
            or (row.fresh and self.policy.hides_prefill)
        ):
            return True
        if len(standing.hints) >= min(self.policy.need(row), standing.room - 1) or standing.upstream_waits:
            return True
        if standing.ends and not standing.ends.isdisjoint(standing.hints):
            return True
        row.late = now >= self._due(row)
        return row.late

    def _due(self, row: ScheduledRow) -> float:
        return row.since if row.missed >= _PATIENCE else row.since + self.upstream_s

    def wake_at(self, now: float, idle_s: float) -> float:
        """When something is due even if nothing comes: at the latest `idle_s` from now."""
        wake = now + idle_s
        for row in self.rows.values():
            if self._can_run(row):
                if row.handle not in self._held_back:
                    wake = min(wake, self._due(row))
            elif self._verified(row) and not row.standing.finished:
                wake = min(wake, row.heard + _REPEAT_S)
        return wake

    def _grant(self, row: ScheduledRow) -> Grant:
        """What upstream may do for this row. Whose drafts are only passed on may do what downstream grants, whatever
        this stage has settled on for itself: it may want none.
        """
        granted = row.standing.grant
        if granted.relay and self._verified(row):
            return replace(granted, relay=False)
        return self.policy.grant(row)

    # -- what to say -------------------------------------------------------------------------------------------------

    def outgoing(self, row: ScheduledRow, now: float) -> Iterable[DraftBlock | Verdict]:
        """What is news for the neighbours, and again what was said if nobody has reacted for a while."""
        standing, said = row.standing, []
        if self._verified(row) and not standing.finished:
            cost_us = standing.cost_us if standing.grant.relay else (self.policy.pace_us, self.policy.work_us)
            block = standing.drafts(standing.grant.block, cost_us)
            if block is None and not self._can_run(row) and now >= row.heard + _REPEAT_S:
                block, row.heard = standing.repeat_drafts(cost_us), now
            if block is not None:
                said.append(block)
        if self._drafted_for(row) and row.expect_drafts:
            grant = self._grant(row)
            row.restarted = row.restarted if grant.window else None
            verdict = standing.verdict(grant)
            if verdict is not None:
                said.append(verdict)
        return said


def _keep(early: OrderedDict[int, Message], message: Message) -> None:
    """The newest of a request, which says all; the oldest requests are forgotten."""
    early[message.request] = message
    early.move_to_end(message.request)
    while len(early) > EARLY_BLOCKS:
        early.popitem(last=False)
