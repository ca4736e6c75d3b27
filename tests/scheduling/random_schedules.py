"""A toy cascade under a hostile schedule: the stages' own schedulers and policies, with every fault the links may have.

One `Schedule` is one run: a few requests, two to four stages, fewer slots than requests, links that lose, repeat,
reorder, delay, forge and refuse, commands that overtake each other, cancellations, a stage that dies. The lightest
stage drafts chains, or trees. Everything is drawn from one random source. `run` checks as it goes and raises
`AssertionError` where a promise is broken:

    the answer is the target's own        at every token, not only at the end
    every row is released                 finished, cancelled or never begun
    nothing grows without bound           hints, prefixes, early blocks, unacknowledged verdicts, messages per turn
    it ends                               whatever is lost, within `_TURNS` turns
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from schedule_faults import Faults
from toy_answers import END, VOCAB, answer, says, truth

from cascade_runtime.messages import MAX_TREE_NODES, DraftBlock, Grant, Verdict
from cascade_runtime.scheduling.adaptive import Adaptive
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.scheduling.policy import FreeRunning, LockStep, Policy, PreVerify
from cascade_runtime.scheduling.rounds import Rounds
from cascade_runtime.scheduling.scheduled_row import ScheduledRow
from cascade_runtime.scheduling.stage_scheduler import EARLY_BLOCKS, StageScheduler, Task
from cascade_runtime.scheduling.standing import Standing
from cascade_runtime.scheduling.work import Grown

UPSTREAM_S = 0.05
_TURNS = 5_000
_LINK = 6  # messages a link holds; more are refused
_FORGED = 6  # tokens of a forged message, at most
_TICKS_S = (0.0, 0.0, 0.001, 0.001, 0.004, 0.02, 0.3)


class Fixed(Policy):
    """At least m drafts, and as many as there are."""

    def limit(self, row: ScheduledRow) -> int:
        """Everything."""
        return 0 if row.alone else 64


def any_policy(rng: random.Random, stage: int, adaptive: float = 0.1) -> Policy:
    """A policy of any kind for a stage. adaptive: how often it is one that measures."""
    wait, sends = rng.randint(0, 4) if stage else 0, rng.randint(1, 3)
    if stage and rng.random() < adaptive:
        cost = StepCost(0.004, 1e-4, 1e-4)
        return Adaptive(cost, most=6, first_wait=wait, sends=sends, can_relay=stage > 1, patient=rng.random() < 0.5)
    if stage == 1 and rng.random() < 0.2:
        return Rounds(sends, measures=rng.random() < 0.5)
    if rng.random() < 0.25:
        return LockStep(wait, sends)
    if stage and rng.random() < 0.1:
        window = rng.choice((1, 3, 6, 64))
        return FreeRunning(window, sends) if rng.random() < 0.5 else PreVerify(wait, window, sends)
    kind = Fixed if rng.random() < 0.5 else Policy
    return kind(wait, rng.choice((0, 1, 3, 6, 64)), rng.randint(1, 4), sends)


@dataclass(eq=False)
class Request:
    """One question: its number, what the target will say to it, and how it ended."""

    number: int
    limit: int
    seed: int
    expected: list[int]
    said: list[int] | None = None
    so_far: tuple[int, ...] = ()  # what the controller has heard
    cancelled: bool = False


class Schedule:
    """One run. `seen` counts what happened, so that a test can tell that it happened at all."""

    def __init__(
        self,
        rng: random.Random,
        policies: list[Policy],
        faults: Faults,
        requests: int = 2,
        limit: int = 9,
        trees: bool = False,
    ) -> None:
        self.rng, self.faults, self.levels, self.trees = rng, faults, len(policies), trees
        self.seen: Counter[str] = Counter()
        self.now = 0.0
        self.agreement = [rng.choice((0.0, 0.6, 0.9, 1.0)) for _ in policies]
        self.stages = [
            StageScheduler(k, self.levels, policy, UPSTREAM_S, prefill_tokens=4) for k, policy in enumerate(policies)
        ]
        self.slots = [rng.randint(1, 3) for _ in policies]
        self.down: list[list[DraftBlock | Verdict]] = [[] for _ in range(self.levels - 1)]
        self.up: list[list[DraftBlock | Verdict]] = [[] for _ in range(self.levels - 1)]
        self.window = rng.choice((1, 3, 8))
        self.requests = [self._request(number + 1, rng.randint(1, limit)) for number in range(rng.randint(1, requests))]
        self.by_number = {request.number: request for request in self.requests}
        self.commands: list[list[tuple[str, Request]]] = [[("admit", r) for r in self.requests] for _ in policies]
        self.released: list[set[int]] = [set() for _ in policies]
        self.dead: int | None = None
        self.dies_at = rng.randint(1, 40) if faults.dies else 0
        self.revives_at = self.dies_at + rng.randint(1, 60)
        self.epochs = [1] * self.levels  # of the link from each stage to the next
        self.cancels_at = rng.randint(1, 40) if faults.cancels else 0

    def _request(self, number: int, limit: int) -> Request:
        seed = self.rng.getrandbits(40)
        return Request(number, limit, seed, answer(seed, limit))

    # -- running -----------------------------------------------------------------------------------------------------

    def run(self) -> Schedule:
        """Until everything is answered or cancelled, and every command obeyed."""
        for turn in range(_TURNS):
            self.step(turn, self.rng.randrange(self.levels))
            if self.over:
                break
        self.check_end()
        return self

    @property
    def over(self) -> bool:
        """Nobody waits for anything any more."""
        commands = (waiting for k, waiting in enumerate(self.commands) if k != self.dead)
        return not any(commands) and all(r.cancelled or r.said is not None for r in self.requests)

    def step(self, turn: int, k: int) -> None:
        """Time passes, and one stage has its turn."""
        self.now += self.rng.choice(_TICKS_S)
        if turn == self.dies_at and self.faults.dies:
            self.die(self.rng.randrange(self.levels - (not self.faults.revives)), told=self.rng.random() < 0.5)
        if turn == self.revives_at and self.faults.revives and self.dead is not None:
            self.revive(self.dead)
        if turn == self.cancels_at and self.faults.cancels:
            self.cancel(self.rng.choice(self.requests))
        if k != self.dead:
            self.turn(k)

    def die(self, k: int, *, told: bool) -> None:
        """A stage stops. told: the neighbours' links say so."""
        self.dead = k
        self.seen["died"] += 1
        if told and k < self.levels - 1:
            self.stages[k + 1].upstream.clear()
        if told and k:
            self.stages[k - 1].downstream.clear()

    def revive(self, k: int) -> None:
        """Another takes its place, knows nothing, and is told of every request that is not over. What the first said
        still lies in the links.
        """
        self.dead = None
        self.seen["revived"] += 1
        self.seen["target revived"] += k == self.levels - 1
        self.stages[k] = StageScheduler(k, self.levels, self.stages[k].policy, UPSTREAM_S, prefill_tokens=4)
        for edge in {k - 1, k} & set(range(self.levels - 1)):
            self.epochs[edge] += 1
            self.stages[edge].renew_downstream(self.epochs[edge], self.now)
            self.stages[edge + 1].renew_upstream(self.epochs[edge], self.now)
        waiting = {request.number for verb, request in self.commands[k] if verb == "admit"}
        for request in self.requests:
            if request.said is None and request.number not in waiting:
                self.commands[k].append(("admit", request))

    def cancel(self, request: Request) -> None:
        """Release it everywhere, admitted or not."""
        if request.said is None and not request.cancelled:
            request.cancelled = True
            self.seen["cancelled"] += 1
            for waiting in self.commands:
                waiting.append(("release", request))

    def turn(self, k: int) -> None:
        """What an actor's loop does: commands, messages, a pass, what is to be said."""
        stage, rng = self.stages[k], self.rng
        if self.commands[k] and rng.random() < 0.6:
            self.obey(k, rng.randrange(len(self.commands[k])))
        if k:
            self.take(self.down[k - 1], lambda block: self.on_drafts(k, block))
        if k < self.levels - 1:
            self.take(self.up[k], lambda verdict: self.on_verdict(k, verdict))
        tasks = stage.next_batch(self.now)
        if tasks:
            self.extend(k, tasks)
        for row in list(stage.rows.values()):
            self.publish(k, row)
        self.check_stage(k)

    def obey(self, k: int, which: int) -> None:
        """One command of the controller's, in any order: a release may overtake its admission."""
        verb, request = self.commands[k][which]
        stage = self.stages[k]
        if verb == "release":
            stage.release(request.number)
            self.released[k].add(request.number)
        elif request.number in self.released[k]:
            self.seen["overtaken"] += 1
        elif len(stage.rows) >= self.slots[k]:
            self.seen["no slot"] += 1
            return
        else:
            standing = Standing(
                request=request.number,
                epoch=1,
                stage=k,
                limit=request.limit,
                vocab_size=VOCAB,
                ends=frozenset({END}),
                window=None if k == self.levels - 1 else self.window,
                slot=request.limit + (self.rng.choice((0, 3, 64)) if self.trees else 0),
                prefix=list(request.so_far),
                stages=[1 << self.levels - 1] * len(request.so_far),
            )
            standing.renew_upstream(self.epochs[k - 1])
            standing.renew_downstream(self.epochs[k])
            drafts = self.rng.random() < 0.95
            stage.admit(standing, self.now, expect_drafts=drafts, prompt=self.rng.choice((0, 0, 3, 9)))
        del self.commands[k][which]

    def extend(self, k: int, tasks: list[Task]) -> None:
        """A pass of the toy model, and its settlement."""
        stage, last = self.stages[k], k == self.levels - 1
        stage.ran(tasks, len(tasks), 0, self.rng.choice((0.001, 0.004)))
        sound: list[Task] = []
        for task in tasks:
            if self.faults.spoilt and task.work.drafts and self.rng.random() < self.faults.spoilt:
                task.row.alone = True  # as where a draft's logits were no numbers
                task.row.standing.drop_hints()
                self.seen["spoilt"] += 1
            else:
                sound.append(task)
        choices = [self.grow(task) if self.trees and not k else self.choose(k, task) for task in sound]
        for task, settled in zip(sound, stage.settle(sound, choices, self.now), strict=True):
            self.seen["accepted"] += settled.accepted * last
            self.seen["rejected"] += (settled.drafted - settled.accepted) * last
            self.seen["branched"] += settled.accepted * (k == 1)
            self.seen["passes"] += last
            if last and settled.added:
                self.answered(task.row)

    def choose(self, k: int, task: Task) -> list[int]:
        """The model's choice after each position."""
        if task.unfinished:
            return []
        seed, work = self.by_number[task.row.handle].seed, task.work
        assert len(work.prefix) + len(work.drafts) <= max(task.row.standing.slot, len(work.prefix)), "beyond the slot"
        prefixes = [work.prefix]
        for node in range(len(work.drafts)):
            parent = node - 1 if work.parents is None else work.parents[node]
            prefixes.append(prefixes[parent + 1] + work.drafts[node : node + 1])
        if k == self.levels - 1:
            return [truth(seed, prefix) for prefix in prefixes]
        return [says(seed, k, self.agreement[k], prefix) for prefix in prefixes]

    def grow(self, task: Task) -> Grown | list[int]:
        """A tree of the lightest stage: its own choice among others, or others alone, or nothing."""
        if task.unfinished:
            return []
        rng, tokens, parents = self.rng, list[int](), list[int]()
        prefixes, seed = [task.work.prefix], self.by_number[task.row.handle].seed
        for _ in range(rng.choice((0, 1, 4, 12))):
            parent = rng.randrange(-1, len(tokens)) if rng.random() < 0.5 else len(tokens) - 1
            own = says(seed, 0, self.agreement[0], prefixes[parent + 1])
            tokens.append(own if rng.random() < 0.7 else rng.randrange(VOCAB))
            parents.append(parent)
            prefixes.append((*prefixes[parent + 1], tokens[-1]))
        return Grown(tuple(tokens), tuple(parents))

    def answered(self, row: ScheduledRow) -> None:
        """The target has grown: compare, and where it is done, release the request everywhere."""
        request, standing = self.by_number[row.handle], row.standing
        self.compare(request, standing.prefix)
        if self.rng.random() < 0.5:
            request.so_far = tuple(standing.prefix[: request.limit - 1])
        if standing.prefix[-1] != END and len(standing.prefix) < request.limit:
            return
        assert len(standing.prefix) == len(request.expected), "an answer of another length"
        standing.finish(len(standing.prefix))
        self.publish(self.levels - 1, row)
        self.stages[-1].release(row.handle)
        request.said = list(standing.prefix)
        for k, waiting in enumerate(self.commands):
            if k < self.levels - 1 and not request.cancelled:
                waiting.append(("release", request))

    def compare(self, request: Request, prefix: list[int]) -> None:
        """What the target stands by is what it would have said alone."""
        assert prefix == request.expected[: len(prefix)], "the answer has changed"

    # -- links -------------------------------------------------------------------------------------------------------

    def publish(self, k: int, row: ScheduledRow) -> None:
        """Put what a row has to say on the links."""
        said = list(self.stages[k].outgoing(row, self.now))
        assert len(said) <= 2
        for message in said:
            if isinstance(message, DraftBlock):
                self.put(self.down[k], message)
            elif k:
                self.put(self.up[k - 1], message)

    def put(self, link: list[DraftBlock | Verdict], message: DraftBlock | Verdict) -> None:
        """Send over a bad link."""
        rng, faults, seen = self.rng, self.faults, self.seen
        if faults.stale and rng.random() < faults.stale:
            link.append(replace(message, epoch=message.epoch + rng.choice((-1, 1))))
            seen["stale"] += 1
        if faults.gap and rng.random() < faults.gap:
            link.append(replace(message, base=message.base + rng.randint(1, 4)))
            seen["gap"] += 1
        if faults.forged and rng.random() < faults.forged:
            link.append(self.forge(message))
            seen["forged"] += 1
        if rng.random() < faults.lost or len(link) >= _LINK:
            seen["lost"] += 1
            del link[_LINK:]
            return
        link.append(message)
        if rng.random() < faults.repeated:
            link.append(message)
            seen["repeated"] += 1
        if rng.random() < faults.reordered:
            link.insert(rng.randint(0, len(link) - 1), link.pop())
            seen["reordered"] += 1
        del link[_LINK:]

    def forge(self, message: DraftBlock | Verdict) -> DraftBlock | Verdict:
        """A well-formed message that nobody has said: conflicting tokens, any position and number, the end declared."""
        rng = self.rng
        tokens = tuple(rng.randrange(VOCAB + 2) for _ in range(rng.randint(0, _FORGED)))
        masks = tuple(rng.randint(1, 15) for _ in tokens)
        request = message.request if rng.random() < 0.8 else rng.getrandbits(30)
        base, number, ended = rng.randint(0, 8), rng.choice((0, 1, 3, 9, 2**32 - 1)), rng.random() < 0.2
        if isinstance(message, DraftBlock):
            tree = None if rng.random() < 0.5 else tuple(rng.randrange(-1, node) for node in range(len(tokens)))
            pace = rng.choice((0, 1, 2**32 - 1))
            return DraftBlock(request, 1, base, tokens, masks, number, ended, pace, parents=tree)
        grant = Grant(rng.choice((0, 1, 65535)), rng.randint(1, 9), rng.random() < 0.5)
        return Verdict(request, 1, number, base, tokens, masks, ended, grant)

    def take(self, link: list[DraftBlock | Verdict], on_message: Callable[[DraftBlock | Verdict], None]) -> None:
        """Some of what has arrived."""
        for _ in range(self.rng.randint(0, 3)):
            if not link:
                return
            on_message(link.pop(0))

    def on_drafts(self, k: int, block: DraftBlock | Verdict) -> None:
        """Downstream."""
        assert isinstance(block, DraftBlock)
        if block.request not in self.released[k]:
            self.stages[k].on_drafts(block, self.now, waited=self.rng.random() < 0.5)

    def on_verdict(self, k: int, verdict: DraftBlock | Verdict) -> None:
        """Upstream; a request that has ended below ends here."""
        assert isinstance(verdict, Verdict)
        if verdict.request in self.released[k]:
            return
        row = self.stages[k].on_verdict(verdict, self.now)
        if row is not None and row.standing.finished:
            self.publish(k, row)
            self.stages[k].release(row.handle)

    # -- promises ----------------------------------------------------------------------------------------------------

    def check_stage(self, k: int) -> None:
        """Nothing in it is larger than it may be."""
        stage = self.stages[k]
        assert len(stage.early) <= EARLY_BLOCKS, "early blocks pile up"
        assert len(stage.overtook) <= EARLY_BLOCKS, "early verdicts pile up"
        assert len(stage.rows) <= self.slots[k], "more rows than slots"
        for row in stage.rows.values():
            standing = row.standing
            assert len(standing.prefix) <= standing.limit, "beyond the limit"
            assert len(standing.stages) == len(standing.prefix), "a token without its stages"
            most = standing.limit + _FORGED if standing.hint_parents is None else MAX_TREE_NODES
            assert len(standing.hint_stages) == len(standing.hints) <= most, "hints pile up"
            assert standing.hint_parents is None or len(standing.hint_parents) == len(standing.hints)
            assert len(standing._outstanding) <= 1024, "verdicts pile up"

    def check_end(self) -> None:
        """Everyone has the target's own answer, and no row is left anywhere."""
        for request in self.requests:
            assert request.cancelled or request.said == request.expected, "never answered"
        for k, stage in enumerate(self.stages):
            assert k == self.dead or not stage.rows, f"stage {k} keeps rows"
