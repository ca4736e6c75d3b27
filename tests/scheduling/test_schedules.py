"""The protocol under 10^5 random schedules of three and four stages, policies mixed at random, and as it is where the
lightest stage drafts trees: see `random_schedules`.

Plain random sources for the volume, a hypothesis state machine over the same toy for shrinking, and negative controls:
the protocol broken on purpose, which the same checks must notice.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from random_schedules import UPSTREAM_S, Fixed, Schedule, any_policy
from schedule_faults import Faults

from cascade_runtime.messages import DraftBlock, Verdict
from cascade_runtime.scheduling import branching
from cascade_runtime.scheduling.policy import Policy
from cascade_runtime.scheduling.rounds import Rounds
from cascade_runtime.scheduling.stage_scheduler import EARLY_BLOCKS, StageScheduler
from cascade_runtime.scheduling.standing import Standing

CASES, SCHEDULES = 24, 4_200  # 100,800 schedules in all; about .7 ms each
TREE_CASES, TREE_SCHEDULES = 4, 1_000
_POOL = 60  # schedules that share policies, as requests do in a stage


def run_schedules(seed: int, count: int, levels: tuple[int, ...] = (3, 4), **drawn: Any) -> Counter[str]:
    """`count` schedules from one seed. Raises `AssertionError` naming the schedule that broke a promise."""
    rng, seen = random.Random(seed), Counter[str]()
    pools: dict[int, list[list[Policy]]] = {}
    for number in range(count):
        if number % _POOL == 0:
            pools = {count: [[any_policy(rng, k) for _ in range(2)] for k in range(count)] for count in levels}
        policies = [rng.choice(pool) for pool in pools[rng.choice(levels)]]
        schedule = Schedule(rng, policies, Faults.drawn(rng), **drawn)
        try:
            seen += schedule.run().seen
        except AssertionError as broken:
            raise AssertionError(f"seed {seed}, schedule {number}: {broken}") from broken
    return seen


@pytest.mark.parametrize("seed", range(CASES))
def test_no_schedule_changes_an_answer_keeps_a_row_or_grows_without_bound(seed: int) -> None:
    seen = run_schedules(seed, SCHEDULES)
    for fault in ("lost", "repeated", "reordered", "stale", "gap", "forged", "spoilt", "died", "cancelled"):
        assert seen[fault] > 100, fault  # it happened at all; by chance fewer: once in more than 10^20 runs
    assert seen["no slot"] > 100 and seen["overtaken"] > 10
    assert seen["accepted"] > 500 and seen["rejected"] > 500


@pytest.mark.parametrize("seed", range(TREE_CASES))
def test_no_schedule_of_trees_does_either(seed: int) -> None:
    seen = run_schedules(1000 + seed, TREE_SCHEDULES, levels=(2, 3, 4), trees=True)
    for fault in ("lost", "repeated", "reordered", "stale", "gap", "forged", "spoilt", "died", "cancelled"):
        assert seen[fault] > 100, fault
    assert seen["accepted"] > 300 and seen["branched"] > 150


def test_requests_far_beyond_the_slots_are_all_answered() -> None:
    for seed in range(150):
        rng = random.Random(seed)
        policies = [any_policy(rng, k) for k in range(3)]
        schedule = Schedule(rng, policies, Faults(lost=0.2, forged=0.2), requests=12)
        schedule.slots = [1, 2, 1]
        schedule.run()


def test_drafts_for_requests_that_nobody_knows_are_forgotten_the_oldest_first() -> None:
    stage = StageScheduler(1, 3, Policy(2), UPSTREAM_S)
    for request in range(10 * EARLY_BLOCKS):
        stage.on_drafts(DraftBlock(request, 1, 0, (1, 2), (1, 1), 0), 0.0)
    assert list(stage.early) == list(range(9 * EARLY_BLOCKS, 10 * EARLY_BLOCKS))


def test_a_verdict_that_overtakes_its_admission_is_taken_in_and_so_many_are_kept() -> None:
    stage = StageScheduler(0, 2, Policy(0), UPSTREAM_S)
    for request in range(EARLY_BLOCKS + 2):
        for seq in (1, 2):  # the newest says all
            stage.on_verdict(Verdict(request, 1, seq, 0, (7, 8, 9)[: seq + 1], (2,) * (seq + 1), False), 0.0)
    assert list(stage.overtook) == list(range(2, EARLY_BLOCKS + 2))
    row = stage.admit(Standing(5, 1, 0, 64, 100, frozenset(), 8), 0.0)
    assert row.standing.prefix == [7, 8, 9] and row.standing.confirmed == 3
    assert 5 not in stage.overtook
    stage.release(6)
    assert 6 not in stage.overtook
    stage.renew_downstream(2, 0.0)
    assert not stage.overtook


# -- the checks notice what they are there for -----------------------------------------------------------------------


def _drafts_are_state(standing: Standing, block: DraftBlock) -> bool:
    """Stand by whatever is drafted, unlooked at."""
    if block.base > len(standing.prefix) or standing.finished:
        return False
    at = len(standing.prefix) - block.base
    standing.prefix += block.tokens[at:][: standing.limit - len(standing.prefix)]
    standing.stages += [1] * (len(standing.prefix) - len(standing.stages))
    return True


def _settles_drafts_unseen(standing: Standing, work: Any, choices: Any) -> Any:
    """Take every draft for right."""
    return _SETTLE(standing, work, [*work.drafts, choices[len(work.drafts)]])


def _ends_are_ignored(standing: Standing, work: Any, choices: Any) -> Any:
    """Go on behind an end of sequence inside a block."""
    ends, standing.ends = standing.ends, frozenset()
    settled = _SETTLE(standing, work, choices)
    standing.ends = ends
    return settled


def _keeps_rows(stage: StageScheduler, handle: int) -> None:
    """Release nothing."""


def _hints_pile_up(standing: Standing, block: DraftBlock) -> bool:
    """Append where a block should replace."""
    standing.hints += block.tokens
    standing.hint_stages += [1] * len(block.tokens)
    return True


def _waits_for_ever(stage: StageScheduler, row: Any) -> float:
    """A row without a deadline: a lost message is never made up for."""
    return float("inf")


_SETTLE, _ON_VERDICT = Standing.settle, Standing.on_verdict

BROKEN: list[tuple[type, str, Callable[..., Any], str]] = [
    (Standing, "on_drafts", _drafts_are_state, "answer"),
    (Standing, "settle", _settles_drafts_unseen, "the answer has changed"),
    (Standing, "settle", _ends_are_ignored, "answer"),
    (StageScheduler, "release", _keeps_rows, "keeps rows|never answered"),
    (Standing, "on_drafts", _hints_pile_up, "hints pile up"),
    (StageScheduler, "_due", _waits_for_ever, "never answered"),
]


@pytest.mark.parametrize(
    ("owner", "method", "broken", "complaint"), BROKEN, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_broken_protocol_is_noticed(
    monkeypatch: pytest.MonkeyPatch, owner: type, method: str, broken: Callable[..., Any], complaint: str
) -> None:
    monkeypatch.setattr(owner, method, broken)
    with pytest.raises(AssertionError, match=complaint):
        run_schedules(seed=0, count=600)


def _settles_unseen(tokens: Any, parents: Any, choices: Any) -> list[int]:
    """Take the first path of a tree for right."""
    return branching.first_path(parents)


def test_a_tree_that_nobody_looked_along_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branching, "follow", _settles_unseen)
    with pytest.raises(AssertionError, match="the answer has changed"):
        run_schedules(seed=0, count=600, levels=(2, 3), trees=True)


def calm_passes(count: int, trees: bool = False) -> float:
    """Passes of the target per token, three stages in turn over perfect links, two where trees are drafted. A stage
    that is stuck on a wrong prefix only shows here: the answers are right, and the target decodes alone."""
    passes = tokens = 0
    for seed in range(count):
        rng = random.Random(seed)
        policies = [Fixed(0, 16), Rounds()] if trees else [Fixed(0, 16), Fixed(2, 16), Fixed(3, 16)]
        schedule = Schedule(rng, policies, Faults(), requests=1, limit=40, trees=trees)
        schedule.agreement, schedule.slots, schedule.window = [0.8, *[0.9, 1.0][-len(policies) + 1 :]], [1, 1, 1], 16
        schedule.take = _take_all  # type: ignore[method-assign]
        for _ in range(3_000):
            schedule.now += 0.0005
            for k in range(len(policies)):
                schedule.turn(k)
            if schedule.over:
                break
        schedule.check_end()
        passes, tokens = passes + schedule.seen["passes"], tokens + len(schedule.requests[0].expected)
    return passes / tokens


def _take_all(link: list[DraftBlock | Verdict], on_message: Callable[[DraftBlock | Verdict], None]) -> None:
    while link:
        on_message(link.pop(0))


def _shorter_is_older(standing: Standing, verdict: Verdict) -> bool:
    """Order verdicts by their length."""
    if verdict.base + len(verdict.tokens) < len(standing.prefix):
        return False
    return _ON_VERDICT(standing, verdict)


def test_corrections_keep_their_speed_and_verdicts_ordered_by_length_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = calm_passes(60)
    monkeypatch.setattr(Standing, "on_verdict", _shorter_is_older)
    assert 0.1 < sound < 0.45 and calm_passes(60) > 1.15 * sound


def test_trees_keep_their_speed_and_a_drafter_that_never_drops_its_tree_would_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sound = calm_passes(60, trees=True)
    adopt = Standing._adopt

    def keeps_its_tree(standing: Standing, *said: Any) -> None:
        tree = standing.planted
        adopt(standing, *said)
        standing.planted = tree

    monkeypatch.setattr(Standing, "_adopt", keeps_its_tree)
    assert 0.1 < sound < 0.7 and calm_passes(60, trees=True) > 1.3 * sound


# -- the same toy, driven by hypothesis ------------------------------------------------------------------------------

STAGES = st.integers(0, 3)
LINKS = st.integers(0, 5)


class AnyOrder(RuleBasedStateMachine):
    """Four stages; hypothesis decides whose turn it is, what becomes of a message, and what else goes wrong."""

    @initialize(seed=st.integers(0, 2**20), trees=st.booleans())
    def begin(self, seed: int, trees: bool) -> None:
        """A new toy."""
        rng = random.Random(seed)
        self.schedule = Schedule(rng, [any_policy(rng, k) for k in range(4)], Faults(), trees=trees)

    def link(self, which: int) -> list[DraftBlock | Verdict]:
        """One of the six."""
        return [*self.schedule.down, *self.schedule.up][which]

    @rule(k=STAGES)
    def turn(self, k: int) -> None:
        """A stage works."""
        if k != self.schedule.dead:
            self.schedule.turn(k)

    @rule(seconds=st.sampled_from((0.001, 0.06, 0.3)))
    def tick(self, seconds: float) -> None:
        """Time passes."""
        self.schedule.now += seconds

    @rule(which=LINKS)
    def lose(self, which: int) -> None:
        """The oldest message is lost."""
        del self.link(which)[:1]

    @rule(which=LINKS)
    def repeat(self, which: int) -> None:
        """The oldest message comes again, last."""
        self.link(which).extend(self.link(which)[:1])

    @rule(which=LINKS)
    def reorder(self, which: int) -> None:
        """The newest message comes first."""
        if link := self.link(which):
            link.insert(0, link.pop())

    @rule(which=LINKS)
    def forge(self, which: int) -> None:
        """Somebody else speaks."""
        if link := self.link(which):
            link.append(self.schedule.forge(link[0]))

    @rule(which=st.integers(0, 1))
    def cancel(self, which: int) -> None:
        """The user has gone."""
        self.schedule.cancel(self.schedule.requests[which % len(self.schedule.requests)])

    @precondition(lambda self: self.schedule.dead is None)
    @rule(k=st.integers(0, 2), told=st.booleans())
    def die(self, k: int, told: bool) -> None:
        """A drafter stops."""
        self.schedule.die(k, told=told)

    def teardown(self) -> None:
        """From here on nothing goes wrong: everyone is answered."""
        if hasattr(self, "schedule"):
            self.schedule.run()


AnyOrder.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
