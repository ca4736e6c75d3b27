"""`simulate`: a cascade in virtual time, driving the very schedulers and policies that the actors run.

    Stage(policy, cost)      a language stage: what it decides, and what its passes take
    Device(capacity)         where passes run; more at once than `capacity` slow each other down (processor sharing)
    Link(latency_s)          between neighbours, one way
    Load(streams, ...)       requests: each of `streams` clients asks again as soon as it has its answer
    Tokens                   who says what (`tokens.py`)

Discrete events: a message arrives, a pass ends, a stage's sleep is over. Nothing is drawn at random besides what
`Tokens` says, so a run is repeatable.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from cascade_runtime.errors import InputError
from cascade_runtime.messages import DraftBlock, Verdict
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.scheduling.policy import Policy
from cascade_runtime.scheduling.scheduled_row import ScheduledRow
from cascade_runtime.scheduling.stage_scheduler import StageScheduler, Task
from cascade_runtime.scheduling.standing import Standing
from cascade_runtime.simulation.tokens import Tokens

_IDLE_S = 0.5
_EVENTS = 50_000_000


@dataclass(frozen=True)
class Device:
    """Where passes run: `capacity` of them at full speed, more share it."""

    name: str
    capacity: float = 1.0


@dataclass(frozen=True)
class Stage:
    """One language stage. overhead_s: of host work per pass, on top of its cost and not shared with the device."""

    name: str
    policy: Policy
    cost: StepCost
    device: Device | None = None
    overhead_s: float = 0.0


@dataclass(frozen=True)
class Link:
    """One way, in seconds per message."""

    latency_s: float = 0.0

    def seconds(self) -> float:
        """What a message takes that is sent now."""
        return self.latency_s


@dataclass(frozen=True)
class Load:
    """streams clients, each with the next of `requests` as soon as it has an answer. tokens: an answer's length, at
    most. prompt: positions of a prompt, fed before the row's first choice. speculate: whether drafters take part."""

    streams: int = 1
    requests: int = 16
    tokens: int = 64
    prompt: int = 0
    speculate: bool = True

    def streams_at(self, request: int) -> int:
        """How many clients there are when this request, counted from 1, is the next."""
        return self.streams


@dataclass(frozen=True)
class Pass:
    """One pass of a stage: when, and over what."""

    stage: int
    start_s: float
    end_s: float
    requests: tuple[int, ...]
    tokens: int


@dataclass
class Result:
    """What happened. tokens: of all answers. seconds: until the last one. busy_s: per stage. drafted, used: tokens each
    stage added to what it stands by, and those of them that are in an answer."""

    tokens: int = 0
    seconds: float = 0.0
    answers: dict[int, tuple[int, ...]] = field(default_factory=dict)
    busy_s: list[float] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    finished_at_s: list[float] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        """Throughput over the whole run."""
        return self.tokens / self.seconds

    @property
    def hidden(self) -> float:
        """Share of what could overlap that did: 1 - (wall - longest) / (sum - longest), of the stages' busy times."""
        total, longest = sum(self.busy_s), max(self.busy_s)
        return 1.0 - (self.seconds - longest) / (total - longest) if total > longest else 1.0


def simulate(
    stages: Sequence[Stage],
    tokens: Tokens,
    load: Load,
    links: Sequence[Link] = (),
    *,
    upstream_s: float = 0.05,
    window: int = 32,
    prefill_tokens: int = 512,
    keep_passes: bool = False,
) -> Result:
    """Run until all requests are answered. `links` default to instant ones; the policies are used up by the run.

    upstream_s, window, prefill_tokens: as in the schedulers and the recipes.
    """
    if not stages:
        raise InputError("stages", len(stages), "at least one")
    links = links or [Link()] * (len(stages) - 1)
    if len(links) != len(stages) - 1:
        raise InputError("links", len(links), f"one between each two of {len(stages)} stages")
    schedulers = [
        StageScheduler(k, len(stages), stage.policy, upstream_s, prefill_tokens) for k, stage in enumerate(stages)
    ]
    return _Run(stages, schedulers, tokens, load, links, window, keep_passes).result()


