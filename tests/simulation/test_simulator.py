"""The simulator against figures that are known without it."""

from __future__ import annotations

import pytest

from benchmarks.simulator import COST_1B, COST_8B, PUBLISHED, REFERENCE, TwoStages, asynchronous, over_alone
from cascade_runtime.errors import InputError
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.scheduling.policy import LockStep, Policy
from cascade_runtime.simulation import Agreement, Device, Link, Load, Stage, simulate

NEVER_S = 1e9


def stage(cost_s: float, policy: Policy | None = None, device: Device | None = None) -> Stage:
    return Stage("stage", policy or Policy(0), StepCost(cost_s), device)


@pytest.mark.parametrize("agreement", [0.5, 0.7])
def test_two_stages_reach_the_reference_values(agreement: float) -> None:
    sync, zero, best, m = REFERENCE[agreement, 20]
    stages = TwoStages(agreement, 20, passes=2000)
    assert stages.synchronous() == pytest.approx(sync, rel=0.03)
    assert stages.asynchronous(0) == pytest.approx(zero, rel=0.03)
    assert stages.asynchronous(m) == pytest.approx(best, rel=0.05)  # a drafter's step that has begun is ended first


def test_what_pipespec_discards_follows_from_its_synchronous_ratio() -> None:
    result = asynchronous([COST_1B], [0.921])  # as fitted by `benchmarks.simulator --pipespec`
    assert 1 - result.tokens / result.drafted[0] == pytest.approx(PUBLISHED["discarded_share"], abs=0.02)


def test_pipespecs_asynchronous_ratios_are_predicted_within_a_tenth() -> None:
    two, three = asynchronous([COST_8B], [0.942]), asynchronous([COST_1B, COST_8B], [0.893, 0.942])
    assert over_alone(two) == pytest.approx(PUBLISHED["async_2_level"], rel=0.1)
    assert over_alone(three) == pytest.approx(PUBLISHED["async_3_level"], rel=0.1)
    assert over_alone(three) > over_alone(two)


def test_alone_the_target_takes_one_pass_a_token() -> None:
    result = simulate([stage(0.1), stage(1.0)], Agreement([0.9]), Load(1, 2, 10, speculate=False))
    assert result.seconds == pytest.approx(20.0) and result.busy_s == [0, pytest.approx(20.0)]


def test_lock_step_with_perfect_drafts_takes_a_block_and_a_pass_in_turn_however_long_a_pass_is() -> None:
    """A drafter that repeats its last block while it waits must not make the target run without drafts."""
    drafter, target = stage(0.2, LockStep(0, 4)), stage(5.0, LockStep(4))
    result = simulate([drafter, target], Agreement([1.0]), Load(1, 1, 50), upstream_s=NEVER_S)
    assert result.busy_s[1] == pytest.approx(10 * 5.0)
    assert result.tokens_per_s == pytest.approx(5 / (4 * 0.2 + 5.0), rel=0.02)


def test_the_answer_is_the_targets_own_whatever_the_drafters_say() -> None:
    load = Load(streams=3, requests=6, tokens=30)
    alone = simulate([stage(1.0)], Agreement([]), load)
    for agreement in (0.0, 0.6, 1.0):
        together = simulate([stage(0.1), stage(1.0, Policy(3))], Agreement([agreement]), load)
        assert together.answers == alone.answers


def test_stages_that_share_a_device_share_its_speed() -> None:
    load = Load(1, 4, 40)
    both = Device("one", 1.0)
    apart = simulate([stage(0.5), stage(1.0, Policy(1))], Agreement([0.9]), load)
    shared = simulate([stage(0.5, device=both), stage(1.0, Policy(1), both)], Agreement([0.9]), load)
    wide = Device("two", 2.0)
    same = simulate([stage(0.5, device=wide), stage(1.0, Policy(1), wide)], Agreement([0.9]), load)
    assert shared.seconds > 1.2 * apart.seconds and same.seconds == pytest.approx(apart.seconds)


def test_a_slow_link_delays_every_correction() -> None:
    def seconds(latency_s: float) -> float:
        stages = [stage(0.1, LockStep(0, 3)), stage(1.0, LockStep(3))]
        load = Load(1, 1, 40)
        return simulate(stages, Agreement([0.5]), load, [Link(latency_s)], upstream_s=NEVER_S).seconds

    assert seconds(0.5) > seconds(0.0) + 15 * 2 * 0.5


def test_an_end_of_sequence_ends_an_answer() -> None:
    class Short(Agreement):
        ends = (7,)

        def choice(self, stage: int, request: int, prefix: tuple[int, ...]) -> int:
            return 7 if len(prefix) == 5 else 1

    result = simulate([stage(0.1), stage(1.0, Policy(3))], Short([1.0]), Load(1, 3, 50))
    assert set(result.answers.values()) == {(1, 1, 1, 1, 1, 7)} and len(result.answers) == 3


def test_chances_by_position_are_used_by_position() -> None:
    tokens = Agreement([(1.0, 0.0)])
    agreed = [tokens.choice(0, 1, (1,) * n) == tokens.choice(1, 1, (1,) * n) for n in range(6)]
    assert agreed == [True, False] * 3
    with pytest.raises(InputError, match="agreement"):
        Agreement([()])


def test_links_must_join_the_stages() -> None:
    with pytest.raises(InputError, match="links"):
        simulate([stage(1.0)], Agreement([]), Load(), [Link()])


class Busier(Load):
    """Two clients, from the fourth request on four."""

    def streams_at(self, request: int) -> int:
        return 2 if request < 4 else 4


class Farther(Link):
    def seconds(self) -> float:
        return 0.25


def test_clients_and_links_may_change_during_a_run() -> None:
    policy = Policy(0)
    result = simulate([stage(1.0, policy)], Agreement([]), Busier(2, 11, 1), keep_passes=True)
    assert [len(each.requests) for each in result.passes] == [2, 4, 4, 1]
    drafter, target = stage(1.0, LockStep(0, 1)), stage(1.0, LockStep(1))
    result = simulate([drafter, target], Agreement([1.0]), Load(1, 1, 4), [Farther()], upstream_s=NEVER_S)
    assert result.seconds == pytest.approx(2.25 + 0.25 + 2.25)  # a draft, its way, a pass; a verdict's way; again
