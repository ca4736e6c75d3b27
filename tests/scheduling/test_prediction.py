"""The analytic tokens per second, against the reference values of a two-stage simulation with independent drafts."""

from __future__ import annotations

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


def test_the_window_bounds_what_a_pass_looks_at() -> None:
    assert predict(at(0.9, 20), 2, 4).drafts_per_pass <= 4 < predict(at(0.9, 20), 2, 32).drafts_per_pass


def test_rows_that_share_passes_bring_more_than_one_and_no_more_than_their_number() -> None:
    one, eight = predict(at(0.8, 10), 4, 16).tokens_per_s, predict(at(0.8, 10, rows=8), 4, 16).tokens_per_s
    assert 4 * one < eight <= 8.01 * one * 1.5