@dataclass(eq=False)
class _Node:
    """A stage in the simulation. `tasks` is the pass that runs now, `left_s` its remaining work at full speed,
    `context` the positions its rows hold. shared: other stages run on its device."""

    spec: Stage
    scheduler: StageScheduler
    inbox: list[DraftBlock | Verdict] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    shared: bool = False
    fed: int = 0
    context: int = 0
    held: dict[int, int] = field(default_factory=dict)
    started_s: float = 0.0
    left_s: float = 0.0
    asleep: bool = True
    wake: int = 0


class _Run:
    def __init__(
        self,
        stages: Sequence[Stage],
        schedulers: Sequence[StageScheduler],
        tokens: Tokens,
        load: Load,
        links: Sequence[Link],
        window: int,
        keep_passes: bool,
    ) -> None:
        self.tokens, self.load, self.links, self.window, self.keep_passes = tokens, load, links, window, keep_passes
        self.nodes = [_Node(spec, scheduler) for spec, scheduler in zip(stages, schedulers, strict=True)]
        devices = [spec.device for spec in stages]
        for node in self.nodes:
            device = node.spec.device
            node.shared = device is not None and (device.capacity < 1 or devices.count(device) > 1)
        self.now = 0.0
        self.events: list[tuple[float, int, int, int, object]] = []  # when, order, stage, wake number, message
        self.order = 0
        self.next_request = 0
        self.began: dict[int, float] = {}
        self.out = Result(busy_s=[0.0] * len(stages), drafted=[0] * len(stages))

    def result(self) -> Result:
        self._ask()
        for k in range(len(self.nodes)):
            self._turn(k)
        for _ in range(_EVENTS):
            if len(self.out.answers) == self.load.requests or not self._step():
                break
        self.out.seconds = self.now
        return self.out

    # -- time --------------------------------------------------------------------------------------------------------

    def _step(self) -> bool:
        """The next thing that happens: an event, or the end of a running pass, whichever is first."""
        at_end, first = float("inf"), -1
        for k, node in enumerate(self.nodes):
            if node.tasks:
                end = self.now + (node.left_s / self._speed(node) if node.shared else node.left_s)
                if end < at_end:
                    at_end, first = end, k
        if self.events and self.events[0][0] <= at_end:
            when, _, k, wake, message = heapq.heappop(self.events)
            self._advance(when)
            self._happen(k, wake, message)
        elif first >= 0:
            self._advance(at_end)
            self._end_pass(first)
        else:
            return False
        return True

    def _speed(self, node: _Node) -> float:
        device = node.spec.device
        if device is None or not node.shared:
            return 1.0
        running = sum(1 for other in self.nodes if other.tasks and other.spec.device == device)
        return min(1.0, device.capacity / running)

    def _advance(self, when: float) -> None:
        passed = when - self.now
        if passed > 0:
            for node in self.nodes:
                if node.tasks:
                    node.left_s = max(0.0, node.left_s - (passed * self._speed(node) if node.shared else passed))
        self.now = when

    def _at(self, when: float, k: int, wake: int, message: object) -> None:
        self.order += 1
        heapq.heappush(self.events, (when, self.order, k, wake, message))

    # -- stages ------------------------------------------------------------------------------------------------------

    def _happen(self, k: int, wake: int, message: object) -> None:
        node = self.nodes[k]
        if message is None:
            if wake == node.wake and not node.tasks:
                self._turn(k)
            return
        assert isinstance(message, DraftBlock | Verdict)
        node.inbox.append(message)
        if not node.tasks:
            self._turn(k)

    def _turn(self, k: int) -> None:
        """What an actor's loop does in one turn: messages, the next pass, what is to be said, or sleep."""
        node, scheduler = self.nodes[k], self.nodes[k].scheduler
        for message in node.inbox:
            if isinstance(message, DraftBlock):
                scheduler.on_drafts(message, self.now, waited=node.asleep)
            else:
                row = scheduler.on_verdict(message, self.now)
                if row is not None and row.standing.finished:
                    self._say(k, row)
                    scheduler.release(row.handle)
        node.inbox.clear()
        for row in scheduler.rows.values():
            self._say(k, row)
        tasks = scheduler.next_batch(self.now)
        if tasks:
            self._begin_pass(node, tasks)
            return
        node.asleep = True
        node.wake += 1
        self._at(max(self.now, scheduler.wake_at(self.now, _IDLE_S)), k, node.wake, None)

    def _begin_pass(self, node: _Node, tasks: list[Task]) -> None:
        node.tasks, node.asleep, node.started_s = tasks, False, self.now
        node.fed = 0
        for task in tasks:
            prefix, fed = len(task.work.prefix), task.prompt or 0
            if not task.unfinished:
                fed += prefix - min(node.held.get(task.row.handle, 0), prefix - 1) + len(task.work.drafts)
            node.fed += fed
        node.context = sum(task.row.context + len(task.work.prefix) for task in tasks)
        node.left_s = node.spec.cost.seconds(len(tasks), node.fed, node.context) + node.spec.overhead_s

    def _end_pass(self, k: int) -> None:
        node, tasks, seconds = self.nodes[k], self.nodes[k].tasks, self.now - self.nodes[k].started_s
        node.tasks = []
        node.scheduler.ran(tasks, node.fed, node.context, seconds)
        choices = [self._choices(k, task) for task in tasks]
        for task, settled in zip(tasks, node.scheduler.settle(tasks, choices, self.now), strict=True):
            self.out.drafted[k] += len(settled.added)
            node.held[task.row.handle] = len(task.work.prefix) + settled.accepted
            if k == len(self.nodes) - 1 and settled.added:
                self._answered(task.row)
        self.out.busy_s[k] += seconds
        if self.keep_passes:
            requests = tuple(task.row.handle for task in tasks)
            self.out.passes.append(Pass(k, node.started_s, self.now, requests, node.fed))
        self._turn(k)

    def _choices(self, k: int, task: Task) -> list[int]:
        work, request = task.work, task.row.handle
        if task.unfinished:
            return []
        drafts, before = work.drafts, len(work.prefix)
        along, out = work.prefix + drafts, list[int]()
        for j in range(len(drafts) + 1):
            out.append(self.tokens.choice(k, request, along[: before + j]))
            if j < len(drafts) and out[-1] != drafts[j]:
                return out + [out[-1]] * (len(drafts) - j)  # what follows a refused draft is not looked at
        return out

    def _say(self, k: int, row: ScheduledRow) -> None:
        for message in self.nodes[k].scheduler.outgoing(row, self.now):
            to = k + 1 if isinstance(message, DraftBlock) else k - 1
            self._at(self.now + self.links[min(k, to)].seconds(), to, 0, message)

    # -- requests ----------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """All that the clients ask who wait for nothing."""
        load = self.load
        while self.next_request < load.requests:
            if self.next_request - len(self.out.answers) >= load.streams_at(self.next_request + 1):
                return
            self._begin_request()

    def _begin_request(self) -> None:
        self.next_request += 1
        request, last = self.next_request, len(self.nodes) - 1
        self.began[request] = self.now
        for k, node in enumerate(self.nodes):
            if k < last and not self.load.speculate:
                continue
            standing = Standing(
                request=request,
                epoch=0,
                stage=k,
                limit=self.load.tokens,
                vocab_size=self.tokens.vocab_size,
                ends=frozenset(self.tokens.ends),
                window=None if k == last else self.window,
            )
            node.scheduler.admit(standing, self.now, expect_drafts=self.load.speculate, prompt=self.load.prompt)
            self._at(self.now, k, node.wake, None)

    def _answered(self, row: ScheduledRow) -> None:
        standing = row.standing
        if row.passes == 1:
            self.out.ttft_s.append(self.now - self.began[row.handle])
        if len(standing.prefix) < standing.limit and standing.prefix[-1] not in standing.ends:
            return
        last = len(self.nodes) - 1
        standing.finish(len(standing.prefix))
        self._say(last, row)
        self.nodes[last].scheduler.release(row.handle)
        self.out.answers[row.handle] = tuple(standing.prefix)
        self.out.tokens += len(standing.prefix)
        self.out.finished_at_s.append(self.now)
        self._ask()
