"""The analytic tokens per second, against the reference values of a two-stage simulation with independent drafts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.scheduling.hazards import geometric
from cascade_runtime.scheduling.prediction import Conditions, alone, predict

# agreement, ratio: m = 0, best m, that m; a verification costs one step
REFERENCE = {
    (0.5, 5): (1.32, 1.37, 1),
    (0.5, 20): (1.33, 1.64, 3),
    (0.7, 5): (1.80, 1.87, 1),
    (0.7, 20): (1.95, 2.42, 4),
    (0.8, 20): (2.73, 3.33, 5),
    (0.9, 20): (4.78, 5.49, 6),
}


def at(agreement: float, ratio: float, rows: int = 1) -> Conditions:
    return Conditions(StepCost(1.0), geometric(agreement, 200), 1 / ratio, rows=rows)


@pytest.mark.parametrize(("agreement", "ratio"), REFERENCE)
def test_the_reference_values_are_predicted_within_four_per_cent(agreement: float, ratio: float) -> None:
    zero, best, m = REFERENCE[agreement, ratio]
    assert predict(at(agreement, ratio), 0, 199).tokens_per_s == pytest.approx(zero, rel=0.04)
    assert predict(at(agreement, ratio), m, 199).tokens_per_s == pytest.approx(best, rel=0.04)


def test_drafts_that_are_never_right_are_predicted_to_be_worse_than_none() -> None:
    useless = at(0.0, 5)
    assert predict(useless, 4, 16).tokens_per_s < alone(useless) == 1.0


def test_a_pass_over_one_token_is_as_cheap_as_it_is_and_any_draft_makes_it_dear() -> None:
    dear = replace(at(0.0, 5), cost=StepCost(1.0, several=3.6))
    assert alone(dear) == 1.0
    assert predict(dear, 0, 199).pass_s == 1.0  # after a refusal nothing is there, and here all are refused
    assert predict(dear, 4, 199).pass_s == pytest.approx(4.6)
    assert predict(replace(dear, rows=2), 0, 199).pass_s == pytest.approx(4.6)


def test_the_window_bounds_what_a_pass_looks_at() -> None:
    assert predict(at(0.9, 20), 2, 4).drafts_per_pass <= 4 < predict(at(0.9, 20), 2, 32).drafts_per_pass


def test_rows_that_share_passes_bring_more_than_one_and_no_more_than_their_number() -> None:
    one, eight = predict(at(0.8, 10), 4, 16).tokens_per_s, predict(at(0.8, 10, rows=8), 4, 16).tokens_per_s
    assert 4 * one < eight <= 8.01 * one * 1.5


def test_shared_cores_bound_what_all_stages_together_bring() -> None:
    free = at(0.8, 10, rows=8)
    shared = replace(free, cores=1.0, work_s=0.05, occupied=1.0)
    apart, together = predict(free, 4, 16), predict(shared, 4, 16)
    sharing = 8 * apart.pass_s / (apart.pass_s + apart.wait_s)
    work_s = apart.pass_s / sharing + 0.05 * apart.made_per_pass  # of one row's share of a pass
    assert together.tokens_per_s == pytest.approx(apart.tokens_per_pass / work_s, rel=0.1)
    assert together.tokens_per_s < apart.tokens_per_s
    assert predict(replace(shared, cores=64.0), 4, 16).tokens_per_s == apart.tokens_per_s


def test_on_full_cores_drafts_that_nobody_will_look_at_are_not_worth_making() -> None:
    shared = replace(at(0.6, 20, rows=8), cores=1.0, work_s=0.05)
    near, far = predict(shared, 3, 4), predict(shared, 3, 48)
    assert near.made_per_pass < 0.5 * far.made_per_pass
    assert near.tokens_per_s > 1.2 * far.tokens_per_s
    free = at(0.6, 20, rows=8)
    assert predict(free, 3, 4).tokens_per_s <= predict(free, 3, 48).tokens_per_s


@pytest.mark.parametrize(("window", "made"), [(4, 4), (9, 9), (64, 14)])
def test_drafts_made_are_those_waited_for_and_those_of_the_pass(window: int, made: int) -> None:
    never = Conditions(StepCost(1.0), geometric(0.0, 200), 0.1)
    assert predict(never, 4, window).made_per_pass == pytest.approx(made, abs=1)
