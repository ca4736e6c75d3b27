"""The cost model: coefficients from passes, none below zero, one interrupted pass forgiven."""

from __future__ import annotations

import random

import pytest

from cascade_runtime.scheduling.cost import CostModel, StepCost
from cascade_runtime.scheduling.costs import Costs

PRIOR = StepCost(0.01)


def test_varied_passes_give_the_coefficients_back() -> None:
    true, model, rng = StepCost(0.02, 0.001, 0.0005, 1e-6), CostModel(PRIOR), random.Random(0)
    for _ in range(400):
        rows, tokens, context = rng.randint(1, 16), rng.randint(16, 100), rng.randint(0, 20_000)
        model.observe(rows, tokens, context, true.seconds(rows, tokens, context))
    for rows, tokens, context in ((1, 1, 100), (16, 96, 10_000)):
        assert model.seconds(rows, tokens, context) == pytest.approx(true.seconds(rows, tokens, context), rel=0.1)


def test_a_kernel_for_one_token_that_is_quicker_by_far_is_learnt_apart_from_the_line() -> None:
    true, model, rng = StepCost(0.015, per_token=1e-4, several=0.05), CostModel(PRIOR), random.Random(3)
    for number in range(300):
        tokens = 1 if number % 3 else rng.randint(2, 24)
        model.observe(1, tokens, 100, true.seconds(1, tokens))
    assert (true.seconds(1, 1), true.seconds(1, 2)) == (pytest.approx(0.0151), pytest.approx(0.0652))
    for tokens in (1, 2, 24):
        assert model.seconds(1, tokens, 100) == pytest.approx(true.seconds(1, tokens), rel=0.1)


def test_no_coefficient_is_negative() -> None:
    model, rng = CostModel(PRIOR), random.Random(1)
    for _ in range(200):
        rows = rng.randint(1, 8)
        model.observe(rows, 2 * rows, 100 * rows, 0.1 - 0.005 * rows)  # more rows, less time
    fit = model.fit
    assert min(fit.coefficients) >= 0


def test_one_interrupted_pass_changes_little() -> None:
    model = CostModel(PRIOR)
    for _ in range(100):
        model.observe(1, 5, 100, 0.02)
    before = model.seconds(1, 5, 100)
    model.observe(1, 5, 100, 10.0)
    assert model.seconds(1, 5, 100) < 1.2 * before


def test_a_stage_that_became_slower_is_followed() -> None:
    model = CostModel(PRIOR)
    for seconds in (0.02,) * 200 + (0.06,) * 200:
        model.observe(1, 5, 100, seconds)
    assert model.seconds(1, 5, 100) == pytest.approx(0.06, rel=0.05)


def test_a_stage_that_is_five_times_slower_is_known_after_few_passes_and_keeps_the_shape_of_its_cost() -> None:
    true, model, rng = StepCost(0.02, 0.001, 0.0005), CostModel(PRIOR), random.Random(2)
    for _ in range(200):
        tokens = rng.randint(8, 40)
        assert not model.observe(8, tokens, 800, true.seconds(8, tokens))
    noticed, doubtful = 0, 0
    for number in range(20):
        noticed += model.observe(8, 16 + number % 3, 800, 5 * true.seconds(8, 16 + number % 3))
        doubtful += model.doubtful
        assert number < 6 or noticed
    assert 0 < doubtful < 16 and not model.doubtful
    for tokens in (8, 40):  # which were not seen since
        assert model.seconds(8, tokens, 800) == pytest.approx(5 * true.seconds(8, tokens), rel=0.15)


def test_a_mode_that_is_not_in_use_follows_the_other() -> None:
    costs = Costs(StepCost(0.02))

    def run(drafting: bool, seconds: float) -> None:
        for _ in range(80):
            costs.observe(drafting, 1, 1, 100, seconds)

    run(True, 0.022)
    assert costs.fit(False).seconds(1, 1, 100) == pytest.approx(0.022, rel=0.02)  # was never in use
    run(False, 0.020)
    run(True, 0.022)
    assert costs.fit(False).seconds(1, 1, 100) == pytest.approx(0.020, rel=0.02)
    run(True, 0.066)
    assert costs.fit(False).seconds(1, 1, 100) == pytest.approx(0.060, rel=0.05)
    run(False, 0.060)
    assert costs.fit(True).seconds(1, 1, 100) == pytest.approx(0.066, rel=0.05)
