"""PEARL and DSI as closed forms: reference values, and free-running stages beside them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from benchmarks.schedules import SETTINGS, dsi, dsi_lookahead, pearl
from benchmarks.simulator import NEVER_S, TwoStages
from cascade_runtime.config import load_recipe
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.scheduling.from_recipe import policy_from_recipe
from cascade_runtime.scheduling.policy import FreeRunning, Policy, PreVerify
from cascade_runtime.simulation import Agreement, Load, Result, Stage, simulate

RECIPES = Path(__file__).parents[2] / "benchmarks" / "recipes" / "schedules"

PEARL = dict(zip(SETTINGS, (1.32, 1.33, 1.80, 1.93, 1.95), strict=True))
DSI = dict(zip(SETTINGS, (1.67, 1.90, 2.27, 2.70, 2.99), strict=True))


@pytest.mark.parametrize(("agreement", "ratio"), SETTINGS)
def test_reference_values(agreement: float, ratio: int) -> None:
    assert pearl(agreement, ratio, ratio) == pytest.approx(PEARL[agreement, ratio], rel=0.012)  # those were simulated
    assert dsi(agreement, ratio, ratio) == pytest.approx(DSI[agreement, ratio], abs=0.006)
    assert dsi(agreement, ratio, ratio) == pytest.approx(1 / (agreement / ratio + 1 - agreement))  # proposition 1


def test_free_running_stages_come_near_what_pearl_reaches_in_step() -> None:
    simulated = TwoStages(0.7, 10, passes=1500).asynchronous(0)
    assert simulated == pytest.approx(pearl(0.7, 10, 10), rel=0.03)
    assert abs(simulated - pearl(0.7, 10, 4)) > 0.15  # a block that is not the ratio is another schedule


def test_lookahead_is_the_least_that_keeps_the_servers_ahead_of_the_drafter() -> None:
    for ratio in (3, 5.5, 20):
        for servers in (1, 2, 7, 20):
            least = dsi_lookahead(ratio, servers)
            assert math.ceil(ratio / least) <= servers
            assert least == 1 or math.ceil(ratio / (least - 1)) > servers
    assert dsi(0.7, 20, 4) < dsi(0.7, 20, 20)


def with_target(policy: Policy, agreement: float, ratio: float, tokens: int = 4000) -> Result:
    """A drafter that always runs, and a target under this policy; one long answer."""
    stages = [Stage("light", Policy(0), StepCost(1 / ratio)), Stage("heavy", policy, StepCost(1.0))]
    load = Load(streams=1, requests=tokens // 1000, tokens=1000)
    return simulate(stages, Agreement([agreement]), load, upstream_s=NEVER_S, window=512, keep_passes=True)


def looked_at(run: Result) -> list[int]:
    """Drafts in each pass of the target, which also feeds its own last token."""
    return [each.tokens - 1 for each in run.passes if each.stage == 1]


@pytest.mark.parametrize(("agreement", "ratio"), SETTINGS)
def test_pre_verify_comes_near_pearls_closed_form(agreement: float, ratio: int) -> None:
    """A drafter that is refused in the middle of a step ends it first, which the closed form does not know."""
    reached = with_target(PreVerify(ratio), agreement, ratio).tokens_per_s
    assert reached == pytest.approx(pearl(agreement, ratio, ratio), rel=0.05)


def test_pre_verify_goes_on_alone_after_a_refusal_and_waits_for_a_block_after_a_right_one() -> None:
    always, never = with_target(PreVerify(8), 1.0, 10, 1000), with_target(PreVerify(8), 0.0, 10, 1000)
    assert looked_at(always)[1:100] == [7] * 99
    assert set(looked_at(never)) == {0}
    assert always.answers == never.answers
    waits = with_target(PreVerify(40), 1.0, 10, 1000)  # longer than what comes during a pass
    assert looked_at(waits)[1:20] == [39] * 19


def test_free_running_stages_take_whatever_is_there_and_wait_for_nothing() -> None:
    free = with_target(FreeRunning(), 0.9, 10, 1000)
    assert {0, 9, 10} <= set(looked_at(free)) and max(looked_at(free)) <= 10
    passes = [each for each in free.passes if each.stage == 1]
    assert all(later.start_s == pytest.approx(each.end_s) for each, later in itertools.pairwise(passes))


def test_every_schedule_is_a_recipe_with_its_policy() -> None:
    recipes = {path.stem: load_recipe(path) for path in RECIPES.glob("*.toml")}
    assert {name: recipe.name for name, recipe in recipes.items()} == {name: name for name in recipes}
    kinds = {name: type(policy_from_recipe(recipe, 1, StepCost(1.0))).__name__ for name, recipe in recipes.items()}
    assert kinds == {
        "lock_step": "LockStep",
        "pipespec_two_levels": "FreeRunning",
        "pipespec_three_levels": "FreeRunning",
        "pearl": "PreVerify",
        "dsi_one_server": "PreVerify",
        "specrouter": "Adaptive",
        "sled": "Adaptive",
        "ssd": "Rounds",
        "duodecoding": "Rounds",
    }
    trees = {name: recipe.tree for name, recipe in recipes.items() if recipe.tree is not None}
    assert {name: (tree.kind, tree.outcomes) for name, tree in trees.items()} == {
        "ssd": ("static", 12),
        "duodecoding": ("duo", 1),
    }
    sure = policy_from_recipe(recipes["sled"], 0, StepCost(1.0))
    assert sure.min_confidence == 0.3 and recipes["sled"].deadlines.upstream_s == 0.05
