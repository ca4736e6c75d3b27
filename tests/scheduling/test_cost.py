"""The cost model: coefficients from passes, none below zero, one interrupted pass forgiven."""

from __future__ import annotations

import random

import pytest

from cascade_runtime.scheduling.cost import CostModel, StepCost

PRIOR = StepCost(0.01)


def test_varied_passes_give_the_coefficients_back() -> None:
    true, model, rng = StepCost(0.02, 0.001, 0.0005, 1e-6), CostModel(PRIOR), random.Random(0)
    for _ in range(400):
        rows, tokens, context = rng.randint(1, 16), rng.randint(16, 100), rng.randint(0, 20_000)
        model.observe(rows, tokens, context, true.seconds(rows, tokens, context))
    for rows, tokens, context in ((1, 1, 100), (16, 96, 10_000)):
        assert model.seconds(rows, tokens, context) == pytest.approx(true.seconds(rows, tokens, context), rel=0.1)


def test_no_coefficient_is_negative() -> None:
    model, rng = CostModel(PRIOR), random.Random(1)
    for _ in range(200):
        rows = rng.randint(1, 8)
        model.observe(rows, 2 * rows, 100 * rows, 0.1 - 0.005 * rows)  # more rows, less time
    fit = model.fit
    assert min(fit.base, fit.per_row, fit.per_token, fit.per_position) >= 0


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
