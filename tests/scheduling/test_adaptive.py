"""What the adaptive policy settles on, fed with figures by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cascade_runtime.messages import Grant, Verdict
from cascade_runtime.scheduling.adaptive import Adaptive
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.scheduling.policy import LockStep, Policy
from cascade_runtime.scheduling.scheduled_row import ScheduledRow
from cascade_runtime.scheduling.stage_scheduler import StageScheduler
from cascade_runtime.scheduling.standing import Standing
from cascade_runtime.scheduling.trial import Trial
from cascade_runtime.simulation import Agreement, Link, Load, Stage, simulate

COST = StepCost(base=0.05, per_token=0.0005)


def row(handle: int) -> ScheduledRow:
    return ScheduledRow(Standing(handle, 0, 2, 256, 1000, frozenset(), None), since=0.0, heard=0.0)


def run(policy: Adaptive, passes: int, *, rows: int, verified_us: tuple[int, int], relayed_us: tuple[int, int]) -> None:
    """Passes over `rows` rows with 6 drafts each, 9 in 10 of them right, whichever kind they are."""
    ready = [row(handle) for handle in range(rows)]
    for number in range(passes):
        policy.pick(ready, [])
        relayed = policy.relaying
        policy.observe_hints(*(relayed_us if relayed else verified_us), relayed=relayed)
        for handle in range(rows):
            policy.observe_settled(6, 6 if (number + handle) % 2 else 4, relayed=relayed)
        tokens = 7 * rows
        policy.observe_pass(rows, tokens, 64 * rows, COST.seconds(rows, tokens), COST.seconds(rows, tokens))
        policy.passed()


@pytest.mark.parametrize(("cores", "relays"), [(0, False), (2, True)])
def test_a_middle_level_that_costs_more_of_shared_cores_than_it_saves_is_relayed(cores: int, relays: bool) -> None:
    policy = Adaptive(COST, most=16, can_relay=True, cores=cores)
    # verified drafts come a little sooner and agree alike, but each costs three times as much of the cores
    run(policy, 400, rows=16, verified_us=(1000, 3000), relayed_us=(1100, 1000))
    assert policy.decision.relay is relays


def test_a_stage_tells_what_a_token_has_cost_with_all_levels_below() -> None:
    middle = Adaptive(COST, most=16, cores=2)
    middle.observe_hints(500, 1000, relayed=False)
    for _ in range(200):
        middle.observe_work(0.012, 8, 6)  # 12 ms of its own and 8 drafts of 1 ms for 6 tokens
    assert middle.work_us == pytest.approx(1e6 * (0.012 + 8 * 0.001) / 6, abs=1)


def test_a_drafter_slower_than_the_stage_itself_is_not_waited_for_however_little_is_known_of_it() -> None:
    policy = Adaptive(StepCost(base=0.02), most=16, first_wait=4)
    one = row(0)
    for _ in range(16):  # no draft was ever looked at: all came too late
        policy.pick([one], [])
        policy.observe_silence(0.05)
        policy.observe_pass(1, 1, 64, 0.02)
        policy.passed()
    assert policy.need(one) == 0


def test_figures_are_looked_at_although_every_pass_feeds_somebodys_prompt() -> None:
    scheduler = StageScheduler(1, 2, Adaptive(StepCost(base=0.02), most=16, first_wait=4), upstream_s=0.05)
    scheduler.admit(Standing(1, 0, 1, 256, 1000, frozenset(), None), 0.0, prompt=100_000)
    for number in range(16):
        tasks = scheduler.next_batch(float(number))
        scheduler.policy.observe_silence(0.05)  # another row's drafter
        scheduler.ran(tasks, 512, 0, 0.03)
        list(scheduler.settle(tasks, [[]], number + 0.5))
    assert scheduler.policy.decision.min_drafts == 0


def test_a_pass_that_captured_its_shape_is_neither_a_cost_nor_a_pace() -> None:
    scheduler = StageScheduler(0, 1, Adaptive(StepCost(base=0.02), most=16), upstream_s=0.05)
    scheduler.admit(Standing(0, 0, 1, 256, 1000, frozenset(), None), 0.0)
    now = 0.0
    for number in range(40):
        tasks = scheduler.next_batch(now)
        seconds = 3.0 if number in (3, 11, 29) else 0.02
        now += seconds
        scheduler.ran(tasks, 1, 64, seconds, first=seconds > 1)
        list(scheduler.settle(tasks, [[5]], now))
    assert scheduler.policy.pace_us == pytest.approx(20_000, rel=0.01)
    costs = scheduler.policy.costs  # type: ignore[attr-defined]
    assert costs.fit(False).seconds(1, 1, 64) == pytest.approx(0.02, rel=0.05)


def test_a_prompt_is_not_held_back_for_drafts() -> None:
    policy = Adaptive(StepCost(base=0.02), most=16, first_wait=4)
    ready, waiting = row(0), row(1)
    ready.prompt_left = 100
    policy.decision = replace(policy.decision, tokens_per_s=1.0)  # at that rate all waiting pays
    assert [each for each, _ in policy.pick([ready], [waiting])][:1] == [ready]
    ready.prompt_left = 0
    assert policy.pick([ready], [waiting]) == []
    policy.decision = replace(policy.decision, tokens_per_s=0.0)
    assert policy.pick([ready], [waiting])


def run_useless(policy: Adaptive, ready: list[ScheduledRow]) -> None:
    """One pass while nothing that is drafted is right."""
    policy.pick(ready, [])
    if policy.drafting:
        policy.observe_hints(1000, relayed=False)
        for _ in ready:
            policy.observe_settled(6, 0, relayed=False)
    policy.observe_pass(len(ready), 4 * len(ready), 64 * len(ready), 0.06)
    policy.passed()


def test_one_row_tries_drafts_again_and_waits_for_one_so_that_a_few_passes_tell() -> None:
    policy, ready = Adaptive(COST, most=16), [row(0), row(1)]
    while policy.drafting:
        run_useless(policy, ready)
    while not any(map(policy.need, ready)):
        run_useless(policy, ready)
    trying, other = sorted(ready, key=policy.need, reverse=True)
    assert (policy.need(trying), policy.need(other)) == (1, 0)
    assert (policy.grant(trying).window, policy.grant(other).window) == (4, 0)
    policy.pick([other], [trying])  # it waits, and stays the one
    assert policy.need(trying) == 1
    for number in range(8):
        policy.observe_silence(0.05)
        if number == 3:  # until it has spoken its drafter may be reading the prompt
            policy.observe_pass(1, 1, 64, 0.05)
            assert policy.need(trying) == 1
            policy.observe_hints(1000, relayed=False)
    policy.observe_pass(1, 1, 64, 0.05)
    assert (policy.need(trying), policy.grant(trying).window) == (0, 0)


def test_being_alone_is_tried_once_it_costs_a_hundredth_of_what_has_passed() -> None:
    policy = Adaptive(COST, most=16)
    ready = [row(0)]
    alone = []
    for number in range(1200):
        policy.pick(ready, [])
        policy.observe_hints(10_000, relayed=False)
        policy.observe_settled(2, number % 2, relayed=False)
        policy.observe_pass(1, 3 if policy.drafting else 1, 64, COST.seconds(1, 3 if policy.drafting else 1))
        policy.passed()
        if not policy.drafting:
            alone.append(number)
    held = policy.decision
    assert held.speculate
    lost = 1 - held.tokens_per_s_alone / held.tokens_per_s
    assert 0.1 < lost < 0.5
    assert 0 < len(alone) * lost <= 0.012 * 1200
    assert alone[0] * 0.01 > 0.8 * 8 * lost


def test_a_new_row_may_do_what_was_granted_last_but_in_lock_step_always_a_block() -> None:
    free, lock = Policy(0, sends=3), LockStep(4, sends=3)
    assert (free.first_grant().block, lock.first_grant()) == (3, Grant(3, 3))
    for policy in (free, lock):
        policy.observe_grant(Grant(0))
    assert (free.first_grant(), lock.first_grant()) == (Grant(4), Grant(3, 3))
    free.observe_grant(Grant(24, 2))
    assert free.first_grant() == Grant(24, 2)


@pytest.mark.parametrize("streams", [1, 4])
def test_a_useless_drafter_that_is_known_makes_next_to_no_drafts(streams: int) -> None:
    stages = [
        Stage("light", Policy(0), StepCost(0.001)),
        Stage("heavy", Adaptive(StepCost(0.02), most=32), StepCost(0.02)),
    ]
    load = Load(streams, 24, 64, prompt=100)
    result = simulate(stages, Agreement([0.0]), load, [Link(1e-4)])
    assert result.drafted[0] < 0.4 * result.tokens  # while every new row drafted a window first: several per token


@pytest.mark.parametrize(
    ("agreement", "step_s", "least", "most"),
    [(0.3, 0.0102, 0.96, 1.0), (0.77, 0.0102, 0.97, 1.0), (0.97, 0.001, 1.9, 2.3)],
)
def test_where_a_verification_takes_four_and_a_half_steps_drafts_are_used_only_if_they_bring_more(
    agreement: float, step_s: float, least: float, most: float
) -> None:
    cost = StepCost(0.0145, per_token=0.0001, several=0.0527)  # 4-bit weights, as recorded

    def tokens_per_s(*, speculate: bool) -> float:
        stages = [Stage("light", Policy(0), StepCost(step_s)), Stage("heavy", Adaptive(cost, most=32), cost)]
        load = Load(1, 40, 50, speculate=speculate)
        return simulate(stages, Agreement([agreement]), load, upstream_s=1.0).tokens_per_s

    assert least < tokens_per_s(speculate=True) / tokens_per_s(speculate=False) < most


def test_whoever_only_passes_drafts_on_grants_what_it_was_granted_although_it_wants_none_itself() -> None:
    middle = StageScheduler(1, 3, Policy(0, window=0), upstream_s=0.05)
    one = middle.admit(Standing(1, 0, 1, 64, 1000, frozenset(), 16), now=0.0)

    def granted(grant: Grant) -> list[Grant]:
        numbers[0] += 1
        middle.on_verdict(Verdict(1, 0, numbers[0], 0, (), (), False, grant), now=0.0)
        return [each.grant for each in middle.outgoing(one, now=0.0) if isinstance(each, Verdict)]

    numbers = [0]
    assert granted(Grant(8)) == [Grant(0)]
    assert granted(Grant(8, 3, relay=True)) == [Grant(8, 3)]
    assert granted(Grant(0, relay=True)) == [Grant(0)]
    assert granted(Grant(8, 3, relay=True)) == [Grant(8, 3)]
    assert granted(Grant(8)) == [Grant(0)]


def test_a_pace_that_has_changed_is_known_after_few_tokens_and_one_slow_token_is_not_a_pace() -> None:
    policy = Policy(0)
    for seconds in (0.2,) * 50 + (0.002,) * 12:
        policy.observe_pace(seconds, 1)
    assert policy.pace_us < 10_000
    for _ in range(50):
        policy.observe_pace(0.002, 1)
    policy.observe_pace(0.007, 1)
    assert policy.pace_us < 3_000


def test_a_trial_without_result_is_put_off_but_not_for_long_where_it_costs_nothing() -> None:
    dear, cheap = Trial(64), Trial(64)
    for number in range(1, 5):
        dear.over(1000 * number, changed=False, lost=2.0)
        cheap.over(1000 * number, changed=False, lost=0.1)
    assert (dear.every, cheap.every) == (400, 80)
    dear.over(9000, changed=False, lost=1.0)
    assert dear.due == 9000 + 200
    dear.over(9000, changed=False, lost=50.0)  # never more than a fiftieth of the time
    assert dear.due == 9000 + 2500
    dear.over(9000, changed=True, lost=50.0)
    assert dear.due == 9000 + 96


def test_figures_are_looked_at_soon_after_an_agreement_has_dropped() -> None:
    policy, ready = Adaptive(COST, most=16), [row(0)]

    def one(accepted: int) -> None:
        policy.pick(ready, [])
        policy.observe_hints(1000, relayed=False)
        policy.observe_settled(6, accepted, relayed=False)
        policy.observe_pass(1, 7, 64, COST.seconds(1, 7))
        policy.passed()

    for _ in range(320):
        one(6)
    assert policy.decision.max_drafts == 16
    for _ in range(24):  # once every 32 passes is as often as figures are looked at where nothing changes
        one(0)
    assert policy.decision.tokens_per_s < 1.5 * policy.decision.tokens_per_s_alone


def test_drafts_that_come_too_late_for_any_pass_are_no_speculation() -> None:
    policy, ready = Adaptive(COST, most=16), [row(0)]
    for _ in range(64):
        policy.pick(ready, [])
        policy.observe_hints(200_000, relayed=False)
        policy.observe_settled(1, 1, relayed=False)
        policy.observe_pass(1, 2, 64, COST.seconds(1, 2))
        policy.passed()
        if policy.decision.tokens_per_s:
            break
    assert (policy.decision.speculate, policy.decision.reason) == (False, "drafts come too late or are refused")
